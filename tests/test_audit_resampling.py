"""Bootstrap over images and groups of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from detector_zoo.evaluation.metrics import bootstrap
from detector_zoo.evaluation.resampling import Resampling, auroc, mean


def example(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3 == 0
    return labels, np.round(rng.normal(size=count) + labels, 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_auroc_agrees_with_scikit_learn_on_weighted_scores_with_ties(seed: int) -> None:
    labels, scores = example(seed)
    weights = np.random.default_rng(seed).integers(0, 4, (3, 60)).astype(float)
    weights[:, :2] = 1  # both classes are there
    found = auroc(labels, scores)(weights)
    for row, weight in zip(found, weights, strict=True):
        assert row == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight), abs=1e-12)


def test_auroc_within_compares_equals_only() -> None:
    labels, scores = example(1)
    fold = np.arange(60) % 4
    wins = [
        (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
        for i in np.flatnonzero(labels)
        for j in np.flatnonzero(~labels)
        if fold[i] == fold[j]
    ]
    assert auroc(labels, scores, fold)(np.ones((1, 60)))[0] == pytest.approx(np.mean(wins))
    # A shift of a whole fold, which ruins the pooled figure, changes nothing.
    shifted = scores + 100 * fold
    assert auroc(labels, shifted, fold)(np.ones((1, 60)))[0] == pytest.approx(np.mean(wins))


def test_nan_leaves_an_image_out() -> None:
    labels, scores = example(2)
    holes = scores.copy()
    holes[::7] = np.nan
    kept = np.isfinite(holes)
    once = np.ones((1, 60))
    assert auroc(labels, holes)(once)[0] == pytest.approx(roc_auc_score(labels[kept], scores[kept]))
    assert mean(holes, labels)(once)[0] == pytest.approx(scores[kept & labels].mean())


def test_what_is_not_defined_is_nan() -> None:
    labels, scores = example(3)
    resampling = Resampling(labels, resamples=50)
    for metric in resampling.intervals(auroc(labels, np.where(labels, np.nan, scores)), mean(scores, labels & ~labels)):
        assert np.isnan([metric.value, metric.low, metric.high]).all()


def test_interval_agrees_with_the_bootstrap_of_the_metrics() -> None:
    labels, scores = example(4, 300)
    (ours,) = Resampling(labels).intervals(auroc(labels, scores))
    theirs = bootstrap(labels, scores)
    assert ours.value == pytest.approx(theirs.value, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_differences_are_paired() -> None:
    labels, scores = example(5)
    first, second = mean(scores), mean(scores + 2)
    metric = Resampling(labels).intervals(lambda weights: second(weights) - first(weights))[0]
    assert (metric.value, metric.low, metric.high) == pytest.approx((2, 2, 2))


def test_draws_keep_groups_together_and_classes_in_number() -> None:
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 1, 1], bool)
    groups = ["a", "a", "b", "b", "c", "d", "e", "f", "f"]
    drawn = np.concatenate(list(Resampling(labels, groups, resamples=200, seed=3).weights()))
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 2] == drawn[:, 3]).all()
    assert (drawn[:, 0] + drawn[:, 2] == 2).all()
    assert (drawn[:, 4] + drawn[:, 5] == 2).all()
    assert (drawn[:, 6] + drawn[:, 7] == 2).all()
    assert len(np.unique(drawn[:, 0])) > 1


def test_a_group_widens_the_interval() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    labels = np.ones(200, bool)
    alone, together = (
        Resampling(labels, groups).intervals(mean(values))[0]
        for groups in (None, np.repeat(np.arange(20), 10).astype(str))
    )
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_repeats_and_depends_on_the_seed() -> None:
    labels, scores = example(6)
    one, same, other = (Resampling(labels, seed=seed, resamples=200).intervals(mean(scores)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one[0].value == other[0].value


def test_many_images_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from detector_zoo.evaluation import resampling

    monkeypatch.setattr(resampling, "_CELLS", 1000)
    labels, _ = example(7)
    parts = list(Resampling(labels, resamples=40).weights())
    assert [len(part) for part in parts] == [16, 16, 8]
    assert not (parts[0][:8] == parts[1][:8]).all()


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="3 labels and 2 groups"):
        Resampling([0, 1, 1], ["a", "b"])

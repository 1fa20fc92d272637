"""Bootstrap over images and groups of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from detector_zoo.evaluation import bootstrap as module
from detector_zoo.evaluation.bootstrap import Resampling, auroc_of, drop_of, mean_of
from detector_zoo.evaluation.intervals import Metric, clopper_pearson, ratio, share
from detector_zoo.evaluation.metrics import measure, paired


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
    found = auroc_of(labels, scores).of(weights)
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
    assert auroc_of(labels, scores, fold).of(np.ones((1, 60)))[0] == pytest.approx(np.mean(wins))
    # A shift of a whole fold, which ruins the pooled figure, changes nothing.
    shifted = scores + 100 * fold
    assert auroc_of(labels, shifted, fold).of(np.ones((1, 60)))[0] == pytest.approx(np.mean(wins))


def test_nan_leaves_an_image_out() -> None:
    labels, scores = example(2)
    holes = scores.copy()
    holes[::7] = np.nan
    kept = np.isfinite(holes)
    once = np.ones((1, 60))
    assert auroc_of(labels, holes).of(once)[0] == pytest.approx(roc_auc_score(labels[kept], scores[kept]))
    assert mean_of(holes, labels).of(once)[0] == pytest.approx(scores[kept & labels].mean())


def test_what_is_not_defined_is_nan() -> None:
    labels, scores = example(3)
    resampling = Resampling(labels, resamples=50)
    nobody = np.where(labels, np.nan, scores)
    for metric in resampling.intervals(auroc_of(labels, nobody), mean_of(scores, labels & ~labels)):
        assert np.isnan([metric.value, metric.low, metric.high]).all()


@pytest.mark.parametrize("groups", [None, [str(i // 4) for i in range(60)]])
def test_an_audit_and_an_evaluation_have_one_interval_for_one_figure(groups: list[str] | None) -> None:
    labels, scores = example(4)
    verdicts = mean_of(scores > 0.3, labels, rule=share)
    ours = Resampling(labels, groups, seed=5).intervals(auroc_of(labels, scores), verdicts)
    theirs = measure(labels, scores, 0.3, ("auroc", "generated_accuracy"), groups=groups, seed=5)
    for one, other in zip(ours, theirs.values(), strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-12)


def test_images_that_a_figure_leaves_out_do_not_change_its_interval() -> None:
    labels, scores = example(4)
    holes, kept = np.where(np.arange(60) % 5 == 0, np.nan, scores), np.arange(60) % 5 != 0
    (ours,) = Resampling(labels).intervals(auroc_of(labels, holes))
    theirs = measure(labels[kept], scores[kept], names=("auroc",))["auroc"]
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), abs=1e-12)


def test_an_audit_and_a_comparison_have_one_interval_for_one_difference() -> None:
    labels, scores = example(5)
    blurred = np.round(scores + np.random.default_rng(0).normal(size=60), 1)
    (ours,) = Resampling(labels).intervals(drop_of(labels, scores, blurred))
    theirs = paired(labels, blurred, scores, names=("auroc",))["auroc"]
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), abs=1e-12)


def test_perfect_separation_is_bounded_by_the_pictures_not_by_the_images() -> None:
    labels, scores = np.repeat([False, True], 20), np.repeat([0.0, 1.0], 20)
    alone = Resampling(labels).intervals(auroc_of(labels, scores))[0]
    assert alone == measure(labels, scores, names=("auroc",))["auroc"]
    assert alone.low == pytest.approx(clopper_pearson(20, 20, 0.025)[0])
    assert alone.high == 1
    # Ten pictures, four images of each.
    together = Resampling(labels, list(range(10)) * 4).intervals(auroc_of(labels, scores))[0]
    assert together.low == pytest.approx(clopper_pearson(10, 10, 0.025)[0])


def test_a_certain_drop_is_as_uncertain_as_its_images_are_few() -> None:
    labels, scores = np.repeat([False, True], 20), np.repeat([0.0, 1.0], 20)
    (drop,) = Resampling(labels).intervals(drop_of(labels, scores, 0 * scores))
    assert (drop.value, drop.high - drop.value) == (0.5, pytest.approx(1 - 0.025 ** (1 / 20)))
    (none,) = Resampling(labels).intervals(drop_of(labels, scores, scores))
    assert none == Metric(0, 0, 0)


def test_a_drop_is_of_images_that_count_both_times() -> None:
    labels, scores = example(6)
    holes = np.where(np.arange(60) % 5 == 0, np.nan, scores)
    (drop,) = Resampling(labels, resamples=50).intervals(drop_of(labels, scores, holes))
    assert drop == Metric(0, 0, 0)


def test_a_ratio_has_percentiles() -> None:
    drawn = np.linspace(1, 3, 201)
    assert ratio(2.5, drawn, 10) == Metric(2.5, pytest.approx(1.05), pytest.approx(2.95))


def test_one_image_says_nothing() -> None:
    labels = np.array([False, True])
    area, shift = Resampling(labels, resamples=50).intervals(auroc_of(labels, [0.0, 1.0]), mean_of([1.5, 2.5], labels))
    assert (area.low, area.high) == (pytest.approx(0.025), 1)
    assert (shift.value, shift.low, shift.high) == (2.5, -np.inf, np.inf)


def test_coverage_of_a_mean_of_a_few_groups() -> None:
    rng = np.random.default_rng(0)
    groups, labels = list(np.repeat(np.arange(12), 5)), np.ones(60, bool)
    held = 0
    for seed in range(300):
        values = np.repeat(rng.normal(size=12), 5) + 0.3 * rng.normal(size=60)
        m = Resampling(labels, groups, resamples=200, seed=seed).intervals(mean_of(values))[0]
        held += m.low <= 0 <= m.high
    assert 0.93 <= held / 300 <= 0.98


def test_draws_keep_groups_together_and_classes_in_number() -> None:
    labels = np.array([0, 1, 0, 1, 0, 0, 1, 1, 1], bool)
    groups = ["a", "a", "b", "b", "c", "d", "e", "f", "f"]
    drawn = np.concatenate(Resampling(labels, groups, resamples=200, seed=3).map(np.copy))
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
        Resampling(labels, groups).intervals(mean_of(values))[0] for groups in (None, np.repeat(np.arange(20), 10))
    )
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_repeats_and_depends_on_the_seed() -> None:
    labels, scores = example(6)
    one, same, other = (Resampling(labels, seed=seed, resamples=200).intervals(mean_of(scores)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one[0].value == other[0].value


def test_groups_of_one_image_are_drawn_like_images_without_a_group() -> None:
    labels, _ = example(7)
    alone, named = (Resampling(labels, groups, resamples=30).map(np.copy) for groups in (None, list("z" * 60)))
    assert not all(np.array_equal(a, b) for a, b in zip(alone, named, strict=True))
    named = Resampling(labels, [f"{59 - i}.jpg" for i in range(60)], resamples=30).map(np.copy)
    assert all(np.array_equal(a, b) for a, b in zip(alone, named, strict=True))


def test_many_images_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 1000)
    labels, _ = example(7)
    parts = Resampling(labels, resamples=40).map(np.copy)
    assert [len(part) for part in parts] == [16, 16, 8]
    assert not (parts[0][:8] == parts[1][:8]).all()


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="3 labels and 2 groups"):
        Resampling([0, 1, 1], ["a", "b"])

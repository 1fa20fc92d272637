import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from detector_zoo.evaluation import counts as counting
from detector_zoo.evaluation.bootstrap import Resampling
from detector_zoo.evaluation.metrics import (
    FEW,
    TITLES,
    Metric,
    auroc,
    average_precision,
    balanced_accuracy,
    bootstrap,
    brier,
    ece,
    eer,
    generated_accuracy,
    measure,
    oracle,
    paired,
    real_accuracy,
    reliability,
    summary,
    tpr_at_fpr,
)


def example(seed: int, ties: bool, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.3
    labels[:2] = (True, False)
    scores = rng.normal(size=count) + labels
    return labels, np.round(scores, 1) if ties else scores


def by_scikit_learn(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Every metric from scikit-learn, or, where it has none, from the definition, image by image."""
    p = 1 / (1 + np.exp(-scores))
    alarms, hits, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    bins = np.minimum((p * counting.ECE_BINS).astype(int), counting.ECE_BINS - 1)
    gaps = [abs(p[bins == b].sum() - labels[bins == b].sum()) for b in range(counting.ECE_BINS)]
    # The crossing of the ROC's segments with the line of equal errors, found by bisection along the curve.
    along = np.linspace(0, len(alarms) - 1, 200_001)
    fpr, fnr = (np.interp(along, range(len(alarms)), rate) for rate in (alarms, 1 - hits))
    return {
        "auroc": sk.roc_auc_score(labels, scores),
        "average_precision": sk.average_precision_score(labels, scores),
        "tpr_at_fpr_1": hits[alarms <= 0.01].max(),
        "tpr_at_fpr_5": hits[alarms <= 0.05].max(),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, scores > threshold),
        "real_accuracy": sk.recall_score(labels, scores > threshold, pos_label=False),
        "generated_accuracy": sk.recall_score(labels, scores > threshold, pos_label=True),
        "eer": float(fpr[np.argmin(abs(fpr - fnr))]),
        "brier": sk.brier_score_loss(labels, p),
        "ece": sum(gaps) / len(labels),
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(seed, ties):
    labels, scores = example(seed, ties)
    expected = by_scikit_learn(labels, scores, 0.3)
    found = measure(labels, scores, 0.3, resamples=100)
    assert list(found) == list(TITLES)
    for name, metric in found.items():
        # The reference of the EER is a grid.
        assert metric.value == pytest.approx(expected[name], abs=1e-4 if name == "eer" else 1e-9), name


def test_single_functions_are_what_measure_reports():
    labels, scores = example(4, ties=True)
    single = {
        "auroc": auroc(labels, scores),
        "average_precision": average_precision(labels, scores),
        "tpr_at_fpr_1": tpr_at_fpr(labels, scores, 0.01),
        "tpr_at_fpr_5": tpr_at_fpr(labels, scores, 0.05),
        "balanced_accuracy": balanced_accuracy(labels, scores, 0.2),
        "real_accuracy": real_accuracy(labels, scores, 0.2),
        "generated_accuracy": generated_accuracy(labels, scores, 0.2),
        "eer": eer(labels, scores),
        "brier": brier(labels, scores),
        "ece": ece(labels, scores),
    }
    assert {name: m.value for name, m in measure(labels, scores, 0.2, resamples=100).items()} == single


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 60), decimals=st.integers(0, 3))
def test_counts_agree_with_scikit_learn_on_the_resamples_themselves(seed, size, decimals):
    labels, scores = example(seed, ties=False, count=size)
    scores = np.round(scores, decimals)
    rng = np.random.default_rng(seed)
    drawn = [
        np.concatenate([rng.choice(np.flatnonzero(labels == kind), (labels == kind).sum()) for kind in (True, False)])
        for _ in range(3)
    ]
    weights = np.array([np.bincount(d, minlength=size) for d in drawn], float)
    counts = counting.Counts(counting.Ranked(labels, scores), weights)
    expected = [by_scikit_learn(labels[d], scores[d], 0.3) for d in drawn]
    for name, statistic in counting.statistics(0.3).items():
        assert statistic(counts) == pytest.approx(
            [one[name] for one in expected], abs=1e-4 if name == "eer" else 1e-9
        ), name


def test_resamples_keep_the_classes_and_draw_each_image_alike():
    labels, _ = example(0, ties=False, count=50)
    drawn = np.concatenate(Resampling(labels, resamples=4000).map(np.copy))
    assert drawn.shape == (4000, 50)
    assert (drawn[:, labels].sum(1) == labels.sum()).all()
    assert (drawn[:, ~labels].sum(1) == (~labels).sum()).all()
    assert drawn.mean(0) == pytest.approx(np.ones(50), abs=0.1)


def test_interval_agrees_with_resampling_images_one_by_one():
    labels, scores = example(0, ties=True)
    rng = np.random.default_rng(1)
    real, fake = scores[~labels], scores[labels]
    slow = [
        sk.roc_auc_score(np.sort(labels), np.concatenate([rng.choice(real, len(real)), rng.choice(fake, len(fake))]))
        for _ in range(500)
    ]
    metric = bootstrap(labels, scores)
    assert metric.value == pytest.approx(sk.roc_auc_score(labels, scores))
    assert (metric.low, metric.high) == pytest.approx(tuple(np.quantile(slow, (0.025, 0.975))), abs=0.015)


def test_reproducible_and_brackets_the_value():
    labels, scores = example(2, ties=False)
    assert measure(labels, scores, resamples=200) == measure(labels, scores, resamples=200)
    assert measure(labels, scores, resamples=200, seed=1) != measure(labels, scores, resamples=200)
    for metric in measure(labels, scores, 0.5, resamples=200).values():
        assert 0 <= metric.low <= metric.value <= metric.high <= 1
    assert list(summary(labels, scores, resamples=100)) == [
        "AUROC",
        "AP",
        "TPR@1%FPR",
        "TPR@5%FPR",
        "balanced accuracy",
    ]


COVERED = ("auroc", "average_precision", "tpr_at_fpr_5", "balanced_accuracy", "real_accuracy", "generated_accuracy")
COVERED += ("eer", "brier")


def test_coverage():
    """Of nominal 95 % intervals; two normals, 150 images a class, which the metrics' true values are known of."""
    count, sets = 300, 300
    labels = np.arange(count) % 2 == 1

    def draw(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
        return rng.normal(size=len(labels)) + 2 * labels - 1

    many = np.arange(2_000_000) % 2 == 1
    truth = measure(many, draw(np.random.default_rng(0), many), 0.3, COVERED, resamples=2)
    rng = np.random.default_rng(1)
    held = dict.fromkeys(COVERED, 0)
    for seed in range(sets):
        for name, m in measure(labels, draw(rng, labels), 0.3, COVERED, resamples=300, seed=seed).items():
            held[name] += m.low <= truth[name].value <= m.high
    assert {name: round(n / sets, 3) for name, n in held.items() if not 0.93 <= n / sets <= 0.97} == {}


@pytest.mark.parametrize(
    ("factor", "truth"), [(2.0, 0.0), (2.5, 0.0283), (3.0, 0.0486), (6.0, 0.1026), (1.0, 0.1051), (-1.0, 0.5736)]
)
def test_coverage_of_calibration_error(factor, truth):
    """Of a calibrated detector, of such as are too sure, of one that is not sure enough, of one that is wrong."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 2 == 1
    held = 0
    for seed in range(300):
        scores = factor * (rng.normal(size=300) + 2 * labels - 1)
        m = measure(labels, scores, 0, ("ece",), resamples=300, seed=seed)["ece"]
        assert m.low <= m.value <= m.high
        held += m.low <= truth <= m.high
    assert 0.93 <= round(held / 300, 2) <= 0.97


@pytest.mark.parametrize(("name", "limit", "real"), [("tpr_at_fpr_1", 0.01, 300), ("tpr_at_fpr_5", 0.05, 60)])
def test_coverage_of_the_tpr_with_as_few_real_images_as_resamples_serve(name, limit, real):
    from scipy.stats import norm

    truth, labels = norm.sf(norm.isf(limit) - 2), np.repeat([0, 1], [real, 100])
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(400):
        scores = rng.normal(size=len(labels)) + 2 * labels
        m = measure(labels, scores, 0, (name,), resamples=300, seed=seed)[name]
        held += m.low <= truth <= m.high
    assert 0.93 <= held / 400 <= 0.97


@pytest.mark.parametrize(
    ("name", "limit", "real"), [("tpr_at_fpr_1", 0.01, 50), ("tpr_at_fpr_1", 0.01, 200), ("tpr_at_fpr_5", 0.05, 59)]
)
def test_coverage_of_the_tpr_with_few_real_images(name, limit, real):
    from scipy.stats import norm

    truth, labels = norm.sf(norm.isf(limit) - 2), np.repeat([0, 1], [real, 100])
    rng = np.random.default_rng(0)
    found = [
        measure(labels, rng.normal(size=len(labels)) + 2 * labels, 0, (name,), resamples=2)[name] for _ in range(200)
    ]
    assert np.mean([m.low <= truth <= m.high for m in found]) >= 0.95
    assert all(m.low <= m.value <= m.high for m in found)
    # So few real images do not tell how high the highest of more would score.
    assert all(m.low == 0 for m in found)
    assert any(m.high < 0.9 for m in found)


def test_exact_interval_of_the_tpr_where_ties_cross_the_classes():
    labels = np.repeat([0, 1], [100, 50])
    same = measure(labels, np.zeros(150), names=("tpr_at_fpr_1",), resamples=2)["tpr_at_fpr_1"]
    assert same == Metric(0, 0, 1)
    apart = measure(labels, labels.astype(float), names=("tpr_at_fpr_1",), resamples=2)["tpr_at_fpr_1"]
    assert (apart.value, apart.high) == (1, 1)


def test_coverage_of_paired_differences():
    labels = np.arange(300) % 2 == 1
    many = np.arange(1_000_000) % 2 == 1

    def pair(rng: np.random.Generator, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shared = rng.normal(size=len(labels)) + 1.5 * labels
        return shared + rng.normal(size=len(labels)), shared

    big = pair(np.random.default_rng(0), many)
    truth = auroc(many, big[1]) - auroc(many, big[0])
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        m = paired(labels, *pair(rng, labels), names=("auroc",), resamples=300, seed=seed)["auroc"]
        held += m.low <= truth <= m.high
    assert 0.93 <= round(held / 300, 2) <= 0.97


def test_paired_intervals_are_narrower_than_those_of_independent_sets():
    labels, first = example(3, ties=False)
    second = first + np.random.default_rng(0).normal(scale=0.1, size=len(first))
    difference = paired(labels, first, second, names=("auroc",))["auroc"]
    alone = bootstrap(labels, first)
    assert difference.high - difference.low < (alone.high - alone.low) / 2
    assert difference.value == pytest.approx(auroc(labels, second) - auroc(labels, first))
    assert paired(labels, first, first, names=("auroc", "ece"))["auroc"] == Metric(0, 0, 0)


def test_paired_judges_each_detector_by_its_own_threshold():
    labels, scores = example(3, ties=False)
    same = paired(labels, scores, scores + 5, (0.0, 5.0), ("balanced_accuracy", "real_accuracy"), resamples=100)
    assert all(abs(m.value) < 1e-12 for m in same.values())


def test_perfect_useless_and_constant_scores():
    labels = np.repeat([0, 1], 20)
    perfect = bootstrap(labels, labels.astype(float))
    # Clopper and Pearson: 20 of 20 leave 0.8316 open.
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(0.8316, abs=1e-4)
    constant = measure(labels, np.zeros(40), resamples=100)
    assert constant["auroc"] == Metric(0.5, 0.5, 0.5)
    assert constant["eer"].value == 0.5
    assert constant["average_precision"].value == 0.5
    assert constant["tpr_at_fpr_5"].value == 0
    assert (constant["real_accuracy"].value, constant["generated_accuracy"].value) == (1, 0)
    half = constant["balanced_accuracy"]
    assert half.value == 0.5
    assert half.low < 0.4 < 0.6 < half.high


def test_a_difference_that_few_images_agree_on_is_not_certain():
    labels = np.array([0, 0, 0, 1])
    right, wrong = labels - 0.5, 0.5 - labels
    found = paired(labels, right, wrong, names=("generated_accuracy", "real_accuracy"), resamples=100)
    assert found["generated_accuracy"].value == -1
    assert found["generated_accuracy"].high > -0.1
    assert found["real_accuracy"].high > -0.4


def test_intervals_of_few_images_say_so():
    labels = np.array([1] + [0] * 50)
    scores = np.random.default_rng(0).normal(size=51)
    one = measure(labels, scores, resamples=100)
    assert (one["auroc"].low, one["auroc"].high) == (0, 1)
    assert one["real_accuracy"].high - one["real_accuracy"].low < 0.4
    assert FEW > 1


def test_oracle_is_reached_by_its_own_threshold():
    labels, scores = example(5, ties=True)
    threshold, best = oracle(labels, scores)
    assert balanced_accuracy(labels, scores, threshold) == pytest.approx(best, abs=1e-12)
    assert best == pytest.approx(max(balanced_accuracy(labels, scores, t) for t in [-9, *np.unique(scores)]))


def test_reliability_bins():
    labels = np.array([0, 1, 1, 1])
    bins = reliability(labels, np.array([-5.0, -5.0, 5.0, 5.0]))
    assert [(round(said, 4), found, n) for said, found, n in bins] == [(0.0067, 0.5, 2), (0.9933, 1.0, 2)]


def test_million_rows():
    labels, scores = example(0, ties=False, count=1_000_000)
    found = measure(labels, scores, names=("auroc", "eer"), resamples=2)
    assert found["auroc"].value == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-9)
    assert found["eer"].value == pytest.approx(0.3085, abs=2e-3)  # of two normals one standard deviation apart


def test_memory_is_bounded_by_the_chunk():
    labels, scores = example(0, ties=False, count=100_000)
    tracemalloc.start()
    measure(labels, scores, resamples=40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # All resamples at once would hold 40 x 100,000 numbers of 8 bytes several times over.
    assert peak < 150e6


def test_text_of_a_metric():
    assert str(Metric(0.91, 0.875, 0.9512)) == "0.910 [0.875, 0.951]"


@pytest.mark.parametrize("function", [auroc, average_precision, eer, brier, ece, real_accuracy, measure, reliability])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0], [0.1, 0.2], "both classes are needed: 2 real and 0 generated"),
        ([1], [0.1], "both classes"),
        ([], [], "both classes"),
        ([0, 1], [0.1], "one length"),
        ([0, 1], [0.1, float("nan")], "finite"),
        ([0, 1], [0.1, float("inf")], "finite"),
        ([0, 2], [0.1, 0.2], "labels must be 0"),
    ],
)
def test_refuses_what_cannot_be_measured(function, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        function(labels, scores)

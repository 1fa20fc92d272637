import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score, roc_curve

from detector_zoo.evaluation.metrics import (
    Metric,
    auroc,
    average_precision,
    balanced_accuracy,
    bootstrap,
    summary,
    tpr_at_fpr,
)


def example(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(300) < 0.3
    scores = rng.normal(size=300) + labels
    return labels, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(seed, ties):
    labels, scores = example(seed, ties)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores))
    assert balanced_accuracy(labels, scores, 0.3) == pytest.approx(balanced_accuracy_score(labels, scores > 0.3))
    alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    for limit in (0.01, 0.05):
        assert tpr_at_fpr(labels, scores, limit) == pytest.approx(hits[alarms <= limit].max())


def test_bootstrap_agrees_with_resampling_images_one_by_one():
    labels, scores = example(0, ties=True)
    rng = np.random.default_rng(1)
    real, fake = scores[~labels], scores[labels]
    slow = [
        roc_auc_score(
            labels[np.argsort(labels, kind="stable")],
            np.concatenate([rng.choice(real, len(real)), rng.choice(fake, len(fake))]),
        )
        for _ in range(500)
    ]
    metric = bootstrap(labels, scores)
    assert metric.value == pytest.approx(roc_auc_score(labels, scores))
    assert (metric.low, metric.high) == pytest.approx(tuple(np.quantile(slow, (0.025, 0.975))), abs=0.012)


def test_bootstrap_is_reproducible_and_brackets_the_value():
    labels, scores = example(2, ties=False)
    assert bootstrap(labels, scores) == bootstrap(labels, scores)
    for metric in summary(labels, scores, 0.5).values():
        assert 0 <= metric.low <= metric.value <= metric.high <= 1


def test_perfect_and_useless_scores():
    labels = np.repeat([0, 1], 20)
    assert bootstrap(labels, labels.astype(float)) == Metric(1.0, 1.0, 1.0)
    assert bootstrap(labels, np.zeros(40)) == Metric(0.5, 0.5, 0.5)
    assert tpr_at_fpr(labels, np.zeros(40), 0.05) == 0


def test_text_of_a_metric():
    assert str(Metric(0.91, 0.875, 0.9512)) == "0.910 [0.875, 0.951]"


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0], [0.1, 0.2], "both classes"),
        ([0, 1], [0.1], "one length"),
        ([0, 1], [0.1, float("nan")], "finite"),
    ],
)
def test_refuses_what_cannot_be_measured(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        auroc(labels, scores)

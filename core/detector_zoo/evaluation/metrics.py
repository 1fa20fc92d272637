"""Metrics of a binary score, each with a 95 % interval by a bootstrap within the classes.

Labels are 1 for generated and 0 for real; a higher score means generated. Values come from scikit-learn wherever it
has the metric; the resamples behind the intervals are counted by `bootstrap`, whose metrics are tested equal to
scikit-learn's on the resamples themselves.

An interval is the value, on the logit scale, plus and minus Student's quantile times the resamples' standard error,
with the degrees of freedom of the smaller class: in simulation it covers the truth more often than the percentiles of
the same resamples do, and it widens as a class gets small (`pytest tests/test_metrics.py -k coverage`).
A value of 0 or 1, about which resamples know nothing, has the exact interval of a proportion of that many images. The
calibration error sums absolute values, which noise can only raise; its interval is the value plus and minus what noise
alone amounts to in 97.5 % of the resamples: it covers more often than 95 %, and reaches 0 where nothing speaks against.
No bootstrap knows more than the images that it draws from: with fewer than `FEW` of a class do not believe it, and
TPR at 1 % FPR, a statement on the rarest real images, wants some thousand of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detector_zoo.errors import ZooError
from detector_zoo.evaluation.bootstrap import ECE_BINS, Floats, calibration_noise, resample, statistics

__all__ = [
    "FEW",
    "PROBABILISTIC",
    "TITLES",
    "Metric",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "bootstrap",
    "brier",
    "ece",
    "eer",
    "generated_accuracy",
    "measure",
    "oracle",
    "paired",
    "real_accuracy",
    "reliability",
    "summary",
    "tpr_at_fpr",
]

_COUNTED = ("tpr_at_fpr_1", "tpr_at_fpr_5", "balanced_accuracy", "real_accuracy", "generated_accuracy")
"""Metrics that are shares of images: all or none of a few does not mean all or none of many."""
TITLES = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "tpr_at_fpr_1": "TPR@1%FPR",
    "tpr_at_fpr_5": "TPR@5%FPR",
    "balanced_accuracy": "balanced accuracy",
    "real_accuracy": "real accuracy",
    "generated_accuracy": "generated accuracy",
    "eer": "EER",
    "brier": "Brier",
    "ece": "ECE",
}
"""Every metric's name, and how it is written for people."""

PROBABILISTIC = ("brier", "ece")
"""Metrics of probabilities: they say nothing of a detector whose scores are not calibrated."""

FEW = 10
"""Images of a class below which an interval is not to be believed."""

_SUMMARY = ("auroc", "average_precision", "tpr_at_fpr_1", "tpr_at_fpr_5", "balanced_accuracy")


@dataclass(frozen=True, slots=True)
class Metric:
    """A value in [0, 1], or a difference of two in [-1, 1], and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _checked(labels: ArrayLike, *columns: ArrayLike) -> tuple[NDArray[np.bool_], list[Floats]]:
    y = np.asarray(labels)
    scores = [np.asarray(column, np.float64) for column in columns]
    for s in scores:
        if y.shape != s.shape or y.ndim != 1:
            raise ValueError(f"labels and scores must be of one length, not {y.shape} and {s.shape}")
        if not np.isfinite(s).all():
            raise ValueError("scores must be finite")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 (real) or 1 (generated)")
    y = y.astype(bool)
    if y.all() or not y.any():
        raise ValueError(f"both classes are needed: {int((~y).sum())} real and {int(y.sum())} generated images")
    return y, scores


def _sklearn() -> Any:
    try:
        import sklearn.metrics
    except ImportError as error:
        raise ZooError("metrics need scikit-learn", hint="pip install 'detector-zoo[eval]'") from error
    return sklearn.metrics


def _roc(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """False and true positive rates at every distinct score, from (0, 0) to (1, 1)."""
    y, (s,) = _checked(labels, scores)
    fpr, tpr, _ = _sklearn().roc_curve(y, s, drop_intermediate=False)
    return fpr, tpr


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a generated image outscores a real one; ties count a half.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75

    Args:
        labels: (N,), 0 real, 1 generated; both are needed.
        scores: (N,), finite.

    Raises:
        ValueError: A class is missing, a score is not finite, or the lengths differ; so do all functions here.
    """
    y, (s,) = _checked(labels, scores)
    return float(_sklearn().roc_auc_score(y, s))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean precision over the generated images, without interpolation; depends on the share of generated images."""
    y, (s,) = _checked(labels, scores)
    return float(_sklearn().average_precision_score(y, s))


def tpr_at_fpr(labels: ArrayLike, scores: ArrayLike, fpr: float) -> float:
    """Largest share of generated images found by a threshold that flags at most ``fpr`` of the real ones."""
    alarms, hits = _roc(labels, scores)
    return float(hits[alarms <= fpr].max())


def eer(labels: ArrayLike, scores: ArrayLike) -> float:
    """Equal error rate: where the ROC curve, its points joined by straight lines, has as many alarms as misses."""
    alarms, hits = _roc(labels, scores)
    gap = (1 - hits) - alarms
    at = int(np.argmax(gap <= 0))
    return float(alarms[at - 1] + (alarms[at] - alarms[at - 1]) * gap[at - 1] / (gap[at - 1] - gap[at]))


def balanced_accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.0) -> float:
    """Mean of the two classes' accuracies; a score above ``threshold`` is called generated."""
    y, (s,) = _checked(labels, scores)
    return float(_sklearn().balanced_accuracy_score(y, s > threshold))


def real_accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.0) -> float:
    """Share of the real images that score at or below ``threshold``."""
    y, (s,) = _checked(labels, scores)
    return float(_sklearn().recall_score(y, s > threshold, pos_label=False))


def generated_accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.0) -> float:
    """Share of the generated images that score above ``threshold``."""
    y, (s,) = _checked(labels, scores)
    return float(_sklearn().recall_score(y, s > threshold, pos_label=True))


def brier(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean squared difference of label and probability, the logistic function of ``scores`` in log-odds."""
    y, (s,) = _checked(labels, scores)
    return float(_sklearn().brier_score_loss(y, np.exp(-np.logaddexp(0.0, -s))))


def ece(labels: ArrayLike, scores: ArrayLike) -> float:
    """Expected calibration error over `ECE_BINS` bins of equal width, by the bins' shares (Guo et al. 2017, eq. 3).

    Like the Brier score it depends on the share of generated images.
    """
    bins = reliability(labels, scores)
    total = sum(count for _, _, count in bins)
    return float(sum(count * abs(said - found) for said, found, count in bins) / total)


def reliability(labels: ArrayLike, scores: ArrayLike) -> list[tuple[float, float, int]]:
    """What was said and what was found, bin by bin.

    Args:
        labels: (N,), 0 real, 1 generated.
        scores: (N,), log-odds.

    Returns:
        For every bin that is not empty: its mean probability, its share of generated images, its images.
    """
    y, (s,) = _checked(labels, scores)
    p = np.exp(-np.logaddexp(0.0, -s))
    which = np.digitize(p, np.linspace(0, 1, ECE_BINS + 1)[1:-1])
    counts = np.bincount(which, minlength=ECE_BINS)
    said, found = (np.bincount(which, weights=weights, minlength=ECE_BINS) for weights in (p, y))
    return [(float(said[b] / n), float(found[b] / n), int(n)) for b, n in enumerate(counts) if n]


def oracle(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """The threshold that is best on these very images, and its balanced accuracy: no detector's merit.

    Returns:
        A score, the highest of those that do best, and the balanced accuracy of calling all above it generated.
    """
    y, (s,) = _checked(labels, scores)
    alarms, hits, cuts = _sklearn().roc_curve(y, s, drop_intermediate=False)
    best = int(np.argmax(hits - alarms))
    # roc_curve calls a score generated from its cut on, the zoo only above its threshold: one number lower.
    threshold = float(np.nextafter(cuts[best], -np.inf)) if best else float(s.max())
    return threshold, float((1 + hits[best] - alarms[best]) / 2)


def _values(threshold: float) -> dict[str, Callable[[ArrayLike, ArrayLike], float]]:
    return {
        "auroc": auroc,
        "average_precision": average_precision,
        "tpr_at_fpr_1": lambda y, s: tpr_at_fpr(y, s, 0.01),
        "tpr_at_fpr_5": lambda y, s: tpr_at_fpr(y, s, 0.05),
        "balanced_accuracy": lambda y, s: balanced_accuracy(y, s, threshold),
        "real_accuracy": lambda y, s: real_accuracy(y, s, threshold),
        "generated_accuracy": lambda y, s: generated_accuracy(y, s, threshold),
        "eer": eer,
        "brier": brier,
        "ece": ece,
    }


def _interval(name: str, value: float, drawn: Floats, images: int) -> Metric:
    """Interval of a value in [0, 1] from its resamples; ``images`` are those that it rests on."""
    bound = 1 - 0.025 ** (1 / images)  # Clopper and Pearson's, of none or all of ``images``
    if not 0 < value < 1:
        low, high = np.quantile(drawn, (0.025, 0.975))
        return Metric(value, min(float(low), 1 - bound), 1.0) if value else Metric(value, 0.0, max(float(high), bound))
    error = _spread(drawn, images)
    if error == 0:
        # Of one class all are right and of the other none: resamples cannot show how rare the exceptions are.
        error = bound if name in _COUNTED else 0.0
    logit, half = float(np.log(value / (1 - value))), error / (value * (1 - value))
    low, high = (float(np.exp(-np.logaddexp(0.0, -x))) for x in (logit - half, logit + half))
    return Metric(value, low, high)


def _spread(drawn: Floats, images: int) -> float:
    """Half the width of an interval: the standard error, as of ``images`` - 1 degrees of freedom, times t.

    Resampling n images of a class understates the variance by (n - 1) / n.
    """
    if images < 2:
        return float("inf")
    error = float(np.std(drawn, ddof=1))
    # What rounding leaves of equal resamples is no error.
    if error < 1e-12:
        return 0.0
    return error * float(np.sqrt(images / (images - 1)) * _t_quantile(images - 1))


def _images(name: str, labels: NDArray[np.bool_]) -> int:
    """How many images a metric rests on: those of its class, or of the smaller one."""
    generated = int(labels.sum())
    real = len(labels) - generated
    return {"real_accuracy": real, "generated_accuracy": generated}.get(name, min(real, generated))


def _t_quantile(freedom: int) -> float:
    from scipy.special import stdtrit  # comes with scikit-learn

    return float(stdtrit(freedom, 0.975))


def measure(
    labels: ArrayLike,
    scores: ArrayLike,
    threshold: float = 0.0,
    names: Sequence[str] = tuple(TITLES),
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Metric]:
    """Metrics with their intervals, all from the same resamples.

    Args:
        labels: (N,), 0 real, 1 generated; both are needed.
        scores: (N,), log-odds, finite.
        threshold: In log-odds; a score above it is called generated.
        names: Of `TITLES`.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        By name, in the order of ``names``.
    """
    y, (s,) = _checked(labels, scores)
    values, known = _values(threshold), statistics(threshold) | {"ece": calibration_noise(y, s)}
    drawn = resample(y, [s], {name: known[name] for name in names}, resamples, seed)
    out = {}
    for name in names:
        value = values[name](y, s)
        if name == "ece":
            noise = float(np.quantile(drawn[name][0], 0.975))
            out[name] = Metric(value, max(value - noise, 0.0), min(value + noise, 1.0))
        else:
            out[name] = _interval(name, value, drawn[name][0], _images(name, y))
    return out


def paired(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    thresholds: tuple[float, float] = (0.0, 0.0),
    names: Sequence[str] = tuple(TITLES),
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Metric]:
    """What two detectors differ by on the same images: second minus first, every resample drawing for both alike.

    Args:
        labels: (N,), 0 real, 1 generated.
        first: (N,), log-odds.
        second: (N,), log-odds of the same images.
        thresholds: Of the two.
        names: Of `TITLES`.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        By name: the difference, and Student's interval of it from the resamples' standard error.
    """
    y, columns = _checked(labels, first, second)
    drawn = []
    for which, threshold in enumerate(thresholds):  # the same seed draws the same images
        known = statistics(threshold)
        both = resample(y, columns, {name: known[name] for name in names}, resamples, seed)
        drawn.append({name: values[which] for name, values in both.items()})
    values = [_values(threshold) for threshold in thresholds]
    out = {}
    for name in names:
        difference = values[1][name](y, columns[1]) - values[0][name](y, columns[0])
        images = _images(name, y)
        half = _spread(drawn[1][name] - drawn[0][name], images)
        if half == 0 and difference and name in _COUNTED:
            half = 1 - 0.025 ** (1 / images)
        out[name] = Metric(difference, max(difference - half, -1.0), min(difference + half, 1.0))
    return out


def bootstrap(
    labels: ArrayLike,
    scores: ArrayLike,
    name: str = "auroc",
    threshold: float = 0.0,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Metric:
    """One metric of `TITLES` with its interval; as `measure`."""
    return measure(labels, scores, threshold, (name,), resamples=resamples, seed=seed)[name]


def summary(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.0, **options: Any) -> dict[str, Metric]:
    """AUROC, AP, TPR at 1 % and 5 % FPR and balanced accuracy, by title; ``options`` go to `measure`."""
    return {TITLES[name]: metric for name, metric in measure(labels, scores, threshold, _SUMMARY, **options).items()}

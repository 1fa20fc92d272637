"""Metrics of a binary score, each with a 95 % interval by a bootstrap within the classes.

Labels are 1 for generated and 0 for real; a higher score means generated. Values come from scikit-learn wherever it
has the metric; the resamples behind the intervals are counted by `counts`, whose metrics are tested equal to
scikit-learn's on the resamples themselves. `intervals` has the rules by which resamples become an interval.

Two metrics have rules of their own. The calibration error sums absolute values, which noise can only raise: see
`intervals.sum_of_gaps`. TPR at a low FPR rests on the few highest real images: where fewer than `RARE` of them may
be flagged, no set knows a lower bound, and the interval starts at 0.
No bootstrap knows more than the images that it draws from: with fewer than `FEW` of a class do not believe it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detector_zoo.errors import ZooError
from detector_zoo.evaluation import intervals
from detector_zoo.evaluation.bootstrap import Resampling
from detector_zoo.evaluation.counts import ECE_BINS, Counts, Ranked, statistics
from detector_zoo.evaluation.intervals import FEW, TAILS, Metric

Floats = NDArray[np.float64]

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

_LIMITS = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_5": 0.05}

PROBABILISTIC = ("brier", "ece")
"""Metrics of probabilities: they say nothing of a detector whose scores are not calibrated."""

RARE = 3
"""Real images that a limit of the FPR lets flag, below which the bootstrap of the TPR is not to be believed."""

_SUMMARY = ("auroc", "average_precision", "tpr_at_fpr_1", "tpr_at_fpr_5", "balanced_accuracy")


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
        **{name: partial(tpr_at_fpr, fpr=limit) for name, limit in _LIMITS.items()},
        "balanced_accuracy": lambda y, s: balanced_accuracy(y, s, threshold),
        "real_accuracy": lambda y, s: real_accuracy(y, s, threshold),
        "generated_accuracy": lambda y, s: generated_accuracy(y, s, threshold),
        "eer": eer,
        "brier": brier,
        "ece": ece,
    }


def _images(name: str, resampling: Resampling, labels: NDArray[np.bool_]) -> int:
    """How many images a metric rests on: those of its class, or of the smaller one; groups of them count once."""
    classes = {"real_accuracy": (~labels,), "generated_accuracy": (labels,)}.get(name, (labels, ~labels))
    return resampling.images(*classes)


def measure(
    labels: ArrayLike,
    scores: ArrayLike,
    threshold: float = 0.0,
    names: Sequence[str] = tuple(TITLES),
    *,
    groups: Sequence[object] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Metric]:
    """Metrics with their intervals, all from the same resamples.

    Args:
        labels: (N,), 0 real, 1 generated; both are needed.
        scores: (N,), log-odds, finite.
        threshold: In log-odds; a score above it is called generated.
        names: Of `TITLES`.
        groups: (N,), equal for images that belong together, such as a photograph and its edits: they are drawn
            together. None draws each for itself.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        By name, in the order of ``names``.
    """
    y, (s,) = _checked(labels, scores)
    resampling, ranked = Resampling(y, groups, resamples=resamples, seed=seed), Ranked(y, s)
    values, known = _values(threshold), statistics(threshold)
    known["ece"] = lambda counts: counts.gaps
    drawn = _drawn(resampling, [(ranked, [known[name] for name in names])])[0]
    out = {}
    for name, resampled in zip(names, drawn, strict=True):
        value = values[name](y, s)
        if name == "ece":
            once = Counts(ranked, np.ones((1, len(y))))
            out[name] = intervals.sum_of_gaps(value, once.gaps[0], resampled, once.calibrated_variance[0])
        elif name in _LIMITS and _LIMITS[name] * int((~y).sum()) < RARE:
            out[name] = _rare_tpr(value, y, s, _LIMITS[name])
        else:
            images = _images(name, resampling, y)
            out[name] = intervals.share(value, resampled, images, counted=name in _COUNTED)
    return out


def _drawn(
    resampling: Resampling, columns: Sequence[tuple[Ranked, Sequence[Callable[[Counts], Floats]]]]
) -> list[list[Floats]]:
    """For each column of scores its statistics' values over the resamples, (R, ...) each."""

    def work(weights: Floats) -> list[list[Floats]]:
        found = []
        for ranked, wanted in columns:
            counts = Counts(ranked, weights)
            found.append([statistic(counts) for statistic in wanted])
        return found

    chunks = resampling.map(work)
    return [[np.concatenate(parts) for parts in zip(*column, strict=True)] for column in zip(*chunks, strict=True)]


def _rare_tpr(value: float, labels: NDArray[np.bool_], scores: Floats, limit: float) -> Metric:
    """Interval of the TPR at a limit of the FPR that allows fewer than `RARE` of the real images.

    How many real images lie above the threshold at which the FPR *is* the limit has a binomial distribution. Of so
    few it may well be none, and the threshold anywhere above them all, with nothing found: the interval starts at 0.
    It ends where the share found above the lowest such threshold does; both are missed with 1.25 % at most.
    """
    from scipy.special import bdtr

    real, generated = np.sort(scores[~labels])[::-1], scores[labels]
    tail = TAILS[0] / 2
    most = int(np.searchsorted(bdtr(np.arange(len(real) + 1), len(real), limit), 1 - tail))
    found = int((generated >= real[most]).sum()) if most < len(real) else len(generated)
    return Metric(value, 0.0, intervals.clopper_pearson(found, len(generated), tail)[1])


def paired(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    thresholds: tuple[float, float] = (0.0, 0.0),
    names: Sequence[str] = tuple(TITLES),
    *,
    groups: Sequence[object] | None = None,
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
        groups: As of `measure`.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        By name: the difference, and Student's interval of it from the resamples' standard error.
    """
    y, columns = _checked(labels, first, second)
    resampling = Resampling(y, groups, resamples=resamples, seed=seed)
    known = [statistics(threshold) for threshold in thresholds]
    before, after = _drawn(
        resampling, [(Ranked(y, s), [k[name] for name in names]) for s, k in zip(columns, known, strict=True)]
    )
    values = [_values(threshold) for threshold in thresholds]
    out = {}
    for name, was, became in zip(names, before, after, strict=True):
        difference = values[1][name](y, columns[1]) - values[0][name](y, columns[0])
        out[name] = intervals.difference(difference, became - was, _images(name, resampling, y))
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

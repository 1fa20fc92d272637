"""Metrics of a binary score, each with a 95 % interval by a bootstrap within the classes.

Labels are 1 for generated and 0 for real; a higher score means generated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Metric", "auroc", "average_precision", "balanced_accuracy", "bootstrap", "summary", "tpr_at_fpr"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """A value in [0, 1] and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class _Resamples:
    """Scores of both classes as counts on their common sorted axis: one row a resample.

    With counts, every metric is a few cumulative sums over (resamples, distinct scores), without a Python loop.
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike) -> None:
        y, s = np.asarray(labels).astype(bool), np.asarray(scores, np.float64)
        if y.shape != s.shape or y.ndim != 1:
            raise ValueError(f"labels and scores must be of one length, not {y.shape} and {s.shape}")
        if not np.isfinite(s).all():
            raise ValueError("scores must be finite")
        if y.all() or not y.any():
            raise ValueError("both classes are needed")
        self.values, index = np.unique(s, return_inverse=True)
        bins = len(self.values)
        self.positive = np.bincount(index[y], minlength=bins)[None].astype(np.float64)
        self.negative = np.bincount(index[~y], minlength=bins)[None].astype(np.float64)

    def draw(self, count: int, seed: int) -> _Resamples:
        rng = np.random.default_rng(seed)
        out = object.__new__(_Resamples)
        out.values = self.values
        out.positive = self._multinomial(self.positive[0], count, rng)
        out.negative = self._multinomial(self.negative[0], count, rng)
        return out

    @staticmethod
    def _multinomial(counts: Floats, count: int, rng: np.random.Generator) -> Floats:
        total = counts.sum()
        return rng.multinomial(int(total), counts / total, size=count).astype(np.float64)


Statistic = Callable[[_Resamples], Floats]


def _auroc(r: _Resamples) -> Floats:
    below = r.negative.cumsum(1) - r.negative
    wins = (r.positive * (below + 0.5 * r.negative)).sum(1)
    return np.asarray(wins / (r.positive.sum(1) * r.negative.sum(1)), np.float64)


def _average_precision(r: _Resamples) -> Floats:
    hits = r.positive[:, ::-1].cumsum(1)
    alarms = r.negative[:, ::-1].cumsum(1)
    flagged = hits + alarms
    precision = np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
    return np.asarray((precision * r.positive[:, ::-1]).sum(1) / r.positive.sum(1), np.float64)


def _tpr_at_fpr(limit: float) -> Statistic:
    def statistic(r: _Resamples) -> Floats:
        hits = r.positive[:, ::-1].cumsum(1) / r.positive.sum(1, keepdims=True)
        alarms = r.negative[:, ::-1].cumsum(1) / r.negative.sum(1, keepdims=True)
        return np.asarray(np.where(alarms <= limit, hits, 0.0).max(1), np.float64)

    return statistic


def _balanced_accuracy(threshold: float) -> Statistic:
    def statistic(r: _Resamples) -> Floats:
        above = r.values > threshold
        sensitivity = r.positive[:, above].sum(1) / r.positive.sum(1)
        specificity = r.negative[:, ~above].sum(1) / r.negative.sum(1)
        return np.asarray((sensitivity + specificity) / 2, np.float64)

    return statistic


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a generated image outscores a real one; ties count a half.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    return float(_auroc(_Resamples(labels, scores))[0])


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean precision over the generated images, without interpolation, as in scikit-learn."""
    return float(_average_precision(_Resamples(labels, scores))[0])


def tpr_at_fpr(labels: ArrayLike, scores: ArrayLike, fpr: float) -> float:
    """Largest share of generated images found by a threshold that flags at most ``fpr`` of the real ones."""
    return float(_tpr_at_fpr(fpr)(_Resamples(labels, scores))[0])


def balanced_accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.0) -> float:
    """Mean of the two classes' accuracies; a score above ``threshold`` is called generated."""
    return float(_balanced_accuracy(threshold)(_Resamples(labels, scores))[0])


def bootstrap(
    labels: ArrayLike, scores: ArrayLike, statistic: Statistic = _auroc, resamples: int = 2000, seed: int = 0
) -> Metric:
    """A statistic and its 95 % percentile interval, resampling images with replacement within each class."""
    observed = _Resamples(labels, scores)
    low, high = np.quantile(statistic(observed.draw(resamples, seed)), (0.025, 0.975))
    return Metric(float(statistic(observed)[0]), float(low), float(high))


def summary(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.0, **options: Any) -> dict[str, Metric]:
    """AUROC, AP, TPR at 1 % and 5 % FPR and balanced accuracy, by name; ``options`` go to `bootstrap`."""
    statistics: dict[str, Statistic] = {
        "AUROC": _auroc,
        "AP": _average_precision,
        "TPR@1%FPR": _tpr_at_fpr(0.01),
        "TPR@5%FPR": _tpr_at_fpr(0.05),
        "balanced accuracy": _balanced_accuracy(threshold),
    }
    return {name: bootstrap(labels, scores, statistic, **options) for name, statistic in statistics.items()}

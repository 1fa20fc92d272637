"""Arms of an experiment compared on the same images: figures, differences, verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detector_zoo.evaluation.bootstrap import Figure, auroc_of, mean_of
from detector_zoo.evaluation.intervals import Metric, share

__all__ = [
    "HOLDS",
    "NOT_SHOWN",
    "REVERSED",
    "accuracy",
    "averaged",
    "best_threshold",
    "judged",
    "numbers",
    "over",
    "verdict",
]

HOLDS, REVERSED, NOT_SHOWN = "holds", "reversed", "not shown"


def verdict(metric: Metric) -> str:
    """By the interval of a difference that a claim says is above 0."""
    if metric.low > 0:
        return HOLDS
    return REVERSED if metric.high < 0 else NOT_SHOWN


def numbers(metric: Metric) -> list[float | None]:
    """Value and interval, four digits; None where not defined."""
    return [round(float(x), 4) if math.isfinite(x) else None for x in (metric.value, metric.low, metric.high)]


def judged(what: str, metric: Metric) -> dict[str, Any]:
    """One line of a claim's verdicts: ``what`` was compared, the ``difference`` with its interval, ``verdict``."""
    return {"what": what, "difference": numbers(metric), "verdict": verdict(metric)}


def averaged(parts: Sequence[Figure]) -> Figure:
    """Mean of figures (of seeds, of directions) over the same images, resample by resample."""
    return replace(
        parts[0],
        of=lambda weights: np.mean([part.of(weights) for part in parts], axis=0),
        rests_on=tuple(chosen for part in parts for chosen in part.rests_on),
        there=np.logical_or.reduce([part.there for part in parts]),
    )


def over(labels: ArrayLike, scores: Sequence[ArrayLike], chosen: ArrayLike | None = None) -> Figure:
    """AUROC among the chosen images, averaged over several score vectors (N,) (seeds, directions); NaN is left out."""
    use = np.ones(len(np.asarray(labels)), bool) if chosen is None else np.asarray(chosen, bool)
    return averaged([auroc_of(labels, np.where(use, np.asarray(s, np.float64), np.nan)) for s in scores])


def accuracy(labels: NDArray[np.bool_], scores: ArrayLike, threshold: float, chosen: ArrayLike) -> Figure:
    """Mean of the two classes' accuracies at a threshold, among the chosen images."""
    use = np.asarray(chosen, bool)
    right = (np.asarray(scores) > threshold) == labels
    classes = use & ~labels, use & labels

    def of(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        rates = [(weights @ (right & c)) / np.maximum(weights @ c.astype(np.float64), 1e-12) for c in classes]
        return np.asarray(np.mean(rates, axis=0), np.float64)

    return replace(mean_of(right, use, rule=share), of=of, rests_on=classes)


def best_threshold(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Where the mean of the two classes' accuracies is largest on a slice: mid-gap, and the lowest of equals."""
    values = np.unique(scores)
    cuts = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2])
    called = scores[None] > cuts[:, None]
    rates = (called[:, labels].mean(1) + (~called[:, ~labels]).mean(1)) / 2
    return float(cuts[int(rates.argmax())])

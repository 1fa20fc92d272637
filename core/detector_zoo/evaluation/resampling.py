"""Bootstrap intervals of anything that depends on a set of images, paired: one set of resamples for every figure.

`detector_zoo.evaluation.metrics` resamples scores; an audit compares scores of the same pictures under several
conditions, or scores that come in pairs (a photograph and its edit). So here pictures are resampled, whole groups
of them where they belong together, and a figure is a function of how often each was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detector_zoo.evaluation.metrics import Metric

__all__ = ["Resampling", "Statistic", "auroc", "mean"]

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""How often each image was drawn, (R, N), to a figure a resample, (R,); NaN where it is not defined."""

_CELLS = 4_000_000
"""Weights held at a time."""


class Resampling:
    """Draws of groups with replacement, stratified: real only, generated only, both.

    Args:
        generated: (N,), the images' classes.
        groups: (N,), equal for images that are drawn together; None draws each for itself.
        resamples: How many draws.
        seed: The same draws for the same seed and groups.
    """

    def __init__(
        self, generated: ArrayLike, groups: Sequence[str] | None = None, *, resamples: int = 2000, seed: int = 0
    ) -> None:
        labels = np.asarray(generated, bool)
        names = np.arange(len(labels)).astype(str) if groups is None else np.asarray(groups, str)
        if labels.shape != names.shape:
            raise ValueError(f"{len(labels)} labels and {len(names)} groups")
        _, self._group = np.unique(names, return_inverse=True)
        kinds = np.bincount(self._group, labels) > 0, np.bincount(self._group, ~labels) > 0
        stratum = kinds[0] + 2 * kinds[1].astype(int)
        self._strata = [np.flatnonzero(stratum == kind) for kind in np.unique(stratum)]
        self.resamples, self.seed, self.count = resamples, seed, len(labels)

    def weights(self) -> Iterator[Floats]:
        """How often each image was drawn, (some rows, N) at a time, `resamples` rows in all."""
        rng = np.random.default_rng(self.seed)
        step = max(1, _CELLS // max(1, self.count))
        for start in range(0, self.resamples, step):
            rows = min(step, self.resamples - start)
            drawn = np.empty((rows, sum(map(len, self._strata))))
            for members in self._strata:
                size = len(members)
                drawn[:, members] = rng.multinomial(size, np.full(size, 1 / size), rows)
            yield drawn[:, self._group]

    def intervals(self, *statistics: Statistic) -> list[Metric]:
        """Each figure with its 95 % percentile interval, over the resamples in which it is defined."""
        once = np.ones((1, self.count))
        values = [float(statistic(once)[0]) for statistic in statistics]
        drawn = np.concatenate([np.stack([s(w) for s in statistics]) for w in self.weights()], axis=1)
        return [_metric(value, row) for value, row in zip(values, drawn, strict=True)]


def _metric(value: float, drawn: Floats) -> Metric:
    defined = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(defined):
        return Metric(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(defined, (0.025, 0.975))
    return Metric(value, float(low), float(high))


def auroc(generated: ArrayLike, scores: ArrayLike, within: ArrayLike | None = None) -> Statistic:
    """Probability that a generated image outscores a real one; ties count a half.

    Args:
        generated: (N,).
        scores: (N,); NaN leaves an image out.
        within: (N,) labels; only images of equal ones are compared (folds, contents). None compares all.
    """
    labels, values = np.asarray(generated, bool), np.asarray(scores, np.float64)
    strata = np.zeros(len(values), int) if within is None else np.unique(np.asarray(within), return_inverse=True)[1]
    parts = []
    for stratum in range(strata.max(initial=0) + 1):
        members = np.flatnonzero((strata == stratum) & np.isfinite(values))
        order = members[np.argsort(values[members], kind="stable")]
        if len(order):
            starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
            parts.append((order, starts, labels[order]))

    def statistic(weights: Floats) -> Floats:
        wins, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for order, starts, positive in parts:
            drawn = weights[:, order]
            hits = np.add.reduceat(drawn * positive, starts, axis=1)
            misses = np.add.reduceat(drawn * ~positive, starts, axis=1)
            wins += (hits * (misses.cumsum(1) - 0.5 * misses)).sum(1)
            pairs += hits.sum(1) * misses.sum(1)
        return _ratio(wins, pairs)

    return statistic


def mean(values: ArrayLike, chosen: ArrayLike | None = None) -> Statistic:
    """Mean of (N,) values over the chosen images; NaN leaves an image out."""
    numbers = np.asarray(values, np.float64)
    use = np.isfinite(numbers) if chosen is None else np.isfinite(numbers) & np.asarray(chosen, bool)
    filled = np.where(use, numbers, 0.0)

    def statistic(weights: Floats) -> Floats:
        total = weights @ use.astype(np.float64)
        return _ratio(weights @ filled, total)

    return statistic


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0), np.float64)

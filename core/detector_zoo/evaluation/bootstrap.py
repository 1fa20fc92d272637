"""Bootstrap resamples: how often each image is drawn, the real and the generated ones apart, whole groups together.

Resamples are made in chunks of `CHUNK` numbers, so that memory does not grow with their number, and in threads; every
chunk has a random stream of its own, so that the threads do not change the result. Images without groups are drawn
alike whether or not each is named as a group of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detector_zoo.evaluation.counts import Counts, Ranked
from detector_zoo.evaluation.intervals import Metric, Rule, difference, mean, share

__all__ = ["Figure", "Resampling", "auroc_of", "drop_of", "mean_of", "numbered"]

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]
Statistic = Callable[[Floats], Floats]
"""How often each image was drawn, (R, N), to a figure a resample, (R,); NaN where it is not defined."""
T = TypeVar("T")

CHUNK = 1 << 18
"""Numbers (resamples times images) that one thread has in flight."""

MANY_ROWS = 16
"""Resamples in a chunk above which they are counted together, below which one by one."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a set of images.

    Attributes:
        of: As `Statistic` says.
        rule: How its resamples become an interval.
        rests_on: Classes of images, (N,) each: the smallest, counted in groups, has the degrees of freedom.
        there: (N,), images that have what the figure is made of; only they are drawn for it, so that its interval
            does not depend on images that it leaves out.
    """

    of: Statistic
    rule: Rule
    rests_on: tuple[Labels, ...]
    there: Labels

    def __sub__(self, other: Figure) -> Figure:
        """The paired difference."""
        rule = mean if mean in (self.rule, other.rule) else difference
        return Figure(
            lambda weights: self.of(weights) - other.of(weights),
            rule,
            self.rests_on + other.rests_on,
            self.there | other.there,
        )


class Resampling:
    """Draws of images with replacement, stratified: generated only, real only, groups of both.

    Args:
        generated: (N,), the images' classes.
        groups: (N,), equal for images that are drawn together; None draws each for itself.
        resamples: How many draws.
        seed: The same draws for the same seed, classes and groups.
    """

    def __init__(
        self, generated: ArrayLike, groups: Sequence[object] | None = None, *, resamples: int = 2000, seed: int = 0
    ) -> None:
        labels = self._labels = np.asarray(generated, bool)
        self.resamples, self.seed, self.count = resamples, seed, len(labels)
        self._group = np.arange(self.count) if groups is None else numbered(groups)
        if len(self._group) != self.count:
            raise ValueError(f"{self.count} labels and {len(self._group)} groups")
        real, fake = (np.bincount(self._group, part) > 0 for part in (~labels, labels))
        strata = [np.flatnonzero(kind) for kind in (~real, ~fake, real & fake)]
        self._sizes = [len(members) for members in strata if len(members)]
        # Where the draws of an image's group stand, stratum by stratum.
        self._place = np.argsort(np.concatenate(strata), kind="stable")[self._group]

    def images(self, *classes: Labels) -> int:
        """How many images, groups of them counted once, the smallest of the classes has."""
        return min(len(np.unique(self._group[chosen])) for chosen in classes)

    def map(self, work: Callable[[Floats], T]) -> list[T]:
        """Hand each chunk of draws, how often each image came (some rows, N), to ``work``, in threads."""
        rows = max(1, min(self.resamples, CHUNK // max(1, self.count)))
        sizes = [min(rows, self.resamples - start) for start in range(0, self.resamples, rows)]
        streams = np.random.SeedSequence(self.seed).spawn(len(sizes))

        def one(job: tuple[int, np.random.SeedSequence]) -> T:
            return work(self._draw(job[0], np.random.default_rng(job[1])))

        jobs = list(zip(sizes, streams, strict=True))
        if len(jobs) == 1:
            return [one(jobs[0])]
        with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
            return list(pool.map(one, jobs))

    def _draw(self, rows: int, rng: np.random.Generator) -> Floats:
        drawn, start = np.empty((rows, sum(self._sizes))), 0
        for size in self._sizes:
            _tally(rng.integers(size, size=(rows, size)), drawn[:, start : start + size])
            start += size
        return drawn.take(self._place, axis=1)

    def intervals(self, *figures: Figure) -> list[Metric]:
        """Each figure with its 95 % interval, over the resamples in which it is defined."""
        found: dict[int, Metric] = {}
        for there in {figure.there.tobytes(): figure.there for figure in figures}.values():
            same = [index for index, figure in enumerate(figures) if np.array_equal(figure.there, there)]
            drawn = self._of(there, [figures[index].of for index in same])
            found |= {index: self._interval(figures[index], row) for index, row in zip(same, drawn, strict=True)}
        return [found[index] for index in range(len(figures))]

    def _of(self, there: Labels, statistics: Sequence[Statistic]) -> Floats:
        """Statistics over resamples of some of the images, (statistics, R)."""
        if not there.any():
            return np.full((len(statistics), self.resamples), np.nan)
        part = Resampling(self._labels[there], self._group[there].tolist(), resamples=self.resamples, seed=self.seed)

        def work(weights: Floats) -> Floats:
            whole = np.zeros((len(weights), self.count))
            whole[:, there] = weights
            return np.stack([statistic(whole) for statistic in statistics])

        return np.concatenate(part.map(work), axis=1)

    def _interval(self, figure: Figure, drawn: Floats) -> Metric:
        value = float(figure.of(np.ones((1, self.count)))[0])
        defined = drawn[np.isfinite(drawn)]
        if not np.isfinite(value) or not len(defined):
            return Metric(float("nan"), float("nan"), float("nan"))
        return figure.rule(value, defined, self.images(*figure.rests_on))


def numbered(groups: Sequence[object]) -> NDArray[np.int64]:
    """Groups as numbers, in the order in which they first come."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)


def _tally(chosen: NDArray[np.int64], out: Floats) -> None:
    """Count how often each of n comes in a row of n; both are (rows, n)."""
    rows, bins = chosen.shape
    if rows > MANY_ROWS:
        cells = chosen + bins * np.arange(rows)[:, None]
        out[:] = np.bincount(cells.ravel(), minlength=rows * bins).reshape(rows, bins)
        return
    for row, indices in enumerate(chosen):  # long rows: one at a time stays in the processor's cache
        out[row] = np.bincount(indices, minlength=bins)


def auroc_of(generated: ArrayLike, scores: ArrayLike, within: ArrayLike | None = None) -> Figure:
    """Probability that a generated image outscores a real one; ties count a half.

    Args:
        generated: (N,).
        scores: (N,); NaN leaves an image out.
        within: (N,) labels; only images of equal ones are compared (folds, contents). None compares all.
    """
    labels, values = np.asarray(generated, bool), np.asarray(scores, np.float64)
    there = np.isfinite(values)
    strata = np.zeros(len(values), int) if within is None else np.unique(np.asarray(within), return_inverse=True)[1]
    parts = []
    for stratum in range(strata.max(initial=0) + 1):
        members = np.flatnonzero((strata == stratum) & there)
        if labels[members].any() and not labels[members].all():
            parts.append((members, Ranked(labels[members], values[members])))

    def statistic(weights: Floats) -> Floats:
        wins, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for members, ranked in parts:
            counts = Counts(ranked, weights[:, members])
            wins += counts.wins
            pairs += counts.positives * counts.negatives
        return _ratio(wins, pairs)

    return Figure(statistic, share, (labels & there, ~labels & there), there)


def drop_of(generated: ArrayLike, before: ArrayLike, after: ArrayLike) -> Figure:
    """AUROC before minus after, of the images that have a score both times; NaN leaves an image out."""
    both = np.isfinite(np.asarray(before, np.float64)) & np.isfinite(np.asarray(after, np.float64))
    first, second = (auroc_of(generated, np.where(both, scores, np.nan)) for scores in (before, after))
    return first - second


def mean_of(values: ArrayLike, chosen: ArrayLike | None = None, *, rule: Rule = mean) -> Figure:
    """Mean of (N,) values over the chosen images; NaN leaves an image out. ``rule`` is `share` for those in [0, 1]."""
    numbers = np.asarray(values, np.float64)
    there = np.isfinite(numbers)
    use = there if chosen is None else there & np.asarray(chosen, bool)
    filled = np.where(use, numbers, 0.0)

    def statistic(weights: Floats) -> Floats:
        return _ratio(weights @ filled, weights @ use.astype(np.float64))

    return Figure(statistic, rule, (use,), there)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0), np.float64)

"""Bootstrap resamples of scores, within the classes, as counts on the sorted axis of the distinct scores.

With counts, every metric is a few cumulative sums over an array (resamples, distinct scores), without a loop over
images. Resamples are made in chunks of `CHUNK` numbers, so that memory does not grow with their number, and in
threads; every chunk has a random stream of its own, so that the threads do not change the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["ECE_BINS", "Axis", "Counts", "Floats", "Statistic", "calibration_noise", "resample", "statistics"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ECE_BINS = 15
"""Bins of equal width over [0, 1] that the calibration error is summed over."""

CHUNK = 1 << 18
"""Numbers (resamples times images) that one thread has in flight."""

MANY_ROWS = 16
"""Resamples in a chunk above which they are counted together, below which one by one."""


@dataclass(eq=False)
class Axis:
    """One detector's distinct scores, and where each image's score is among them.

    Attributes:
        values: (D,), ascending.
        positive: Indices of the generated images' scores.
        negative: Indices of the real images' scores.
    """

    values: Floats
    positive: Integers
    negative: Integers

    @cached_property
    def probabilities(self) -> Floats:
        """(D,), the logistic function of the values."""
        return np.exp(-np.logaddexp(0.0, -self.values))


@dataclass(eq=False)
class Counts:
    """How often each distinct score comes in each resample, by class.

    Attributes:
        axis: The distinct scores.
        positive: (R, D), generated images.
        negative: (R, D), real images.
    """

    axis: Axis
    positive: Floats
    negative: Floats

    @cached_property
    def positives(self) -> float:
        """Generated images in a resample."""
        return float(self.positive[0].sum())

    @cached_property
    def negatives(self) -> float:
        """Real images in a resample."""
        return float(self.negative[0].sum())

    @cached_property
    def hits(self) -> Floats:
        """(R, D): generated images at or above the largest score, the second largest, and so on."""
        return np.cumsum(self.positive[:, ::-1], axis=1)

    @cached_property
    def alarms(self) -> Floats:
        """(R, D): real images likewise."""
        return np.cumsum(self.negative[:, ::-1], axis=1)


Statistic = Callable[[Counts], Floats]
"""Counts of R resamples to R values."""


def _auroc(r: Counts) -> Floats:
    # hits - positive / 2 generated images beat the real ones at a score; ties count a half.
    beaten = r.hits - 0.5 * r.positive[:, ::-1]
    wins = np.einsum("rd,rd->r", beaten, r.negative[:, ::-1])
    return np.asarray(wins / (r.positives * r.negatives), np.float64)


def _average_precision(r: Counts) -> Floats:
    flagged = r.hits + r.alarms
    # Scores above all that a resample holds flag nothing, and have no weight either.
    precision = r.hits / np.maximum(flagged, 1.0)
    return np.asarray(np.einsum("rd,rd->r", precision, r.positive[:, ::-1]) / r.positives, np.float64)


def _tpr_at_fpr(limit: float) -> Statistic:
    def statistic(r: Counts) -> Floats:
        allowed = int(limit * r.negatives) + 1
        while allowed / r.negatives > limit:  # by division, as the rate itself is compared
            allowed -= 1
        found = np.array([np.searchsorted(row, allowed, "right") for row in r.alarms])
        hits = np.take_along_axis(r.hits, np.maximum(found - 1, 0)[:, None], axis=1)[:, 0]
        return np.where(found > 0, hits, 0.0) / r.positives

    return statistic


def _eer(r: Counts) -> Floats:
    # Misses fall and alarms rise along the axis: bisect for the first index at which the alarms have caught up.
    rows = np.arange(len(r.hits))
    low, high = np.zeros(len(rows), np.int64), np.full(len(rows), r.hits.shape[1] - 1)
    while (low < high).any():
        middle = (low + high) // 2
        caught_up = r.alarms[rows, middle] / r.negatives + r.hits[rows, middle] / r.positives >= 1
        low, high = np.where(caught_up, low, middle + 1), np.where(caught_up, middle, high)
    at = low[:, None]

    def rates(index: Integers) -> tuple[Floats, Floats]:
        alarms, hits = (np.take_along_axis(counts, np.maximum(index, 0), axis=1)[:, 0] for counts in (r.alarms, r.hits))
        before = index[:, 0] < 0
        return np.where(before, 0.0, alarms / r.negatives), np.where(before, 1.0, 1 - hits / r.positives)

    (fpr0, fnr0), (fpr, fnr) = rates(at - 1), rates(at)
    return fpr0 + (fpr - fpr0) * (fnr0 - fpr0) / ((fnr0 - fpr0) - (fnr - fpr))


def _accuracy(threshold: float, *, real: bool, generated: bool) -> Statistic:
    def statistic(r: Counts) -> Floats:
        cut = int(np.searchsorted(r.axis.values, threshold, "right"))
        rates = []
        if generated:
            rates.append(r.positive[:, cut:].sum(1) / r.positives)
        if real:
            rates.append(r.negative[:, :cut].sum(1) / r.negatives)
        return np.asarray(np.mean(rates, axis=0), np.float64)

    return statistic


def _brier(r: Counts) -> Floats:
    p = r.axis.probabilities
    # einsum, not @: a threaded BLAS would fight with the threads here.
    loss = np.einsum("rd,d->r", r.positive, (1 - p) ** 2) + np.einsum("rd,d->r", r.negative, p**2)
    return np.asarray(loss / (r.positives + r.negatives), np.float64)


def _gaps(r: Counts) -> Floats:
    """(R, bins): in each bin, what was said minus what was found, summed over its images, by all images."""
    p = r.axis.probabilities
    # The probability rises with the score, so that a bin is a run of the axis.
    cuts = [0, *np.searchsorted(p, np.linspace(0, 1, ECE_BINS + 1)[1:-1], "left").tolist(), len(p)]
    out = np.zeros((len(r.positive), ECE_BINS))
    for bin_, (start, stop) in enumerate(pairwise(cuts)):
        inside = slice(start, stop)
        out[:, bin_] = np.einsum("rd,d->r", r.negative[:, inside], p[inside])
        out[:, bin_] -= np.einsum("rd,d->r", r.positive[:, inside], 1 - p[inside])
    return out / (r.positives + r.negatives)


def _ece(r: Counts) -> Floats:
    return np.asarray(np.abs(_gaps(r)).sum(1), np.float64)


def calibration_noise(labels: NDArray[np.bool_], scores: Floats) -> Statistic:
    """What the bins' gaps of a resample differ by from those of the images themselves, summed as the ECE sums them."""
    values, index = np.unique(scores, return_inverse=True)
    axis = Axis(values, index[labels], index[~labels])
    bins = len(values)
    positive, negative = (
        np.bincount(part, minlength=bins)[None].astype(float) for part in (axis.positive, axis.negative)
    )
    observed = _gaps(Counts(axis, positive, negative))

    def statistic(r: Counts) -> Floats:
        return np.asarray(np.abs(_gaps(r) - observed).sum(1), np.float64)

    return statistic


def statistics(threshold: float = 0.0) -> dict[str, Statistic]:
    """Every metric's vectorised form, by its name in `metrics.TITLES`.

    Args:
        threshold: In log-odds; a score above it is called generated.
    """
    return {
        "auroc": _auroc,
        "average_precision": _average_precision,
        "tpr_at_fpr_1": _tpr_at_fpr(0.01),
        "tpr_at_fpr_5": _tpr_at_fpr(0.05),
        "balanced_accuracy": _accuracy(threshold, real=True, generated=True),
        "real_accuracy": _accuracy(threshold, real=True, generated=False),
        "generated_accuracy": _accuracy(threshold, real=False, generated=True),
        "eer": _eer,
        "brier": _brier,
        "ece": _ece,
    }


def resample(
    labels: NDArray[np.bool_],
    columns: Sequence[Floats],
    wanted: Mapping[str, Statistic],
    resamples: int,
    seed: int,
) -> dict[str, Floats]:
    """Values of statistics over resamples that draw images with replacement within each class.

    Args:
        labels: (N,), true for generated; both classes are there.
        columns: Scores, (N,) each, of one detector or several: a resample draws the same images for all.
        wanted: Statistics by name.
        resamples: R.
        seed: Of the draws.

    Returns:
        By name, (len(columns), R).
    """
    axes = []
    for scores in columns:
        values, index = np.unique(scores, return_inverse=True)
        axes.append(Axis(values, index[labels], index[~labels]))
    rows = max(1, min(resamples, CHUNK // max(1, len(labels))))
    counts = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    seeds = np.random.SeedSequence(seed).spawn(len(counts))

    def work(job: tuple[int, np.random.SeedSequence]) -> list[list[Floats]]:
        count, stream = job
        drawn = _draw(axes, count, np.random.default_rng(stream))
        return [[statistic(one) for statistic in wanted.values()] for one in drawn]

    jobs = list(zip(counts, seeds, strict=True))
    if len(jobs) == 1:
        done = [work(jobs[0])]
    else:
        with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
            done = list(pool.map(work, jobs))
    return {
        name: np.stack([np.concatenate([part[c][s] for part in done]) for c in range(len(axes))])
        for s, name in enumerate(wanted)
    }


def _draw(axes: Sequence[Axis], count: int, rng: np.random.Generator) -> Iterator[Counts]:
    positives, negatives = len(axes[0].positive), len(axes[0].negative)
    hit = rng.integers(positives, size=(count, positives), dtype=np.uint32)
    miss = rng.integers(negatives, size=(count, negatives), dtype=np.uint32)
    for axis in axes:
        bins = len(axis.values)
        yield Counts(axis, _tally(axis.positive, hit, bins), _tally(axis.negative, miss, bins))


def _tally(where: Integers, drawn: NDArray[np.uint32], bins: int) -> Floats:
    rows = len(drawn)
    if rows > MANY_ROWS:
        cells = where.take(drawn) + bins * np.arange(rows)[:, None]
        return np.bincount(cells.ravel(), minlength=rows * bins).reshape(rows, bins).astype(np.float64)
    out = np.empty((rows, bins))
    for row, indices in enumerate(drawn):  # long rows: one at a time stays in the processor's cache
        out[row] = np.bincount(where.take(indices), minlength=bins)
    return out

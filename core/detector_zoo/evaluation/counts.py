"""Metrics of many resamples at once, from how often each distinct score of each class was drawn.

Scores are ranked once. Then a resample is two rows of counts, of the generated and of the real images' distinct
scores, highest first, and every metric is a few cumulative sums and look-ups in them, without a loop over images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["ECE_BINS", "Counts", "Ranked", "Statistic", "statistics"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ECE_BINS = 15
"""Bins of equal width over [0, 1] that the calibration error is summed over."""


class Side:
    """One class's distinct scores, highest first.

    Args:
        images: Indices of the class.
        scores: (N,), of all images.
    """

    def __init__(self, images: Integers, scores: Floats) -> None:
        order = np.argsort(-scores[images], kind="stable")
        ordered = scores[images][order]
        starts = np.flatnonzero(np.diff(ordered, prepend=np.inf))
        self.images = images[order]
        self.starts = None if len(starts) == len(ordered) else starts
        self.values = ordered[starts]

    def tally(self, weights: Floats) -> Floats:
        """Draws of each distinct score, (R, D), from those of each image, (R, N)."""
        each = weights.take(self.images, axis=1)
        return each if self.starts is None else np.add.reduceat(each, self.starts, axis=1)

    def above(self, values: Floats) -> Integers:
        """How many of the distinct scores lie above each value."""
        return np.asarray(np.searchsorted(-self.values, -values, "left"), np.int64)

    def from_(self, values: Floats) -> Integers:
        """How many lie at or above it."""
        return np.asarray(np.searchsorted(-self.values, -values, "right"), np.int64)

    @cached_property
    def probabilities(self) -> Floats:
        """(D,), the logistic function of the scores."""
        return np.exp(-np.logaddexp(0.0, -self.values))

    @cached_property
    def bins(self) -> list[tuple[int, slice]]:
        """Bins of the calibration error that have scores, and where these lie."""
        # The probability rises with the score, so that a bin is a run of them.
        p = self.probabilities[::-1]
        inner = np.searchsorted(p, np.linspace(0, 1, ECE_BINS + 1)[1:-1], "left")
        cuts = [0, *inner.tolist(), len(p)]
        runs = [slice(len(p) - stop, len(p) - start) for start, stop in pairwise(cuts)]
        return [(number, run) for number, run in enumerate(runs) if run.start < run.stop]


class Ranked:
    """One detector's scores in order.

    Args:
        labels: (N,), true for generated; both classes are there.
        scores: (N,), finite.
    """

    def __init__(self, labels: NDArray[np.bool_], scores: Floats) -> None:
        self.positive = Side(np.flatnonzero(labels), scores)
        self.negative = Side(np.flatnonzero(~labels), scores)

    @cached_property
    def found_above(self) -> Integers:
        """For each of the real images' scores, the generated images' scores above it."""
        return self.positive.above(self.negative.values)

    @cached_property
    def found_from(self) -> Integers:
        """Likewise, at or above it."""
        return self.positive.from_(self.negative.values)

    @cached_property
    def alarms_from(self) -> Integers:
        """For each of the generated images' scores, the real images' scores at or above it."""
        return self.negative.from_(self.positive.values)

    @cached_property
    def joint(self) -> tuple[Integers, Integers]:
        """For each distinct score of either class, highest first: the scores of each class from it on."""
        values = np.unique(np.concatenate([self.positive.values, self.negative.values]))[::-1]
        return self.positive.from_(values), self.negative.from_(values)


class Counts:
    """How often each distinct score comes in each resample, by class.

    Args:
        ranked: The scores.
        weights: (R, N), how often each image was drawn; every row has images of both classes.
    """

    def __init__(self, ranked: Ranked, weights: Floats) -> None:
        self.ranked = ranked
        self.positive, self.negative = ranked.positive.tally(weights), ranked.negative.tally(weights)

    @cached_property
    def hits(self) -> Floats:
        """(R, D + 1): generated images among the highest 0, 1, ... of their distinct scores."""
        return _summed(self.positive)

    @cached_property
    def alarms(self) -> Floats:
        """(R, D + 1): real images likewise."""
        return _summed(self.negative)

    @property
    def positives(self) -> Floats:
        """(R,), generated images in each resample."""
        return self.hits[:, -1]

    @property
    def negatives(self) -> Floats:
        """(R,), real ones."""
        return self.alarms[:, -1]

    @cached_property
    def wins(self) -> Floats:
        """(R,), pairs in which the generated image scores higher; ties count a half."""
        above = self.hits.take(self.ranked.found_above, axis=1)
        wins = np.einsum("rd,rd->r", above, self.negative)
        if not np.array_equal(self.ranked.found_above, self.ranked.found_from):
            ties = self.hits.take(self.ranked.found_from, axis=1) - above
            wins = wins + 0.5 * np.einsum("rd,rd->r", ties, self.negative)
        return np.asarray(wins, np.float64)

    @cached_property
    def gaps(self) -> Floats:
        """(R, bins): in each bin, what was said minus what was found, summed over its images, by all images."""
        real, generated = self.ranked.negative.probabilities, self.ranked.positive.probabilities
        total = self._binned(real, generated - 1)
        return np.asarray(total / (self.positives + self.negatives)[:, None], np.float64)

    @property
    def calibrated_variance(self) -> Floats:
        """(R, bins): the variance that the gaps would have if the probabilities were true."""
        real, generated = (side.probabilities for side in (self.ranked.negative, self.ranked.positive))
        total = self._binned(real * (1 - real), generated * (1 - generated))
        return total / ((self.positives + self.negatives) ** 2)[:, None]

    def _binned(self, real: Floats, generated: Floats) -> Floats:
        """Sums over the images of each bin, (R, bins), of what each distinct score counts."""
        out = np.zeros((len(self.positive), ECE_BINS))
        for side, drawn, values in (
            (self.ranked.negative, self.negative, real),
            (self.ranked.positive, self.positive, generated),
        ):
            for number, run in side.bins:
                # einsum, not @: a threaded BLAS would fight with the threads of the bootstrap.
                out[:, number] += np.einsum("rd,d->r", drawn[:, run], values[run])
        return out


def _summed(counts: Floats) -> Floats:
    out = np.empty((len(counts), counts.shape[1] + 1))
    out[:, 0] = 0
    np.cumsum(counts, axis=1, out=out[:, 1:])
    return out


Statistic = Callable[[Counts], Floats]
"""Counts of R resamples to R values."""


def _auroc(r: Counts) -> Floats:
    return r.wins / (r.positives * r.negatives)


def _average_precision(r: Counts) -> Floats:
    hits = r.hits[:, 1:]
    flagged = hits + r.alarms.take(r.ranked.alarms_from, axis=1)
    # Scores above all that a resample holds flag nothing, and have no weight either.
    precision = np.divide(hits, np.maximum(flagged, 1.0, out=flagged), out=flagged)
    return np.asarray(np.einsum("rd,rd->r", precision, r.positive) / r.positives, np.float64)


def _tpr_at_fpr(limit: float) -> Statistic:
    def statistic(r: Counts) -> Floats:
        allowed = np.floor(limit * r.negatives) + 1
        while (over := allowed / r.negatives > limit).any():  # by division, as the rate itself is compared
            allowed -= over
        borne = [int(np.searchsorted(row, most, "right")) - 1 for row, most in zip(r.alarms, allowed, strict=True)]
        # Down to, but without, the first real image's score that is too much; all where there is none.
        ends = np.append(r.ranked.found_above, r.hits.shape[1] - 1)[borne]
        return np.asarray(r.hits[np.arange(len(ends)), ends] / r.positives, np.float64)

    return statistic


def _eer(r: Counts) -> Floats:
    # Misses fall and alarms rise along the scores: bisect for the first at which the alarms have caught up.
    found, flagged = r.ranked.joint
    rows = np.arange(len(r.hits))

    def rates(at: Integers) -> tuple[Floats, Floats]:
        fpr, tpr = r.alarms[rows, flagged[at]] / r.negatives, r.hits[rows, found[at]] / r.positives
        return np.where(at < 0, 0.0, fpr), np.where(at < 0, 0.0, tpr)

    low, high = np.zeros(len(rows), np.int64), np.full(len(rows), len(found) - 1)
    while (low < high).any():
        middle = (low + high) // 2
        caught_up = sum(rates(middle)) >= 1
        low, high = np.where(caught_up, low, middle + 1), np.where(caught_up, middle, high)
    (fpr0, tpr0), (fpr, tpr) = rates(low - 1), rates(low)
    fnr0, fnr = 1 - tpr0, 1 - tpr
    return fpr0 + (fpr - fpr0) * (fnr0 - fpr0) / ((fnr0 - fpr0) - (fnr - fpr))


def _accuracy(threshold: float, *, real: bool, generated: bool) -> Statistic:
    def statistic(r: Counts) -> Floats:
        cuts = (int(side.above(np.array([threshold]))[0]) for side in (r.ranked.positive, r.ranked.negative))
        found, flagged = cuts
        rates = [r.hits[:, found] / r.positives] if generated else []
        if real:
            rates.append((r.negatives - r.alarms[:, flagged]) / r.negatives)
        return np.asarray(np.mean(rates, axis=0), np.float64)

    return statistic


def _brier(r: Counts) -> Floats:
    missed, said = 1 - r.ranked.positive.probabilities, r.ranked.negative.probabilities
    loss = np.einsum("rd,d->r", r.positive, missed**2) + np.einsum("rd,d->r", r.negative, said**2)
    return np.asarray(loss / (r.positives + r.negatives), np.float64)


def _ece(r: Counts) -> Floats:
    return np.asarray(np.abs(r.gaps).sum(1), np.float64)


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

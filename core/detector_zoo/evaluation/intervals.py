"""From resamples to 95 % intervals: the rules that `zoo eval`, `zoo compare` and every audit share.

A share (of images, or of pairs of them) has its interval on the logit scale: plus and minus Student's quantile times
the resamples' standard error, with the degrees of freedom of the smaller class. In simulation it covers the truth more
often than the percentiles of the same resamples do, and it widens as a class gets small
(`pytest tests/test_metrics.py -k coverage`). A share of 0 or 1, about which resamples know nothing, has the exact
interval of a proportion of that many images. Differences and means have Student's interval as it is. A ratio has the
percentiles of its resamples: it has no scale on which it is symmetrical.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEW", "Metric", "Rule", "clopper_pearson", "difference", "mean", "ratio", "share", "sum_of_gaps"]

Floats = NDArray[np.float64]

FEW = 10
"""Images of a class below which an interval is not to be believed."""

TAILS = (0.025, 0.975)
"""Of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A value, in [0, 1] unless said otherwise, and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


Rule = Callable[[float, Floats, int], Metric]
"""Value, its resamples (R,), and the images that it rests on, to the interval."""


def share(value: float, drawn: Floats, images: int, *, counted: bool = False) -> Metric:
    """Interval of a value in [0, 1].

    Args:
        value: Of the images.
        drawn: (R,), of the resamples.
        images: That it rests on: those of its class, or of the smaller one; whole groups where these are drawn.
        counted: Whether it is a mean of verdicts, of which some resamples all agree where more images would not.
    """
    bound = _bound(images)
    if not 0 < value < 1:
        low, high = np.quantile(drawn, TAILS)
        return Metric(value, min(float(low), 1 - bound), 1.0) if value else Metric(value, 0.0, max(float(high), bound))
    error = spread(drawn, images)
    if error == 0 and counted:
        # Of one class all are right and of the other none: resamples cannot show how rare the exceptions are.
        error = bound
    logit, half = float(np.log(value / (1 - value))), error / (value * (1 - value))
    low, high = (float(np.exp(-np.logaddexp(0.0, -x))) for x in (logit - half, logit + half))
    return Metric(value, low, high)


def difference(value: float, drawn: Floats, images: int) -> Metric:
    """Interval of a difference of two shares, in [-1, 1]; arguments as of `share`.

    One that all resamples agree on, but for none at all, is as uncertain as a share of 0 or 1 of so many images.
    """
    half = spread(drawn, images)
    if half == 0 and value:
        half = _bound(images)
    return Metric(value, max(value - half, -1.0), min(value + half, 1.0))


def mean(value: float, drawn: Floats, images: int) -> Metric:
    """Interval of a mean of numbers without bounds, or of a difference of such means; arguments as of `share`."""
    half = spread(drawn, images)
    return Metric(value, value - half, value + half)


def ratio(value: float, drawn: Floats, images: int) -> Metric:
    """Percentile interval."""
    low, high = np.quantile(drawn, TAILS)
    return Metric(value, float(low), float(high))


def sum_of_gaps(value: float, found: Floats, drawn: Floats, least: Floats) -> Metric:
    """Interval of a sum of absolute gaps, in [0, 1], which noise can only raise (the calibration error).

    Resamples have the noise once more, and say nothing of how much the sum itself was raised. So a test is inverted: of
    every size that the true sum may have, with gaps in the proportions that were found, noise is added to the gaps; the
    interval holds the sizes of which the sum that was found lies between the 1.25 % and the 97 % quantile: the
    proportions being guessed too, it misses more often than that (3 to 7 % in simulation), and a true sum of 0 on one
    side alone.

    Args:
        value: The sum that was found.
        found: (B,), its gaps, with their signs.
        drawn: (R, B), those of resamples.
        least: (B,), the variance that their noise would have were all gaps 0: where the labels of a bin are alike,
            resamples show next to none.

    Returns:
        Always with the value in it, which noise may have raised beyond all sizes that fit.
    """
    noise = drawn - found
    seen = noise.std(0)
    # Not the larger of the two: that would be too much where both are right.
    error = np.where(seen**2 < least / 4, np.sqrt(least), seen)
    normal = np.random.default_rng(0).standard_normal(noise.shape)
    noise = np.where(seen > 0, noise / np.where(seen > 0, seen, 1), normal) * error
    shape = found if value else error
    shape = shape / max(float(np.abs(shape).sum()), 1e-12)

    def bisect(quantile: float) -> float:
        """The size of which the sum that was found is this quantile."""
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            sums = np.abs(middle * shape + noise).sum(1)
            low, high = (middle, high) if np.quantile(sums, quantile) < value else (low, middle)
        return low

    return Metric(value, min(bisect(0.97), value), max(bisect(0.0125), value))


def spread(drawn: Floats, images: int) -> float:
    """Half the width of an interval: the standard error, as of ``images`` - 1 degrees of freedom, times t.

    Resampling n images of a class understates the variance by (n - 1) / n.
    """
    if images < 2:
        return float("inf")
    error = float(np.std(drawn, ddof=1))
    # What rounding leaves of equal resamples is no error.
    if error < 1e-12:
        return 0.0
    from scipy.special import stdtrit  # comes with scikit-learn

    return error * float(np.sqrt(images / (images - 1)) * stdtrit(images - 1, TAILS[1]))


def clopper_pearson(hits: int, images: int, tail: float) -> tuple[float, float]:
    """Exact bounds of a proportion, each missed with a probability of at most ``tail``."""
    from scipy.special import betaincinv

    low = float(betaincinv(hits, images - hits + 1, tail)) if hits else 0.0
    return low, float(betaincinv(hits + 1, images - hits, 1 - tail)) if hits < images else 1.0


def _bound(images: int) -> float:
    """How far from 0 the share may be of which none of ``images`` was found: Clopper and Pearson's."""
    bound: float = 1 - TAILS[0] ** (1 / images)
    return bound

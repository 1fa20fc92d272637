"""Several detectors' log-odds to one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence


def mean(log_odds: Sequence[float]) -> float:
    """The arithmetic mean of the log-odds: the geometric mean of the odds."""
    return math.fsum(log_odds) / len(log_odds)


def soft_or(log_odds: Sequence[float]) -> float:
    """Log-odds that at least one detector is right to call it generated, were they independent.

    With p_i the probabilities the complement's is prod(1 - p_i) = e^-t, t = sum softplus(x_i), so the log-odds are
    log(e^t - 1), computed without leaving the log domain.
    """
    t = math.fsum(_softplus(x) for x in log_odds)
    if t > 1e-8:
        return t + math.log(-math.expm1(-t))
    # e^t - 1 = t = sum e^x_i to first order, which underflows before its logarithm does.
    top = max(log_odds)
    return top + math.log(math.fsum(math.exp(x - top) for x in log_odds))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


RULES: Mapping[str, Callable[[Sequence[float]], float]] = {"mean": mean, "soft-or": soft_or}
"""What `zoo score --fuse` takes."""

"""From raw scores to log-odds, from log-odds to a threshold that the user's own photographs vouch for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detector_zoo import convert
from detector_zoo.errors import DatasetError, WeightsError, ZooError

if TYPE_CHECKING:
    from detector_zoo.loading import LoadedDetector

__all__ = ["Fit", "Threshold", "applied", "fit", "fit_threshold", "isotonic", "needed", "platt", "read", "write"]

Floats = NDArray[np.float64]
SCHEMA_VERSION = 1
BINS = 10
INTERVAL = (0.025, 0.975)


def platt(labels: ArrayLike, raw: ArrayLike) -> tuple[float, float]:
    """Logistic regression of the label on the score, classes weighted alike.

    With Platt's targets (Advances in Large Margin Classifiers, 1999), (n + 1) / (n + 2) and 1 / (n + 2) in the place
    of 1 and 0, the slope stays finite where the classes are separable.

    Args:
        labels: 1 for generated, (N,).
        raw: Scores, (N,).

    Returns:
        Scale and offset: log-odds = scale * raw + offset.

    Raises:
        DatasetError: A class is missing.
    """
    y, s = _checked(labels, raw)
    positive, negative = int(y.sum()), int((~y).sum())
    target = np.where(y, (positive + 1) / (positive + 2), 1 / (negative + 2))
    weight = np.where(y, 0.5 / positive, 0.5 / negative)
    centre, spread = float(s.mean()), float(s.std()) or 1.0
    x = np.stack([(s - centre) / spread, np.ones_like(s)], 1)
    theta = np.zeros(2)

    def objective(at: Floats) -> float:
        z = x @ at
        return float((weight * (np.logaddexp(0, z) - target * z)).sum())

    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ theta, -500, 500)))
        gradient = x.T @ (weight * (p - target))
        hessian = (x * (weight * np.maximum(p * (1 - p), 1e-12))[:, None]).T @ x
        step = np.linalg.solve(hessian + 1e-12 * np.eye(2), gradient)
        size = 1.0
        while objective(theta - size * step) > objective(theta) and size > 1e-8:
            size /= 2
        theta = theta - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    return float(theta[0] / spread), float(theta[1] - theta[0] * centre / spread)


def isotonic(labels: ArrayLike, raw: ArrayLike) -> tuple[Floats, Floats]:
    """The best probability that never falls as the score rises (pool adjacent violators), classes weighted alike.

    Returns:
        Scores at which it changes, rising, and the probability from each one on.

    Raises:
        DatasetError: A class is missing.
    """
    y, s = _checked(labels, raw)
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    values, index = np.unique(s, return_inverse=True)
    blocks: list[list[float]] = []  # weight, weight of generated, first score
    for value, total, hits in zip(values, np.bincount(index, weight), np.bincount(index, weight * y), strict=True):
        blocks.append([total, hits, value])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][0] >= blocks[-1][1] * blocks[-2][0]:
            last = blocks.pop()
            blocks[-1][0] += last[0]
            blocks[-1][1] += last[1]
    return np.array([b[2] for b in blocks]), np.array([b[1] / b[0] for b in blocks])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A calibration and how far it may be believed.

    Attributes:
        scale: Of Platt's; below 0 where generated images of the slice score lower than real ones: such a network
            learnt nothing of use, and its scores must not be turned around to look as if it had.
        offset: Of Platt's.
        believable: Range of P in which the slice had images of both kinds to vouch for it: between the P of its
            lowest and highest score, and no nearer to 0 or 1 than 1 / (n + 2), n the images of the class at that end
            (the rule of succession).
        real: Photographs in the slice.
        generated: Generated images in the slice.
        error: Expected calibration error: mean distance of P from the share of generated images, over bins of P.
        reliability: For each of ten bins of P: its mean P, the share of generated images, its weight.
        isotonic_scores: See `isotonic`.
        isotonic_probabilities: See `isotonic`.
    """

    scale: float
    offset: float
    believable: tuple[float, float]
    real: int
    generated: int
    error: float
    reliability: tuple[tuple[float, float, float], ...]
    isotonic_scores: tuple[float, ...]
    isotonic_probabilities: tuple[float, ...]

    def sentence(self) -> str:
        """``fitted_on`` of the `Calibration` in the weights' spec."""
        low, high = self.believable
        return (
            f"{self.real} photographs and {self.generated} generated images of the training data, from photographs "
            f"that the network did not learn from, formats equalised, classes weighted alike; "
            f"P is vouched for from {low:.3f} to {high:.3f}"
        )


def fit(labels: ArrayLike, raw: ArrayLike) -> Fit:
    """Calibrate raw scores on a slice that the network did not learn from.

    Args:
        labels: 1 for generated, (N,).
        raw: (N,).

    Raises:
        DatasetError: A class is missing.
    """
    y, s = _checked(labels, raw)
    scale, offset = platt(y, s)
    p = 1 / (1 + np.exp(-np.clip(scale * s + offset, -500, 500)))
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    bins = []
    for members in (place == k for k in range(BINS)):
        if members.any():
            total = float(weight[members].sum())
            mean = float(np.average(p[members], weights=weight[members]))
            bins.append((mean, float(weight[members & y].sum()) / total, total))
    low = max(float(p.min()), 1 / (int(y.sum()) + 2))
    high = min(float(p.max()), 1 - 1 / (int((~y).sum()) + 2))
    scores, probabilities = isotonic(y, s)
    return Fit(
        scale=scale,
        offset=offset,
        believable=(min(low, 0.5), max(high, 0.5)),
        real=int((~y).sum()),
        generated=int(y.sum()),
        error=sum(w * abs(mean - share) for mean, share, w in bins),
        reliability=tuple(bins),
        isotonic_scores=tuple(scores.tolist()),
        isotonic_probabilities=tuple(probabilities.tolist()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A threshold fitted on a user's own real photographs: the content of the file that `zoo calibrate` writes.

    Attributes:
        detector: Name of detector and weights.
        weights_sha256: Of the file of weights; "" for a detector without.
        fpr: Share of real photographs that may be called generated.
        n: Photographs that it was fitted on.
        threshold: In log-odds; a score above it is called generated.
        interval: 95 % bootstrap interval of the threshold.
        fpr_interval: Where the true rate of photographs like these lies with 95 %: what n photographs can say.
        photos_sha256: Hash over the hashes of the photographs.
        core_version: Of the zoo.
        schema_version: Of the file.
    """

    detector: str
    weights_sha256: str
    fpr: float
    n: int
    threshold: float
    interval: tuple[float, float]
    fpr_interval: tuple[float, float]
    photos_sha256: str = ""
    core_version: str = ""
    schema_version: int = SCHEMA_VERSION


def needed(fpr: float) -> int:
    """Photographs that a threshold for this rate takes at least: with fewer, not even the highest score would do."""
    return math.ceil(1 / fpr - 1e-9) - 1


def fit_threshold(
    log_odds: ArrayLike,
    fpr: float,
    *,
    detector: str,
    weights_sha256: str = "",
    photos_sha256: str = "",
    core_version: str = "",
    seed: int = 0,
) -> Threshold:
    """The lowest threshold that real photographs like these exceed with a probability of at most ``fpr``.

    That is the ceil((n + 1)(1 - fpr))-th smallest of n scores: a further photograph, exchangeable with these, is
    equally likely to fall into each of the n + 1 gaps between them (split conformal prediction). The guarantee holds
    on average over such samples; ``fpr_interval`` says how far a single one can be off.

    Args:
        log_odds: Of real photographs, (n,).
        fpr: In (0, 1).
        detector: Name.
        weights_sha256: See `Threshold`.
        photos_sha256: See `Threshold`.
        core_version: See `Threshold`.
        seed: Of the bootstrap.

    Raises:
        DatasetError: There are too few photographs; the message says how many it takes.
        ValueError: The rate is not between 0 and 1.
    """
    if not 0 < fpr < 1:
        raise ValueError(f"fpr is between 0 and 1, not {fpr}")
    scores = np.sort(np.asarray(log_odds, np.float64))
    n = len(scores)
    if n < needed(fpr):
        raise DatasetError(
            f"{n} photographs cannot vouch for a false-positive rate of {fpr:g}: it takes at least {needed(fpr)}",
            hint=f"give more photographs, or --fpr {1 / (n + 1):.2g} or more" if n else "give photographs",
        )
    # The small number undoes rounding: (n + 1) * (1 - fpr) may be a whole number.
    rank = min(n, math.ceil((n + 1) * (1 - fpr) - 1e-9))
    rng = np.random.default_rng(seed)
    resampled = np.sort(scores[rng.integers(n, size=(2000, n))], axis=1)[:, rank - 1]
    low, high = np.quantile(resampled, INTERVAL)
    # The share of the population above the rank-th of n scores has a beta distribution.
    rates = np.quantile(rng.beta(n + 1 - rank, rank, 100_000), INTERVAL)
    return Threshold(
        detector=detector,
        weights_sha256=weights_sha256,
        fpr=fpr,
        n=n,
        threshold=float(scores[rank - 1]),
        interval=(float(low), float(high)),
        fpr_interval=(float(rates[0]), float(rates[1])),
        photos_sha256=photos_sha256,
        core_version=core_version,
    )


def write(threshold: Threshold, path: Path) -> None:
    """Write the file that `read` reads.

    Raises:
        WeightsError: It cannot be written.
    """
    with convert.atomic(path) as staging:
        staging.write_text(json.dumps(asdict(threshold), indent=1) + "\n", "utf-8")


def read(path: Path, *, detector: str, weights_sha256: str) -> Threshold:
    """Read a file of `zoo calibrate`, for this detector and these weights alone.

    Args:
        path: JSON.
        detector: Name of detector and weights that will score (`LoadedDetector.name`).
        weights_sha256: Of their file (`LoadedDetector.weights_sha256`).

    Raises:
        ZooError: It is no such file, or was fitted with another detector or other weights.
    """
    try:
        raw: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        if raw["schema_version"] != SCHEMA_VERSION:
            raise ZooError(f"{path}: schema_version {raw['schema_version']}, this zoo reads {SCHEMA_VERSION}")
        pairs = {key: _pair(raw[key]) for key in ("interval", "fpr_interval")}
        found = Threshold(**{**raw, **pairs})
        if not math.isfinite(float(found.threshold)):
            raise ValueError("the threshold is not a finite number")
    except OSError as error:
        raise ZooError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ZooError(
            f"{path}: not a calibration: {convert.one_line(error)}", hint="zoo calibrate makes it"
        ) from error
    if found.detector != detector:
        raise ZooError(f"{path}: was fitted for {found.detector}, not for {detector}")
    if found.weights_sha256 != weights_sha256:
        raise ZooError(
            f"{path}: was fitted with other weights of {detector} ({found.weights_sha256[:12]}, these are "
            f"{weights_sha256[:12]})",
            hint="run zoo calibrate again",
        )
    return found


def applied(path: Path, detector: LoadedDetector) -> LoadedDetector:
    """The detector with the threshold of a file of `zoo calibrate`, and no band of inconclusive scores around it.

    Raises:
        ZooError: See `read`.
    """
    found = read(path, detector=detector.name, weights_sha256=detector.weights_sha256)
    return replace(detector, threshold=found.threshold, inconclusive=0.0)


def _pair(value: Sequence[float]) -> tuple[float, float]:
    low, high = value
    return float(low), float(high)


def _checked(labels: ArrayLike, raw: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    y, s = np.asarray(labels).astype(bool), np.asarray(raw, np.float64)
    if y.all() or not y.any():
        raise DatasetError("calibration needs both classes")
    if not np.isfinite(s).all():
        raise WeightsError("a score is not a finite number")
    return y, s

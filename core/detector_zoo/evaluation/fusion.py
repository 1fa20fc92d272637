"""One score of several detectors: log-odds, weighed by a logistic regression that cannot turn a detector around.

The fused log-odds are ``offset + sum_d weight_d * log_odds_d``, weights of at least 0. A detector whose calibrated
score says nothing beyond the others gets the weight 0 and stays listed. Independent detectors would all have
the weight 1; the penalty draws towards 0, so that few images do not make one of them count for much.

`detector_zoo.fusion` has the rules that need no data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detector_zoo.detector import probability, verdict
from detector_zoo.errors import DatasetError, ZooError
from detector_zoo.rows import Prediction
from detector_zoo.sources import printable

__all__ = ["NAME", "Fusion", "fit", "read"]

Floats = NDArray[np.float64]

NAME = "fuse-fitted"
"""What rows of a fitted fusion have in the place of a detector's name."""

SCHEMA_VERSION = 1
_LIMIT = 500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """Weights of detectors, fitted by `fit`.

    Attributes:
        detectors: Names, ``method.tag``.
        weights_sha256: Of each one's weights, "" for one without.
        weights: Of each one's log-odds, at least 0.
        offset: In log-odds.
        l2: Of the penalty ``l2 / 2 * sum(weights ** 2)``.
        real: Photographs that it was fitted on.
        generated: Generated images that it was fitted on.
        fitted_on: Which images those are.
    """

    detectors: tuple[str, ...]
    weights_sha256: tuple[str, ...]
    weights: tuple[float, ...]
    offset: float
    l2: float
    real: int
    generated: int
    fitted_on: str = ""

    def __post_init__(self) -> None:
        if not len(self.detectors) == len(self.weights_sha256) == len(self.weights) > 0:
            raise ValueError("as many names, hashes and weights as there are detectors")
        if len(set(self.detectors)) < len(self.detectors):
            raise ValueError("a detector comes twice")
        if min(self.weights) < 0 or not np.isfinite([*self.weights, self.offset]).all():
            raise ValueError("weights are finite and at least 0, the offset is finite")

    def log_odds(self, scores: ArrayLike) -> Floats:
        """Fused log-odds.

        Args:
            scores: (N, D), the detectors' log-odds in the order of `detectors`. NaN where there is none: the fused
                one is NaN then too, unless that detector's weight is 0.

        Returns:
            (N,).

        Raises:
            ValueError: There is not a column a detector.
        """
        columns = np.asarray(scores, np.float64)
        if columns.ndim != 2 or columns.shape[1] != len(self.weights):
            raise ValueError(f"scores of shape {columns.shape} for {len(self.weights)} detectors")
        used = np.array(self.weights) > 0
        fused: Floats = columns[:, used] @ np.array(self.weights)[used] + self.offset
        return fused

    def rows(self, rows: Iterable[Prediction]) -> list[Prediction]:
        """A row an image, fused of those of the detectors that have a weight above 0.

        Args:
            rows: Of any number of detectors and images; images are told apart by path and hash.

        Returns:
            In the order in which the images first come; an error where a detector has no score.

        Raises:
            DatasetError: No row is of a detector that has a weight, or its rows are of other weights.
        """
        needed = [at for at, weight in enumerate(self.weights) if weight > 0]
        images: dict[tuple[str, str], dict[int, Prediction]] = {}
        hashes: dict[str, set[str]] = {}
        for row in rows:
            name = f"{row.detector}.{row.weights}" if row.weights else row.detector
            hashes.setdefault(name, set()).add(row.weights_sha256)
            found = images.setdefault((row.path, row.sha256), {})
            if name in self.detectors:
                found[self.detectors.index(name)] = row
        for at in needed:
            name, wanted = self.detectors[at], self.weights_sha256[at]
            if name not in hashes:
                raise DatasetError(f"the fusion needs scores of {name}", hint=f"score with --detector {name} too")
            if hashes[name] != {wanted}:
                other = next(iter(hashes[name] - {wanted}))
                raise DatasetError(
                    f"the fusion was fitted on scores of {name} {wanted[:12] or '(no weights)'}, these are of "
                    f"{other[:12] or '(no weights)'}"
                )
        return [self._row(found, needed) for found in images.values() if found]

    def _row(self, found: dict[int, Prediction], needed: Sequence[int]) -> Prediction:
        scores = np.full((1, len(self.detectors)), np.nan)
        for at, row in found.items():
            if row.log_odds is not None:
                scores[0, at] = row.log_odds
        missing = [self.detectors[at] for at in needed if np.isnan(scores[0, at])]
        changes: dict[str, Any]
        if missing:
            cause = next((row.error for row in found.values() if row.error), "")
            error = f"no score to fuse from {', '.join(missing)}{f': {cause}' if cause else ''}"
            blank = ("log_odds", "raw", "probability", "threshold", "calibrated")
            changes = dict.fromkeys(blank) | {"label": "", "error": error}
        else:
            fused = float(self.log_odds(scores)[0])
            changes = {
                "log_odds": fused,
                "raw": fused,
                "probability": probability(fused),
                "label": verdict(fused, 0.0, 0.0),
                "threshold": 0.0,
                "calibrated": True,
                "error": "",
            }
        return replace(
            next(iter(found.values())),
            detector=NAME,
            weights="+".join(self.detectors),
            weights_sha256=self.sha256,
            note="",
            **changes,
        )

    @property
    def sha256(self) -> str:
        """Of all that decides a fused score."""
        parts = (self.detectors, self.weights_sha256, self.weights, self.offset)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON's types only; what `read` takes."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def fit(
    labels: ArrayLike,
    scores: ArrayLike,
    detectors: Sequence[str],
    *,
    weights_sha256: Sequence[str] | None = None,
    importance: ArrayLike | None = None,
    l2: float = 1.0,
    fitted_on: str = "",
) -> Fusion:
    """Fit a fusion on images that none of the detectors learnt from.

    The objective is the cross-entropy, summed over images of mean importance 1, plus the penalty; it is convex, so the
    result is the same on every run.

    Args:
        labels: (N,), 1 for generated.
        scores: (N, D), calibrated log-odds.
        detectors: D names.
        weights_sha256: D hashes; "" each by default.
        importance: (N,), at least 0; by default the two classes count alike.
        l2: Of the penalty; an image's weight is 1, so that it matters less the more images there are.
        fitted_on: In words.

    Raises:
        DatasetError: A class is missing, or a score is.
        ValueError: Shapes do not fit, or ``l2`` or an importance is negative.
        ZooError: scikit-learn, which brings the solver, is not installed.
    """
    y, x = np.asarray(labels, bool), np.asarray(scores, np.float64)
    if y.ndim != 1 or x.shape != (len(y), len(detectors)):
        raise ValueError(f"{len(y)} labels, {len(detectors)} detectors and scores of shape {x.shape}")
    if not np.isfinite(x).all():
        raise DatasetError(f"{int((~np.isfinite(x)).any(1).sum())} of {len(x)} images lack a detector's score")
    if y.all() or not y.any():
        raise DatasetError(f"{int((~y).sum())} real and {int(y.sum())} generated images: a fusion needs both")
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum()) if importance is None else np.asarray(importance, np.float64)
    if weight.shape != y.shape or (weight < 0).any() or not weight.sum() > 0 or l2 < 0:
        raise ValueError("an importance of at least 0 each, not all of them 0, and l2 of at least 0")
    theta = _solved(np.where(y, 1.0, -1.0), np.clip(x, -_LIMIT, _LIMIT), weight * len(y) / weight.sum(), l2)
    return Fusion(
        detectors=tuple(detectors),
        weights_sha256=tuple(weights_sha256) if weights_sha256 is not None else ("",) * len(detectors),
        weights=tuple(round(float(w), 6) for w in theta[:-1]),
        offset=round(float(theta[-1]), 6),
        l2=l2,
        real=int((~y).sum()),
        generated=int(y.sum()),
        fitted_on=fitted_on,
    )


def _solved(sign: Floats, x: Floats, weight: Floats, l2: float) -> Floats:
    """Weights and, last, the offset, which is neither bounded nor penalised."""
    try:
        from scipy.optimize import minimize  # comes with scikit-learn
    except ImportError as error:
        raise ZooError("a fusion needs scikit-learn", hint="pip install 'detector-zoo[eval]'") from error

    def objective(theta: Floats) -> tuple[float, Floats]:
        margin = sign * (x @ theta[:-1] + theta[-1])
        pull = -weight * sign * np.exp(-np.logaddexp(0, margin))
        gradient = np.append(x.T @ pull + l2 * theta[:-1], pull.sum())
        return float((weight * np.logaddexp(0, -margin)).sum() + l2 / 2 * (theta[:-1] ** 2).sum()), gradient

    bounds = [(0, None)] * x.shape[1] + [(None, None)]
    options = {"maxiter": 10_000, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(objective, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(found.x, np.float64)


def read(path: Path) -> Fusion:
    """A fusion from a file of JSON (`Fusion.to_dict`), or from one that holds it under ``fusion``.

    Raises:
        DatasetError: It cannot be read, or holds none.
    """
    name = printable(str(path))
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{name}: cannot be read as a fusion ({error})") from error
    values = values.get("fusion", values) if isinstance(values, dict) else None
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise DatasetError(f"{name}: not a fusion of version {SCHEMA_VERSION}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return Fusion(**{item.name: values[item.name] for item in fields(Fusion)})
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{name}: damaged fusion ({type(error).__name__}: {error})") from error

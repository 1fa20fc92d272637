"""The fusion, fitted on images of train that none of its detectors learnt from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.photographs import first

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation import datasets, metrics
from detector_zoo.evaluation.fusion import Fusion, fit
from detector_zoo.evaluation.samples import Sample

from . import pictures
from .figures import importance
from .measuring import Measured, scored
from .slices import held_out, taught


@dataclass(frozen=True)
class Slice:
    """A fusion and what it was fitted on.

    Attributes:
        fusion: See there.
        counts: Photographs and generated images, by set.
        auroc: By detector and set.
        best: The detector with the highest mean of those.
    """

    fusion: Fusion
    counts: dict[str, list[int]]
    auroc: dict[str, dict[str, float]]
    best: str


def fused(chosen: Sequence[Measured], options: argparse.Namespace) -> Slice:
    """Fit the fusion; every training set counts alike, and in every set both classes.

    Raises:
        DatasetError: What a detector learnt from is not known, or no set is left with both classes.
    """
    members = [one for one in chosen if one.fused]
    sets = {Path(place).resolve().name: _once(datasets.read(place, split="train")) for place in options.train}
    learnt = [taught(one.name, one.record, sets) for one in members if one.detector.spec is not None]
    slices: dict[str, list[Sample]] = {}
    for name, samples in held_out(sets, learnt).items():
        grouped = any(s.group for s in samples)
        left = [s for s in samples if s.kind != pictures.CONTROL]
        left = first(left, options.slice if grouped else None)
        if len({s.label for s in left}) == 2:
            slices[name] = (
                pictures.aligned(left, options.out / "pictures" / f"slice-{name}") if grouped else pictures.whole(left)
            )
    if not slices:
        raise DatasetError("no training set has photographs and generated images that no detector learnt from")
    parts = [scored(samples, members, options.out / f"slice-{name}.parquet") for name, samples in slices.items()]
    scores, weight = np.concatenate(parts), importance(slices)
    labels = np.concatenate([[s.generated for s in samples] for samples in slices.values()])
    there = np.isfinite(scores).all(1)
    counts = {name: [sum(not s.generated for s in v), sum(s.generated for s in v)] for name, v in slices.items()}
    told = ", ".join(f"{name} {real} real and {made} generated" for name, (real, made) in counts.items())
    fusion = fit(
        labels[there],
        scores[there],
        [one.name for one in members],
        weights_sha256=[one.detector.weights_sha256 for one in members],
        importance=weight[there],
        fitted_on=f"images of train whose photographs none of the detectors learnt from: {told}; sets and classes "
        "count alike",
    )
    auroc = {
        one.name: {
            name: _auroc(samples, part[:, at]) for (name, samples), part in zip(slices.items(), parts, strict=True)
        }
        for at, one in enumerate(members)
    }
    best = max(auroc, key=lambda name: float(np.mean(list(auroc[name].values()))))
    return Slice(fusion, counts, auroc, best)


def _once(samples: Sequence[Sample]) -> list[Sample]:
    """Each content once."""
    return list({s.sha256: s for s in reversed(samples)}.values())


def _auroc(samples: Sequence[Sample], scores: np.ndarray) -> float:
    there = np.isfinite(scores)
    labels = np.array([s.generated for s in samples])
    return round(metrics.auroc(labels[there], scores[there]), 4)

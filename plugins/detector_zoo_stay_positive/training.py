"""How Stay-Positive learns: the last layer of a trained detector, from zero, never negative (Rajan & Lee, ICML 2025).

Everything below the last layer is frozen, statistics of batch normalisation included; the published code lets those
drift. Features are therefore computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detector_zoo import weights
from detector_zoo.detector import Weights
from detector_zoo.errors import UnknownDetectorError, WeightsError
from detector_zoo.loading import pick_device
from detector_zoo.registry import resolve
from detector_zoo.training.artifact import load_folder
from detector_zoo.training.heads import Frozen, HeadRecipe, fit_head
from detector_zoo.training.job import Job
from detector_zoo.training.recipes import build
from detector_zoo_corvi import Corvi
from detector_zoo_stay_positive.model import StayPositive

__all__ = ["Recipe", "clamp", "fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(HeadRecipe):
    """Of Stay-Positive; ``network`` and ``preprocessing`` are the base's.

    Attributes:
        base: Name of the weights to start from, unless the job names others.
        nonnegative: Whether weights are clamped; without, the last layer alone is retrained (the paper's ablation).
    """

    network: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    base: str = "corvi.latent"
    nonnegative: bool = True


def clamp(head: nn.Module) -> None:
    """W <- max(w, 0); the bias is free."""
    assert isinstance(head, nn.Linear)  # noqa: S101 - for the type checker
    head.weight.clamp_(min=0)


def fit(job: Job) -> Path:
    """Train as ``recipes/`` say; returns the folder of the weights.

    Raises:
        WeightsError: The base cannot be had, or is no network of Corvi's kind.
    """
    where = f"{job.method}, recipe {job.recipe}"
    recipe = build(Recipe, job.values, where)
    base = _base(job.base or recipe.base)
    spec = base.spec
    config = dict(spec.config) | ({} if recipe.nonnegative else {"nonnegative": False})
    recipe = replace(
        recipe,
        network={key: value for key, value in config.items() if key != "nonnegative" or value is False},
        preprocessing=dict(spec.preprocessing),
        notes=(*recipe.notes, f"The network is that of {spec.name} (sha256 `{spec.sha256}`), its last layer aside."),
    )
    shipped = Weights(spec, recipe.shipped(base.tensors))
    detector = Corvi.from_weights(shipped)
    detector.to(pick_device(job.device))

    def embed(batch: Tensor) -> Tensor:
        return detector.pooled(batch.to(detector.device))

    def tensors(head: nn.Linear) -> Mapping[str, Tensor]:
        return {**base.tensors, "fc.weight": head.weight, "fc.bias": head.bias}

    frozen = Frozen(
        key=f"{spec.sha256} {dict(spec.preprocessing)} {recipe.half}",
        dim=base.tensors["fc.weight"].shape[1],
        pixels=detector.transform,
        embed=embed,
    )
    after_step = clamp if recipe.nonnegative else None
    return fit_head(job, recipe, frozen, StayPositive.from_weights, tensors, after_step=after_step)


def _base(name: str) -> Weights:
    """Of the catalogue, or in a run's folder."""
    folder = Path(name)
    if folder.is_dir():
        found = load_folder(folder)
    else:
        spec = resolve(name)[1]
        if spec is None:
            raise UnknownDetectorError(f"{name} has no weights to start from")
        found = weights.load_weights(spec, progress=True)
    if "fc.weight" not in found.tensors:
        raise WeightsError(f"{found.spec.name}: has no last layer fc.weight, as a base has to")
    return found

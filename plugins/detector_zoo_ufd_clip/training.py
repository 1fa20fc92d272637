"""How UFD learns: a linear layer on embeddings that stay as they are (Ojha et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detector_zoo import weights
from detector_zoo.convert import sha256_of
from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.loading import pick_device
from detector_zoo.networks import small
from detector_zoo.networks.clip import embedding_size, load_tower
from detector_zoo.preprocessing import Preprocessing
from detector_zoo.registry import lookup
from detector_zoo.training import pretrained
from detector_zoo.training.heads import Frozen, HeadRecipe, fit_head
from detector_zoo.training.job import Job
from detector_zoo.training.recipes import RecipeError, build
from detector_zoo_ufd_clip.model import UFD
from detector_zoo_ufd_clip.small import SmallUFD

__all__ = ["Recipe", "fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(HeadRecipe):
    """Of a head on a frozen network.

    Attributes:
        backbone: Of the catalogue, whose ``network.model`` is open_clip's name of it; None for a small network that
            is shipped with the head, ``network.architecture`` of `detector_zoo.networks.small`, from ImageNet.
    """

    backbone: str | None = None


def fit(job: Job) -> Path:
    """Train as ``recipes/`` say; returns the folder of the weights."""
    where = f"{job.method}, recipe {job.recipe}"
    recipe = build(Recipe, job.values, where)
    if (recipe.backbone is None) == ("model" in recipe.network):
        raise RecipeError(f"{where}: network.model and backbone belong together")
    return _on_clip(job, recipe) if recipe.backbone else _on_small(job, recipe)


def _on_clip(job: Job, recipe: Recipe) -> Path:
    model = str(recipe.network["model"])
    inputs = Preprocessing.of("recipe", recipe.preprocessing)
    spec = lookup(str(recipe.backbone))
    file = weights.fetch(spec, progress=not job.quiet)
    device = pick_device(job.device)
    tower = load_tower(model, weights.read(file), spec.name).eval().requires_grad_(False).to(device)
    frozen = Frozen(
        key=f"{model} {sha256_of(file)} {dict(recipe.preprocessing)}",
        dim=embedding_size(model),
        pixels=inputs.pixels,
        embed=lambda batch: tower(inputs.normalise(batch.to(device))),
    )

    def detector(head: Weights) -> TorchDetector:
        return UFD.from_weights(replace(head, backbone=weights.read_backbone(head.spec)))

    return fit_head(job, recipe, frozen, detector, nn.Linear.state_dict, backbone=spec.name)


def _on_small(job: Job, recipe: Recipe) -> Path:
    inputs = Preprocessing.of("recipe", recipe.preprocessing)
    architecture = str(recipe.network.get("architecture"))
    network: Any = small.build(recipe.network)
    pretrained.fill(network, architecture)
    device = pick_device(job.device)
    # As it is shipped: the head has to fit the features of the rounded network.
    network.load_state_dict(recipe.shipped(network.state_dict()))
    network.eval().requires_grad_(False).to(device)
    frozen = Frozen(
        key=f"{dict(recipe.network)} ImageNet {dict(recipe.preprocessing)} {recipe.half}",
        dim=network.fc.in_features,
        pixels=inputs.pixels,
        embed=lambda batch: network.features(inputs.normalise(batch.to(device))).mean((2, 3)),
    )

    def tensors(head: nn.Linear) -> Mapping[str, Tensor]:
        own: dict[str, Tensor] = network.state_dict()
        return own | {"fc.weight": head.weight, "fc.bias": head.bias}

    return fit_head(job, recipe, frozen, SmallUFD.from_weights, tensors)

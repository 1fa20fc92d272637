"""How patch-shuffle learns: a new random order of every image's patches in every step (Zheng et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector_zoo.preprocessing import Preprocessing
from detector_zoo.training.batches import Batch
from detector_zoo.training.course import ImageRecipe, fit_images
from detector_zoo.training.job import Job
from detector_zoo.training.loop import Trainee
from detector_zoo.training.recipes import RecipeError, build
from detector_zoo_patch_shuffle.model import PatchShuffle
from detector_zoo_patch_shuffle.network import PatchNetwork, with_slots

__all__ = ["Recipe", "fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(ImageRecipe):
    """Of patch-shuffle.

    Attributes:
        shuffle: Whether patches are shuffled; without, the same network sees them row by row (the paper's ablation).
    """

    shuffle: bool = True


def fit(job: Job) -> Path:
    """Train as ``recipes/`` say; returns the folder of the weights."""
    where = f"{job.method}, recipe {job.recipe}"
    recipe = build(Recipe, job.values, where)
    torch.manual_seed(job.seed)
    try:
        network = PatchNetwork(**with_slots(recipe.network, Preprocessing.of("recipe", recipe.preprocessing)))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: network: {error}") from error
    return fit_images(job, recipe, PatchShuffle, Trainee(network=network, loss=_loss(recipe)))


def _loss(recipe: Recipe) -> Callable[[nn.Module, Batch], Tensor]:
    inputs = Preprocessing.of("recipe", recipe.preprocessing)

    def loss(network: PatchNetwork, batch: Batch) -> Tensor:
        x = inputs.normalise(batch.inputs)
        order = None
        if recipe.shuffle:
            # Drawn on the CPU, so that the order is the same on every device.
            order = torch.stack([torch.randperm(network.slots) for _ in range(len(x))]).to(x.device)
        return functional.binary_cross_entropy_with_logits(network(x, order).float(), batch.labels)

    return loss  # type: ignore[return-value]

"""Training networks that average their positions: CNNSpot's, Corvi's, and others that score whole images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector_zoo.networks.positionwise import PositionwiseDetector
from detector_zoo.preprocessing import Preprocessing
from detector_zoo.training import pretrained
from detector_zoo.training.batches import Batch
from detector_zoo.training.course import ImageRecipe, fit_images, map_loss
from detector_zoo.training.job import Job
from detector_zoo.training.loop import Trainee
from detector_zoo.training.recipes import build

__all__ = ["PositionRecipe", "fit_positions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionRecipe(ImageRecipe):
    """Of a network with average pooling and a linear layer.

    Attributes:
        pretrained: Whether the network starts from ImageNet.
        dropout: Of the pooled features, before the last layer.
        head_std: Standard deviation of the normal distribution that the last layer starts from.
    """

    pretrained: bool = False
    dropout: float = 0.0
    head_std: float = 0.02


def fit_positions(job: Job, detector: type[PositionwiseDetector]) -> Path:
    """Train the network that the detector builds from the recipe's ``network``; see `course.fit_images`."""
    recipe = build(PositionRecipe, job.values, f"{job.method}, recipe {job.recipe}")
    torch.manual_seed(job.seed)
    network: Any = detector.build(recipe.network)
    if recipe.pretrained:
        pretrained.fill(network, str(recipe.network.get("architecture", "resnet50")))
    nn.init.normal_(network.fc.weight, std=recipe.head_std)
    nn.init.zeros_(network.fc.bias)
    loss = map_loss(recipe, _maps) if recipe.map_weight else _loss(recipe)
    return fit_images(job, recipe, detector, Trainee(network=network, loss=loss))


def _loss(recipe: PositionRecipe) -> Callable[[nn.Module, Batch], Tensor]:
    inputs = Preprocessing.of("recipe", recipe.preprocessing)

    def loss(network: Any, batch: Batch) -> Tensor:
        pooled = network.features(inputs.normalise(batch.inputs)).mean((2, 3))
        logits = network.fc(functional.dropout(pooled, recipe.dropout)).float()
        return functional.binary_cross_entropy_with_logits(logits[:, 0], batch.labels)

    return loss


def _maps(network: Any, x: Tensor) -> Tensor:
    """The logit of every position, (N, h, w)."""
    return functional.conv2d(network.features(x), network.fc.weight[..., None, None], network.fc.bias)[:, 0]

"""How INP-X's classifiers learn: real images against inpainted and exchanged ones (Nebioglu et al., 2026).

Where the network averages its positions, every position can be told by the mask what it shows (``map_weight``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from detector_zoo.convert import one_line
from detector_zoo.errors import ZooError
from detector_zoo.networks.state import load_strictly
from detector_zoo.training.course import ImageRecipe, fit_images, image_loss, map_loss
from detector_zoo.training.job import Job
from detector_zoo.training.loop import Trainee
from detector_zoo.training.pretrained import efficientnet_lite0
from detector_zoo.training.recipes import RecipeError, build
from detector_zoo_inpx.model import INPX
from detector_zoo_inpx.networks import CLIPClassifier, Convolutional, view
from detector_zoo_inpx.networks import build as build_network

__all__ = ["Recipe", "fit"]

HEAD_STD = 0.02
"""Standard deviation that the last layer starts from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(ImageRecipe):
    """Of an INP-X classifier.

    Attributes:
        pretrained: Whether the network starts from ImageNet, or from OpenAI's CLIP.
    """

    pretrained: bool = True


def fit(job: Job) -> Path:
    """Train as ``recipes/`` say; returns the folder of the weights."""
    where = f"{job.method}, recipe {job.recipe}"
    recipe = build(Recipe, job.values, where)
    torch.manual_seed(job.seed)
    network: Any = build_network(recipe.network)
    head = network.fc if isinstance(network, CLIPClassifier) else network.get_classifier()
    # timm's own draws for many classes: with one, its weights would be of the order of 1.
    nn.init.normal_(head.weight, std=HEAD_STD)
    nn.init.zeros_(head.bias)
    if recipe.pretrained:
        _start(network, recipe)
    if not recipe.map_weight:
        loss = image_loss(recipe)
    elif isinstance(view(network, str(recipe.network["heatmap"])), Convolutional):
        loss = map_loss(recipe, _maps)
    else:
        raise RecipeError(f"{where}: map_weight: this network has no map of positions to learn from masks")
    return fit_images(job, recipe, INPX, Trainee(network=network, loss=loss))


def _maps(network: Any, x: Tensor) -> Tensor:
    """The logit of every position, (N, h, w): average pooling and the classifier commute."""
    classifier = network.get_classifier()
    return functional.conv2d(network.forward_features(x), classifier.weight[..., None, None], classifier.bias)[:, 0]


def _start(network: nn.Module, recipe: Recipe) -> None:
    """Fill everything but the classifier, whose own start stays."""
    model = str(recipe.network["model"])
    own = network.state_dict()
    if isinstance(network, CLIPClassifier):
        found = {f"visual.{key}": value for key, value in _clip(model).items()}
    elif model == "efficientnet_lite0":
        found = efficientnet_lite0()
    else:
        found = _timm(model, dict(recipe.network.get("arguments", {})))
    classifier = {key: value for key, value in own.items() if key not in found}
    load_strictly(network, {**found, **classifier}, f"{model}, pretrained")


def _timm(model: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    try:
        return dict(timm.create_model(model, pretrained=True, num_classes=0, **arguments).state_dict())
    # Whatever the Hub's client raises, it means that there are no weights.
    except Exception as error:
        raise _missing(model, error) from error


def _clip(model: str) -> dict[str, Tensor]:
    import open_clip

    try:
        return dict(open_clip.create_model(model, pretrained="openai").visual.state_dict())
    except Exception as error:
        raise _missing(model, error) from error


def _missing(model: str, error: Exception) -> ZooError:
    return ZooError(f"pretrained weights of {model}: {one_line(error)}", hint="--set pretrained=false")

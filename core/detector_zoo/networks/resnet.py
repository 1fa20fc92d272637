"""ResNet-50 in torchvision's layout (stride in the 3x3), with the strides that detectors change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

from detector_zoo.errors import WeightsError
from detector_zoo.networks.fused import conv_add_relu, conv_relu
from detector_zoo.networks.tiling import Geometry

__all__ = ["ResNet50"]


class ResNet50(nn.Module):
    """ResNet-50 with one output, under torchvision's parameter names.

    Args:
        conv1_stride: 2 as published; 1 keeps the finest traces and doubles every resolution.
        maxpool_stride: Likewise.

    Attributes:
        geometry: Of the last map: output stride 32 and receptive field 427 as published, 8 and 113 with both
            strides 1.
        floats: Values per pixel of the image that a folded forward pass holds at its widest point.
    """

    LAYERS = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, conv1_stride: int = 2, maxpool_stride: int = 2) -> None:
        super().__init__()
        net: Any = timm.create_model("resnet50", pretrained=False, num_classes=1)
        net.conv1.stride = (conv1_stride, conv1_stride)
        net.maxpool.stride = maxpool_stride
        # The parts themselves, and not the network as one of them, so that keys are torchvision's.
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.act1, net.maxpool
        for name in self.LAYERS:
            setattr(self, name, getattr(net, name))
        self.fc: nn.Linear = net.fc
        self.geometry = _geometry(conv1_stride, maxpool_stride)
        # Widest in layer1, where a block's input, its last narrow map and its output live at once (256 + 64 + 256), or
        # in the max pooling (64 in and out); benchmarks/memory.py compares it with measured peaks.
        at_conv1, at_layer1 = 1 / conv1_stride**2, 1 / (conv1_stride * maxpool_stride) ** 2
        self.floats = 3 + max(64 * at_conv1 + 64 * at_layer1, 576 * at_layer1)

    @classmethod
    def of(cls, config: Mapping[str, object]) -> ResNet50:
        """The network that ``WeightSpec.config`` describes: ``architecture: resnet50`` and the strides, 1 or 2.

        Raises:
            WeightsError: It describes another one.
        """
        options = dict(config)
        if (architecture := options.pop("architecture", "resnet50")) != "resnet50":
            raise WeightsError(f"config: architecture {architecture!r} is unknown, expected resnet50")
        for key, value in options.items():
            if key not in {"conv1_stride", "maxpool_stride"}:
                raise WeightsError(f"config: unknown key {key!r}")
            if type(value) is not int or value not in {1, 2}:
                raise WeightsError(f"config: {key} is {value!r}, expected 1 or 2")
        strides: Any = options
        return cls(**strides)

    def features(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to post-ReLU features (N, 2048, ceil(H / stride), ceil(W / stride))."""
        folded = isinstance(self.bn1, nn.Identity)
        x = self.maxpool(conv_relu(self.conv1, x) if folded else self.relu(self.bn1(self.conv1(x))))
        for name in self.LAYERS:
            # Block by block, because whoever calls a whole layer holds its input to the end.
            for block in getattr(self, name):
                x = _folded_block(block, x) if folded else block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to logits (N, 1): global average pool, then ``fc``."""
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits


def _folded_block(block: Any, x: Tensor) -> Tensor:
    """A bottleneck (He et al., CVPR 2016) whose normalisations were folded; ``x`` may be overwritten."""
    y = conv_relu(block.conv2, conv_relu(block.conv1, x))
    return conv_add_relu(block.conv3, y, x if block.downsample is None else block.downsample(x))


def _geometry(conv1_stride: int, maxpool_stride: int) -> Geometry:
    """Stride and radius of the last map, layer by layer: a layer of kernel k adds k // 2 of its input's pixels."""
    # (kernel, stride) of conv1, the pool and the 3x3 of each of 3 + 4 + 6 + 3 blocks.
    layers = [(7, conv1_stride), (3, maxpool_stride)]
    for blocks, stride in ((3, 1), (4, 2), (6, 2), (3, 2)):
        layers += [(3, stride)] + [(3, 1)] * (blocks - 1)
    jump, radius = 1, 0
    for kernel, stride in layers:
        radius += kernel // 2 * jump
        jump *= stride
    return Geometry(jump, radius)

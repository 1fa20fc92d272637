"""A small convolutional network taught to say what a vision transformer would say about every patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector_zoo.errors import WeightsError
from detector_zoo_mdmf.embedder import ConvEmbedder, PatchEmbedder, VitEmbedder

__all__ = ["DistilledEmbedder", "build_embedder"]

FIRST_STAGE = 2
"""Of the stages that are read, counted from 0: the two before hold little but edges, and what codecs do to them."""

LIMIT = 5.0
"""Standard deviations that a cell's numbers are clipped at: a linear map would follow an outlier anywhere."""


class DistilledEmbedder(PatchEmbedder):
    """A linear map from the local statistics of a frozen network's stages to a transformer's patch tokens.

    A token stands for a cell of one stride. Its input is the mean and the standard deviation, within the cell, of
    every stage's output from the third on, standardised; beside it the mean over the whole tile, since a
    transformer's tokens know what surrounds them. The map is fitted by `detector_zoo_mdmf.distil.fit_map`.

    Args:
        stages: Of EfficientNet-lite0, see `ConvEmbedder`.
        outputs: Width of a token.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stages: int = 6, outputs: int = 128) -> None:
        super().__init__()
        self.trunk = ConvEmbedder(stages)
        self.stride = self.patch = self.trunk.stride
        self.dim = outputs
        self.register_buffer("mean", torch.zeros(self.inputs))
        self.register_buffer("std", torch.ones(self.inputs))
        self.map = nn.Conv2d(2 * self.inputs, outputs, 1)

    @property
    def inputs(self) -> int:
        """How many numbers `cells` gives a cell."""
        total, stride = 0, 2
        for number, stage in enumerate(self.trunk.blocks):
            convolutions = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
            stride *= max(m.stride[0] for m in convolutions)
            if number >= FIRST_STAGE:
                total += convolutions[-1].out_channels * (1 if stride == self.stride else 2)
        return total

    def cells(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), normalised, to the stages' statistics (N, inputs, H / stride, W / stride)."""
        grid = (x.shape[-2] // self.stride, x.shape[-1] // self.stride)
        out = []
        for y in self.trunk.outputs(x)[FIRST_STAGE:]:
            side = y.shape[-1] // grid[1]
            mean = functional.avg_pool2d(y, side) if side > 1 else y
            out.append(mean)
            if side > 1:
                out.append((functional.avg_pool2d(y * y, side) - mean * mean).clamp_min(0).sqrt())
        return torch.cat(out, 1)

    def context(self, cells: Tensor) -> Tensor:
        """(N, inputs, h, w) to the map's input, (N, 2 inputs, h, w): each cell, then the whole."""
        x = ((cells - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)).clamp(-LIMIT, LIMIT)
        return torch.cat([x, x.mean((2, 3), keepdim=True).expand_as(x)], 1)

    def features(self, x: Tensor) -> Tensor:
        """See `PatchEmbedder.features`."""
        tokens: Tensor = self.map(self.context(self.cells(x)))
        return tokens


def build_embedder(config: Mapping[str, Any]) -> PatchEmbedder:
    """Build the embedder that ``config`` describes.

    Args:
        config: ``kind`` (``distilled``, ``conv``, ``dinov2`` or ``vit``) and the arguments of its class.

    Raises:
        WeightsError: The kind is unknown.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    kinds = {"distilled": DistilledEmbedder, "conv": ConvEmbedder, "dinov2": VitEmbedder, "vit": VitEmbedder}
    if kind not in kinds:
        raise WeightsError(f"embedder kind {kind!r} is unknown; {', '.join(kinds)} are there")
    made: PatchEmbedder = kinds[kind](**options)
    return made

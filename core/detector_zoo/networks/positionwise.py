"""Detectors whose logit is a linear function of globally averaged features: whole images, exact tiles, maps, evidence.

Average pooling and a linear layer commute: the logit of an image is the mean of the logits of its positions. So an
image of any size can be scored in tiles (`detector_zoo.networks.tiling`), the logits of the positions are a map of
the evidence that needs no further method (class activation mapping, Zhou et al., CVPR 2016, arXiv 1512.04150), and
with features behind a ReLU every feature's share of the logit has the sign of its weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.errors import WeightsError
from detector_zoo.networks.folding import fold
from detector_zoo.networks.state import load_strictly
from detector_zoo.networks.tiling import Geometry, Tile, tiles
from detector_zoo.preprocessing import Preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["PositionwiseDetector", "PositionwiseNetwork"]


class PositionwiseNetwork(Protocol):
    """What the detector asks of a network, beside being a module.

    Attributes:
        fc: Linear, one output, on averaged features.
        geometry: Where the positions lie.
        floats: Values per pixel of the image that a folded forward pass holds at its widest point.
    """

    fc: nn.Linear
    geometry: Geometry
    floats: float

    def features(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to features (N, C, h, w), none negative."""
        ...


class PositionwiseDetector(TorchDetector):
    """Score whole images with a convolutional network, average pooling and a linear layer.

    An image that would need more memory than ``budget()`` is cut into exact tiles; scores differ from the untiled
    ones by rounding only. A subclass says by `build` which network a configuration means.

    Args:
        network: In evaluation mode.
        inputs: Its preprocessing.
    """

    network: nn.Module

    def __init__(self, network: nn.Module, inputs: Preprocessing) -> None:
        self.network = fold(network.eval().requires_grad_(False)).to(memory_format=torch.channels_last)
        self.inputs = inputs

    @classmethod
    def build(cls, config: Mapping[str, object]) -> nn.Module:
        """The network, a `PositionwiseNetwork`, that ``WeightSpec.config`` describes.

        Raises:
            WeightsError: It describes none.
        """
        raise NotImplementedError

    @classmethod
    def from_weights(cls, weights: Weights) -> Self:
        """Build the network that ``weights.spec.config`` describes and load the tensors strictly.

        Raises:
            WeightsError: A tensor is missing, left over or of another shape; or the spec is not understood.
        """
        spec = weights.spec
        try:
            network = cls.build(spec.config)
        except WeightsError as error:
            raise WeightsError(f"{spec.name}: {error}", hint=error.hint) from error
        load_strictly(network, weights.tensors, spec.name)
        detector = cls(network, Preprocessing.of(spec.name, spec.preprocessing))
        detector.spec = spec
        return detector

    def transform(self, image: Image.Image) -> Tensor:
        """The pixels, (3, H, W) uint8; they are normalised tile by tile, where memory is bounded."""
        return self.inputs.pixels(image)

    def logits(self, batch: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) uint8 to logits, (N,)."""
        weight, bias = self._linear()
        return self.pooled(batch) @ weight + bias

    def pooled(self, batch: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) uint8 to their features' means over all positions, (N, C) float64 on the CPU."""
        positions = 1
        for side in batch.shape[-2:]:
            positions *= self._net.geometry.positions(side)
        sums: dict[int, Tensor] = {}
        for first, _, found in self._features(batch):
            # Summed up on the CPU in double precision, so that neither the number of tiles nor autocast shows.
            added = found.sum((2, 3), dtype=torch.float32).cpu().double()
            sums[first] = sums[first] + added if first in sums else added
        return torch.cat(list(sums.values())) / positions

    def heatmap(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """The logit at every position, interpolated bilinearly.

        Args:
            images: N RGB images of one size (W, H).

        Returns:
            (N, H, W) float32, in the unit of the logit; above 0 where the image looks generated. The mean over the
            positions, not over the pixels, is the logit. Outside a crop the map repeats the crop's edge.
        """
        return np.stack([self._heat(image) for image in images])

    def evidence(self, image: Image.Image) -> Mapping[str, float]:
        """What a logit is made of (Rajan & Lee, ICML 2025).

        Features are behind a ReLU, so a negative weight can only speak for a real image and a positive one only for
        a generated one.

        Returns:
            ``real``: the sum of w_i h_i over w_i < 0; ``fake``: the same over w_i > 0; ``bias``: b. They add up to
            the logit, before calibration.
        """
        with torch.inference_mode():
            weight, bias = self._linear()
            parts = weight * self.pooled(self.transform(image)[None].to(self.device))[0]
            return {
                "real": float(parts.clamp(max=0).sum()),
                "fake": float(parts.clamp(min=0).sum()),
                "bias": float(bias),
            }

    @property
    def _net(self) -> PositionwiseNetwork:
        network: PositionwiseNetwork = self.network  # type: ignore[assignment]
        return network

    def _linear(self) -> tuple[Tensor, Tensor]:
        """Weight (C,) and bias () of the last layer, float64 on the CPU."""
        fc = self._net.fc
        return fc.weight[0].cpu().double(), fc.bias[0].cpu().double()

    def _features(self, batch: Tensor) -> Iterator[tuple[int, Tile, Tensor]]:
        """Features of a batch (N, 3, H, W), in parts that memory has room for.

        Yields:
            The index of the part's first image, the tile, and the features of the tile's own positions.
        """
        height, width = batch.shape[-2:]
        stride = self._net.geometry.stride
        limit = max(1, int(self.budget() / (4 * self._net.floats)))
        together = max(1, limit // (height * width))
        for first in range(0, len(batch), together):
            for tile in tiles(height, width, self._net.geometry, limit):
                rows, columns = tile.rows, tile.columns
                pixels = batch[first : first + together, :, rows.start : rows.stop, columns.start : columns.stop]
                found = self._net.features(self.inputs.normalise(pixels))
                top, left = rows.start // stride, columns.start // stride
                own = found[:, :, rows.first - top : rows.last - top, columns.first - left : columns.last - left]
                yield first, tile, own

    def _heat(self, image: Image.Image) -> NDArray[np.float32]:
        stride = self._net.geometry.stride
        pixels = self.transform(image)
        height, width = pixels.shape[-2:]
        grid = torch.empty(1, 1, *(self._net.geometry.positions(side) for side in (height, width)))
        with torch.inference_mode():
            weight, bias = self._net.fc.weight[..., None, None], self._net.fc.bias
            for _, tile, found in self._features(pixels[None].to(self.device)):
                logits = functional.conv2d(found, weight, bias).cpu()
                grid[:, :, tile.rows.first : tile.rows.last, tile.columns.first : tile.columns.last] = logits
            # Position r is centred on pixel stride * r: the corners of the two are aligned, and the rest repeats.
            between = [(side - 1) * stride + 1 for side in grid.shape[-2:]]
            heat = functional.interpolate(grid, between, mode="bilinear", align_corners=True)
            rest = (0, width - between[1], 0, height - between[0])
            heat = functional.pad(heat, rest, mode="replicate")[0, 0]
        return self.inputs.spread(heat.numpy(), image.size)

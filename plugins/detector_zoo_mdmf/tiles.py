"""From an image of any size to tiles of it: a few spread over it, or all that cover it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detector_zoo.evaluation.equalise import reencode

__all__ = ["Tiling"]


@dataclass(frozen=True, slots=True)
class Tiling:
    """The constants of the input transform.

    Attributes:
        patch: Pixels of the image along a patch's side.
        mean: Of the normalisation, RGB, on a scale of 0 to 1.
        std: Of the normalisation.
        tile: Largest side of a tile, pixels of the image.
        grid: Most tiles along a side of the image.
        jpeg_quality: Then JPEG-compressed in memory, so that files of any codec look alike; None: not.
        shrink: Tiles are reduced by this factor, which takes away most of what codecs leave.
        unit: Pixels of the image that tiles' sides are multiples of, itself a multiple of ``patch``; 0 for ``patch``.
    """

    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tile: int
    grid: int
    jpeg_quality: int | None = None
    shrink: float = 1.0
    unit: int = 0

    def __post_init__(self) -> None:
        if not self.unit:
            object.__setattr__(self, "unit", self.patch)

    @classmethod
    def from_preprocessing(cls, preprocessing: Mapping[str, Any], patch: int, unit: int = 0) -> Tiling:
        """Read a spec's ``preprocessing``; ``exif_orientation`` there is the core's business.

        Args:
            preprocessing: The fields above, without ``patch`` and ``unit``.
            patch: Of the network, pixels of its input.
            unit: Likewise; 0 for ``patch``.
        """
        shrink = preprocessing.get("shrink", 1.0)
        options = {key: value for key, value in preprocessing.items() if key != "exif_orientation"}
        options["mean"], options["std"] = tuple(options["mean"]), tuple(options["std"])
        return cls(patch=round(patch * shrink), unit=round(unit * shrink), **options)

    @property
    def least(self) -> int:
        """Smallest side of a tile: two patches, because MMD^2 compares patches of an image with each other."""
        return max(2 * self.patch, self.unit)

    def spread(self, image: Image.Image) -> Tensor:
        """Tiles spread evenly over the image, overlapping where it is small: (3 T, h, w) float32, normalised."""
        image = self._padded(image)
        (height, tops), (width, lefts) = self._starts(image.height), self._starts(image.width)
        tiles = [self._tile(image, top, left, height, width) for top in tops for left in lefts]
        return torch.cat(tiles)

    def cover(self, image: Image.Image) -> Iterator[tuple[int, int, Tensor]]:
        """Tiles that cover the image without a gap: top, left (multiples of the patch) and (3, h, w)."""
        columns, rows = self.covered(image)
        step = self.tile // self.unit * self.unit
        for top in range(0, rows, step):
            for left in range(0, columns, step):
                height, width = min(step, rows), min(step, columns)
                # The last tile of a row or column is moved back inside, to keep its context.
                y, x = min(top, rows - height), min(left, columns - width)
                yield y, x, self._tile(image, y, x, height, width)

    def covered(self, image: Image.Image) -> tuple[int, int]:
        """Width and height of what `cover` covers: the image and what mirrors it beyond its right and lower edges."""
        width, height = (max(self.least, -(-side // self.unit) * self.unit) for side in image.size)
        return width, height

    def level(self, tile: Image.Image) -> Image.Image:
        """Take away what the file's own codec left: reduce by ``shrink``, then compress as every other tile."""
        if self.shrink != 1.0:
            size = (round(tile.width / self.shrink), round(tile.height / self.shrink))
            tile = tile.resize(size, Image.Resampling.BICUBIC)
        return tile if self.jpeg_quality is None else reencode(tile, "jpeg", self.jpeg_quality)

    def _starts(self, length: int) -> tuple[int, list[int]]:
        side = min(self.tile, length) // self.unit * self.unit
        count = min(self.grid, -(-length // self.tile))
        if count == 1:
            return side, [(length - side) // 2]
        return side, [round(i * (length - side) / (count - 1)) for i in range(count)]

    def _padded(self, image: Image.Image) -> Image.Image:
        if min(image.size) >= self.least:
            return image
        return _extend(image, max(self.least, image.width), max(self.least, image.height))

    def _tile(self, image: Image.Image, top: int, left: int, height: int, width: int) -> Tensor:
        cut = image.crop((left, top, min(left + width, image.width), min(top + height, image.height))).convert("RGB")
        tile = self.level(_extend(cut, width, height))
        pixels = torch.from_numpy(np.array(tile, np.float32)).permute(2, 0, 1) / 255
        return ((pixels - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)).contiguous()


def _extend(image: Image.Image, width: int, height: int) -> Image.Image:
    """Mirror an image beyond its right and lower edges up to the size wanted."""
    if image.size == (width, height):
        return image
    pixels = np.asarray(image.convert("RGB"))
    return Image.fromarray(np.pad(pixels, ((0, height - image.height), (0, width - image.width), (0, 0)), "symmetric"))

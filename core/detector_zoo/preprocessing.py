"""The input transform that a `WeightSpec`'s ``preprocessing`` describes: resize, crop, normalise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from detector_zoo.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Preprocessing"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Constants of an input transform, in the order in which it applies them.

    Attributes:
        resize: Length of the shorter side; or (height, width) to squash to; or None.
        interpolation: ``bilinear`` or ``bicubic``, Pillow's, which is antialiased.
        crop: Side of the centred square; smaller images are padded with black first. None keeps the whole image.
        multiple: Where given, what is cut out is the centred rectangle of whole multiples of so many pixels, at most
            ``crop`` a side; only an image of less than one multiple is padded.
        mean: Of each channel, subtracted in the range [0, 1].
        std: Of each channel, divided by after that.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    crop: int | None = None
    multiple: int | None = None

    @classmethod
    def of(cls, name: str, constants: Mapping[str, Any]) -> Preprocessing:
        """Read the constants of the weights ``name``; ``exif_orientation`` is the pipeline's and left to it.

        Raises:
            WeightsError: A constant is unknown, missing or of another kind.
        """
        given = {key: value for key, value in constants.items() if key != "exif_orientation"}
        if unknown := sorted(set(given) - set(cls.__dataclass_fields__)):
            raise WeightsError(f"{name}: preprocessing: unknown key {unknown[0]!r}")
        try:
            for key in ("mean", "std"):
                red, green, blue = (float(value) for value in given[key])
                given[key] = (red, green, blue)
            if isinstance(given.get("resize"), list):
                height, width = given["resize"]
                given["resize"] = (height, width)
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{name}: preprocessing: {type(error).__name__}: {error}") from error
        found = cls(**given)
        if found.interpolation not in _FILTERS:
            raise WeightsError(f"{name}: preprocessing: interpolation {found.interpolation!r} is not bilinear, bicubic")
        resize = found.resize if isinstance(found.resize, tuple) else (found.resize,)
        for side in (*resize, found.crop, found.multiple):
            if side is not None and (type(side) is not int or side < 1):
                raise WeightsError(f"{name}: preprocessing: {side!r} is not a side in pixels")
        if 0 in found.std:
            raise WeightsError(f"{name}: preprocessing: std: a channel cannot be divided by 0")
        return found

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Resize and crop an RGB image: (3, H, W) uint8, a quarter of what floats would take to keep and to move."""
        if self.resize is not None:
            image = image.resize(self._resized(*image.size), _FILTERS[self.interpolation])
        width, height = (self._cropped(side) for side in image.size)
        if (width, height) != image.size:
            left, top = _offset(image.width, width), _offset(image.height, height)
            # Beyond the image's edge Pillow fills in black.
            image = image.crop((left, top, left + width, top + height))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (N, 3, H, W) uint8 to the network's input, float32 and channels last, on the same device."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        values = pixels.to(torch.float32, memory_format=torch.channels_last)
        return values.div_(255).sub_(mean).div_(std)

    def spread(self, heat: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """Bring a map of the network's input back to the image.

        Args:
            heat: One value a pixel of what `pixels` returned.
            size: (width, height) of the image.

        Returns:
            (height, width) float32. What a crop left out repeats the crop's edge; what it padded is cut off.
        """
        width, height = self._resized(*size)
        if heat.shape != (height, width):
            rows, columns = (
                np.clip(np.arange(side) - _offset(side, cut), 0, cut - 1)
                for side, cut in zip((height, width), heat.shape, strict=True)
            )
            heat = heat[np.ix_(rows, columns)]
        if (width, height) != size:
            heat = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR))
        return heat

    def _cropped(self, side: int) -> int:
        """How much of a side is kept, or what it is padded to."""
        if self.multiple is None:
            return self.crop or side
        most = side if self.crop is None else min(side, self.crop)
        return max(1, most // self.multiple) * self.multiple

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing; the longer side is cut off, not rounded, as torchvision's Resize does."""
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        short = min(width, height)
        return int(self.resize * width / short), int(self.resize * height / short)


def _offset(side: int, crop: int) -> int:
    """Where torchvision's CenterCrop begins, negative where it pads: half a pixel is rounded to even, or up."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)

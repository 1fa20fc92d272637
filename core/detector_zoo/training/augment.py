"""Augmentation as papers list it: operations in order, each with its probability and its ranges.

An operation draws from a generator of its own and draws the same numbers whatever the image shows, so that two
images of one size under one seed go through the identical augmentation; only what depends on the size follows it.
Geometric operations move the mask of an edit along with the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from detector_zoo.errors import ZooError
from detector_zoo.evaluation.equalise import reencode
from detector_zoo.training.recipes import RecipeError, build
from detector_zoo.weight_specs import suggest

__all__ = ["OPERATIONS", "Augmentation", "Operation", "Picture"]

Range = tuple[float, float]
BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True, slots=True)
class Picture:
    """An image and where it is generated.

    Attributes:
        image: RGB.
        mask: L, of the image's size, 255 where generated; None where the image is all one thing.
    """

    image: Image.Image
    mask: Image.Image | None = None

    def photometric(self, image: Image.Image) -> Picture:
        """With other pixels in the same places."""
        return replace(self, image=image)

    def crop(self, box: tuple[int, int, int, int], size: tuple[int, int] | None = None) -> Picture:
        """Cut out a rectangle (left, top, right, bottom), black where the image ends, and resize to (width, height)."""

        def cut(image: Image.Image) -> Image.Image:
            return image.crop(box) if size is None else image.crop(box).resize(size, BILINEAR)

        return Picture(cut(self.image), self.mask and cut(self.mask))

    def transpose(self, how: Image.Transpose) -> Picture:
        """Flipped or turned by right angles."""
        return Picture(self.image.transpose(how), self.mask and self.mask.transpose(how))


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step; ``p`` is the probability that it is done."""

    p: float = 1.0

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Do it."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(Operation):
    """Shorter side to ``short`` pixels, bilinear and antialiased; ``only`` ``shrink`` leaves smaller images alone."""

    short: int
    only_shrink: bool = False

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Resize."""
        width, height = picture.image.size
        scale = self.short / min(width, height)
        if self.only_shrink and scale > 1:
            return picture
        return picture.crop((0, 0, width, height), (max(1, int(width * scale)), max(1, int(height * scale))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale(Operation):
    """Resize by a factor, uniform in logarithm between the bounds of ``scale``."""

    scale: Range

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Resize."""
        factor = math.exp(rng.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        width, height = picture.image.size
        return picture.crop((0, 0, width, height), (max(1, round(width * factor)), max(1, round(height * factor))))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCrop(Operation):
    """A square of ``size`` pixels; smaller images are mirrored at their edges, or padded with black."""

    size: int
    padding: str = "reflect"

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Crop."""
        u = rng.random(2)
        width, height = picture.image.size
        if self.padding == "reflect" and min(width, height) < self.size:
            picture = Picture(_mirrored(picture.image, self.size), picture.mask and _mirrored(picture.mask, self.size))
            width, height = picture.image.size
        left, top = (
            int(part * (side - self.size + 1)) if side >= self.size else -((self.size - side) // 2)
            for part, side in zip(u, (width, height), strict=True)
        )
        return picture.crop((left, top, left + self.size, top + self.size))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomResizedCrop(Operation):
    """torchvision's: a part of the area and an aspect ratio are drawn, and the cut is resized to a square.

    Attributes:
        size: Side of the square.
        scale: Share of the area.
        ratio: Width over height, drawn uniformly in logarithm.
    """

    size: int
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Crop and resize."""
        shares = rng.uniform(*self.scale, 10)
        ratios = np.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), 10))
        u = rng.random(2)
        width, height = picture.image.size
        for share, ratio in zip(shares, ratios, strict=True):
            w, h = (round(math.sqrt(share * width * height * r)) for r in (ratio, 1 / ratio))
            if 0 < w <= width and 0 < h <= height:
                break
        else:
            w = h = min(width, height)
        left, top = int(u[0] * (width - w + 1)), int(u[1] * (height - h + 1))
        return picture.crop((left, top, left + w, top + h), (self.size, self.size))


@dataclass(frozen=True, slots=True, kw_only=True)
class ColorJitter(Operation):
    """torchvision's: brightness, contrast, saturation (factors within 1 +- x) and hue (+- x turns), in random order."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Change the colours."""
        tv = _torchvision()
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [rng.uniform(max(0.0, 1 - x), 1 + x) for x in strengths] + [rng.uniform(-self.hue, self.hue)]
        steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
        image = picture.image
        for index in rng.permutation(4):
            if (*strengths, self.hue)[index]:
                image = steps[index](image, factors[index])
        return picture.photometric(image)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grayscale(Operation):
    """Luma in all three channels."""

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Take the colour away."""
        return picture.photometric(picture.image.convert("L").convert("RGB"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutout(Operation):
    """One rectangle, sides 1 to ``size`` pixels, filled with ``fill``; the mask stays as it is."""

    size: int
    fill: int = 128

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Fill the hole."""
        w, h = (int(side) for side in rng.integers(1, self.size + 1, 2))
        u = rng.random(2)
        width, height = picture.image.size
        left, top = int(u[0] * max(1, width - w + 1)), int(u[1] * max(1, height - h + 1))
        image = picture.image.copy()
        image.paste((self.fill,) * 3, (left, top, left + w, top + h))
        return picture.photometric(image)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise(Operation):
    """Gaussian noise of a variance drawn from ``variance``, in squared grey levels of 0 to 255."""

    variance: Range

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Add it."""
        sigma = math.sqrt(rng.uniform(*self.variance))
        pixels = np.asarray(picture.image, np.float32)
        noisy = pixels + sigma * rng.standard_normal(pixels.shape, np.float32)
        return picture.photometric(Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Blur(Operation):
    """Gaussian blur, sigma drawn from ``sigma``, in pixels."""

    sigma: Range

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Blur."""
        return picture.photometric(_gaussian(picture.image, rng.uniform(*self.sigma)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg(Operation):
    """JPEG by Pillow, quality drawn from ``quality``, both ends included; ``subsampling`` is one of those listed."""

    quality: tuple[int, int]
    subsampling: tuple[int, ...] = (2,)

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Encode and decode."""
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        return picture.photometric(reencode(picture.image, "jpeg", quality, int(rng.choice(self.subsampling))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Webp(Operation):
    """Lossy WebP by Pillow, quality drawn from ``quality``, both ends included."""

    quality: tuple[int, int]

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Encode and decode."""
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        return picture.photometric(reencode(picture.image, "webp", quality))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip(Operation):
    """Left and right exchanged."""

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Flip."""
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rot90(Operation):
    """Turned by 0, 90, 180 or 270 degrees, alike likely."""

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Turn."""
        turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
        how = turns[int(rng.integers(4))]
        return picture if how is None else picture.transpose(how)


@dataclass(frozen=True, slots=True, kw_only=True)
class D4(Operation):
    """One of the eight symmetries of the square, alike likely."""

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Flip and turn."""
        index = int(rng.integers(8))
        return picture if index == 0 else picture.transpose(list(Image.Transpose)[index - 1])


OPERATIONS: Mapping[str, type[Operation]] = {
    "blur": Blur,
    "color_jitter": ColorJitter,
    "cutout": Cutout,
    "d4": D4,
    "flip": Flip,
    "grayscale": Grayscale,
    "jpeg": Jpeg,
    "noise": Noise,
    "random_crop": RandomCrop,
    "random_resized_crop": RandomResizedCrop,
    "rescale": Rescale,
    "resize": Resize,
    "rot90": Rot90,
    "webp": Webp,
}
"""Operations by their name in a recipe."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Operations, in order."""

    operations: tuple[Operation, ...]

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]], where: str = "augmentation") -> Augmentation:
        """Read a recipe's list: one mapping an operation, of its name to its arguments.

        Raises:
            RecipeError: An operation or an argument is unknown.
        """
        operations = []
        for index, entry in enumerate(entries):
            if len(entry) != 1:
                raise RecipeError(f"{where}[{index}]: expected one operation, got {sorted(entry)}")
            ((name, arguments),) = entry.items()
            if name not in OPERATIONS:
                hint = suggest(name, OPERATIONS) or f"known: {', '.join(OPERATIONS)}"
                raise RecipeError(f"{where}[{index}]: unknown operation {name!r}", hint=hint)
            operations.append(build(OPERATIONS[name], arguments or {}, f"{where}[{index}]: {name}"))
        return cls(tuple(operations))

    def __call__(self, picture: Picture, seed: Sequence[int]) -> Picture:
        """Augment; the result is a function of the picture and the seed alone."""
        streams = np.random.default_rng(seed).spawn(len(self.operations))
        for operation, rng in zip(self.operations, streams, strict=True):
            if rng.random() < operation.p:
                picture = operation(picture, rng)
        return picture


def _torchvision() -> Any:
    try:
        from torchvision.transforms.v2 import functional as transforms
    except ImportError as error:
        raise ZooError("this augmentation needs torchvision", hint="pip install 'detector-zoo[train]'") from error
    return transforms


def _mirrored(image: Image.Image, size: int) -> Image.Image:
    pixels = np.asarray(image)
    pad = [(0, max(0, size - side)) for side in pixels.shape[:2]]
    return Image.fromarray(np.pad(pixels, [*pad, *[(0, 0)] * (pixels.ndim - 2)], "symmetric"))


def _gaussian(image: Image.Image, sigma: float) -> Image.Image:
    """Cut off at 4 sigma and mirrored at the edges, as scipy.ndimage does; Pillow's own is made of box blurs."""
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return image
    kernel = np.exp(-0.5 * (np.arange(radius + 1, dtype=np.float32) / np.float32(sigma)) ** 2)
    kernel /= kernel[0] + 2 * kernel[1:].sum()
    pixels = np.asarray(image, np.float32)
    for axis in (0, 1):
        length = pixels.shape[axis]
        margin = [(radius, radius) if side == axis else (0, 0) for side in range(3)]
        # The axis in front, so that its shifts are whole blocks of memory.
        padded = np.moveaxis(np.pad(pixels, margin, "symmetric"), axis, 0)
        blurred = kernel[0] * padded[radius : radius + length]
        for offset, weight in enumerate(kernel[1:], 1):
            before, after = padded[radius - offset :][:length], padded[radius + offset :][:length]
            blurred += weight * (before + after)
        pixels = np.moveaxis(blurred, 0, axis)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))

"""Reading samples for training: decoded, oriented, brought to a common codec history."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from detector_zoo import images
from detector_zoo.errors import DatasetError, ImageError
from detector_zoo.evaluation.equalise import FINAL_QUALITY, SIDES, first_generation, reencode
from detector_zoo.evaluation.samples import Sample
from detector_zoo.training.augment import Picture

__all__ = ["evenly", "is_webp", "read", "window"]

GRID = 8
"""Pixels along a JPEG block; with 4:2:0, chroma blocks are twice that."""
WEBP_SHRINK = 1.5
"""Lossy WebP files are reduced by this: their codec's trace is wiped out, and they are then treated as lossless."""


def read(sample: Sample, orientation: str = "apply") -> tuple[Picture, bool]:
    """Decode a sample.

    Args:
        sample: Its mask is taken as 255 where it is at least half white.
        orientation: ``apply`` or ``ignore`` EXIF.

    Returns:
        The picture, and whether it was JPEG-compressed before, on a grid that starts at its corner.

    Raises:
        DatasetError: A file cannot be read, or a mask has another size than its image.
    """
    try:
        decoded = images.decode(sample.path)
        image = decoded.oriented(orientation)
        mask = None
        if sample.mask is not None:
            mask = images.decode(sample.mask).oriented("ignore").convert("L").point(lambda v: 255 if v > 127 else 0)
    except (ImageError, OSError) as error:
        raise DatasetError(f"{sample.path}: {error}") from error
    if mask is not None and mask.size != image.size:
        raise DatasetError(f"{sample.mask}: a mask of {mask.size} for an image of {image.size}")
    return Picture(image, mask), decoded.format == "JPEG"


def is_webp(sample: Sample) -> bool:
    """Whether the file says that it is a WebP."""
    return sample.path.suffix.lower() == ".webp"


def window(
    sample: Sample,
    seed: Sequence[int],
    *,
    equalise: bool = True,
    sides: tuple[int, int] = SIDES,
    orientation: str = "apply",
    shrink: bool | None = None,
) -> Picture:
    """A random part of a sample, with the history that all samples have.

    With ``equalise`` a file without a JPEG generation gets one (`detector_zoo.evaluation.equalise`), a lossy WebP after
    having been reduced, and the cut falls anywhere on its grid. Without, the file's own pixels are cut, from a
    multiple of 8 on, so that whatever its codec left is there to be learnt: that is for measuring how much it is.

    Two samples of one size under one seed are cut alike.

    Args:
        sample: See `read`.
        seed: Of every draw.
        equalise: See above.
        sides: Smallest and largest side of the part, in pixels.
        orientation: See `read`.
        shrink: Whether to reduce the image first; by default if it is a WebP.
    """
    history, position = np.random.default_rng(seed).spawn(2)
    picture, compressed = read(sample, orientation)
    side = position.integers(sides[0], sides[1] + 1, 2)
    u = position.random(2)
    offsets = position.integers(1, GRID, 2)
    width, height = picture.image.size
    if equalise and (is_webp(sample) if shrink is None else shrink):
        picture = picture.crop((0, 0, width, height), (round(width / WEBP_SHRINK), round(height / WEBP_SHRINK)))
        width, height = picture.image.size
        compressed = False
    starts, lengths = [], []
    for full, want, part in zip((width, height), side, u, strict=True):
        # 16 pixels: blocks of subsampled chroma stay where they were.
        length = min(full, int(want) + GRID)
        starts.append(int(part * ((full - length) // (2 * GRID) + 1)) * 2 * GRID)
        lengths.append(length)
    box = (starts[0], starts[1], starts[0] + lengths[0], starts[1] + lengths[1])
    picture = picture.crop(box)
    if not equalise:
        return picture.crop((0, 0, max(1, lengths[0] - GRID), max(1, lengths[1] - GRID)))
    if not compressed:
        # On the cut alone, whose corner is on the whole image's grid: the same blocks, and less to encode.
        picture = picture.photometric(first_generation(picture.image, history))
    left, top = (int(offset) if length > GRID else 0 for offset, length in zip(offsets, lengths, strict=True))
    return picture.crop((left, top, left + max(1, lengths[0] - GRID), top + max(1, lengths[1] - GRID)))


def evenly(sample: Sample, salt: str = "", *, equalise: bool = True, orientation: str = "apply") -> Image.Image:
    """The one part of a sample that it is validated and calibrated on: `window`, seeded by the file, then JPEG 92."""
    digest = hashlib.sha256(f"{salt}{sample.sha256}".encode()).digest()
    seed = np.frombuffer(digest, np.uint32).tolist()
    picture = window(sample, seed, equalise=equalise, orientation=orientation)
    return reencode(picture.image, "jpeg", FINAL_QUALITY) if equalise else picture.image

"""Photographs to make training data from: in a fixed order, with draws of their own, cut where the draws say.

Everything drawn for a photograph depends on its sha256, the seed and what it is drawn for. So neither the order of
the files nor the number of photographs beside it changes what is made of it, except for the choice of a donor.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector_zoo.errors import DatasetError, ImageError
from detector_zoo.evaluation.samples import Sample
from detector_zoo.images import decode, read_file

__all__ = ["Crop", "Photograph", "cut", "donor", "draws", "photographs"]

SMALLEST = 64
"""Pixels a side below which nothing is made of a photograph."""

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


@dataclass(frozen=True, slots=True)
class Photograph:
    """A real photograph and the sha256 of its file."""

    sha256: str
    sample: Sample

    @property
    def group(self) -> str:
        """What a split must not cut: the sample's own group, or the photograph's sha256."""
        return self.sample.group or self.sha256


@dataclass(frozen=True, slots=True)
class Crop:
    """Part of a photograph.

    Attributes:
        pixels: (H, W, 3) uint8, upright.
        cut: Where it lies: ``WxH+X+Y of WxH``, after "reduced by F, FILTER: " where the photograph was reduced.
    """

    pixels: NDArray[np.uint8]
    cut: str


def draws(seed: int, *parts: object) -> np.random.Generator:
    """The generator of everything drawn for ``parts``."""
    digest = hashlib.sha256("\n".join(map(str, (seed, *parts))).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, "<u4"))


def photographs(samples: Iterable[Sample], bad: Callable[[str], None] | None = None) -> list[Photograph]:
    """The real photographs among ``samples``, ordered by sha256, each content once.

    Splices, whose label is real, are left out. A prefix of the list is a fair sample of the set.

    Args:
        samples: Of a data set; those without a sha256 are read and hashed.
        bad: Told in one line which file cannot be read; with None that is an error.

    Raises:
        DatasetError: There is none.
        ImageError: A file cannot be read.
    """
    found: dict[str, Photograph] = {}
    for sample in samples:
        if sample.generated or sample.kind == "splice":
            continue
        try:
            sha256 = sample.sha256 or hashlib.sha256(read_file(sample.path)).hexdigest()
        except ImageError as error:
            if bad is None:
                raise
            bad(str(error))
            continue
        # Of two copies the first by path, whatever the order they come in.
        if sha256 not in found or str(sample.path) < str(found[sha256].sample.path):
            found[sha256] = Photograph(sha256, sample)
    if not found:
        raise DatasetError("the data set has no real photograph")
    return [found[sha256] for sha256 in sorted(found)]


def donor(photograph: Photograph, pool: Sequence[Photograph], rng: np.random.Generator) -> Photograph:
    """Another photograph of the same split, drawn from ``pool`` (ordered by sha256).

    A point on the circle of hashes is drawn and the next photograph taken, so that a photograph that joins the pool
    changes few donors.

    Raises:
        DatasetError: There is no other.
    """
    start = bisect_left(pool, rng.bytes(32).hex(), key=lambda other: other.sha256)
    for step in range(len(pool)):
        other = pool[(start + step) % len(pool)]
        if other.group != photograph.group and other.sample.split == photograph.sample.split:
            return other
    raise DatasetError(f"{photograph.sample.path}: the set has no second photograph to take content from")


def cut(
    photograph: Photograph,
    rng: np.random.Generator,
    *,
    size: int,
    multiple: int,
    reduced: float = 0.0,
    shape: tuple[int, int] | None = None,
) -> Crop:
    """Cut a random crop.

    Args:
        photograph: Decoded here, turned upright.
        rng: Source of every draw.
        size: Longest side of the crop, pixels; a photograph that is smaller gives what it has.
        multiple: The sides are multiples of this.
        reduced: Probability that the photograph is first reduced by a factor in [0.5, 0.85], which removes most of
            its codec's traces.
        shape: (H, W) to get in any case: a smaller photograph is continued by its mirror image.

    Raises:
        ImageError: The file cannot be read.
        DatasetError: The photograph is smaller than `SMALLEST`.
    """
    image = decode(photograph.sample.path).oriented("apply")
    shortest = min(image.size)
    if shortest < max(SMALLEST, multiple):
        raise DatasetError(f"{photograph.sample.path}: {image.width} x {image.height} pixels, too small to cut from")
    where = ""
    # Drawn in any case, so that the share of reduced crops changes nothing else.
    chance, factor, chosen = rng.random(), rng.uniform(0.5, 0.85), rng.integers(len(_FILTERS))
    # Never below half of the wanted size: small photographs are reduced less.
    factor = max(factor, size / 2 / shortest, SMALLEST / shortest)
    if chance < reduced and factor < 0.9:
        name, resample = list(_FILTERS.items())[chosen]
        image = image.resize((round(image.width * factor), round(image.height * factor)), resample)
        where = f"reduced by {factor:.3f}, {name}: "
    pixels = np.asarray(image)
    if shape is not None:
        missing = [max(0, want - have) for want, have in zip(shape, pixels.shape[:2], strict=True)]
        pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    have_height, have_width = pixels.shape[:2]
    height, width = shape or (min(size, side) // multiple * multiple for side in (have_height, have_width))
    top, left = int(rng.integers(have_height - height + 1)), int(rng.integers(have_width - width + 1))
    where += f"{width}x{height}+{left}+{top} of {have_width}x{have_height}"
    return Crop(np.ascontiguousarray(pixels[top : top + height, left : left + width]), where)

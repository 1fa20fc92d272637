"""Random masks of local edits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["SHAPES", "random_mask"]

SHAPES = ("ellipses", "boxes", "strokes", "blob")

_ATTEMPTS = 32


def random_mask(
    size: tuple[int, int], rng: np.random.Generator, area: tuple[float, float] = (0.05, 0.45)
) -> tuple[NDArray[np.bool_], str]:
    """A mask of a random shape at pixel resolution.

    Args:
        size: (H, W), pixels.
        rng: Source of every draw.
        area: Smallest and largest share of the image, 0 < low < high < 1.

    Returns:
        (H, W), true where the edit is; and its shape, one of `SHAPES`: one to three ellipses, one to three boxes,
        one or two broad strokes, or blobs (a smooth random field above a quantile).

    Raises:
        ValueError: ``area`` is no such range.
    """
    low, high = area
    if not 0 < low < high < 1:
        raise ValueError(f"area {area} is no range of shares between 0 and 1")
    shape = SHAPES[rng.integers(len(SHAPES))]
    if shape != "blob":
        for _ in range(_ATTEMPTS):
            mask = _drawn(size, shape, rng)
            if low <= mask.mean() <= high:
                return mask, shape
    # A quantile meets any range, however narrow.
    return _blob(size, rng.uniform(low, high), rng), "blob"


def _drawn(size: tuple[int, int], shape: str, rng: np.random.Generator) -> NDArray[np.bool_]:
    height, width = size
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    if shape == "strokes":
        for _ in range(rng.integers(1, 3)):
            points = rng.uniform(0.1, 0.9, (rng.integers(2, 6), 2)) * (width, height)
            radius = rng.uniform(0.04, 0.12) * min(size)
            line = [(float(x), float(y)) for x, y in points]
            draw.line(line, fill=1, width=max(1, round(2 * radius)), joint="curve")
            for x, y in line:  # round ends
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    else:
        for _ in range(rng.integers(1, 4)):
            w, h = rng.uniform(0.15, 0.65) * width, rng.uniform(0.15, 0.65) * height
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            (draw.ellipse if shape == "ellipses" else draw.rectangle)((x, y, x + w, y + h), fill=1)
    return np.asarray(canvas, bool)


def _blob(size: tuple[int, int], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    height, width = size
    coarse = rng.random((rng.integers(3, 7), rng.integers(3, 7))).astype(np.float32)
    field = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).ravel()
    mask = np.zeros(height * width, bool)
    mask[np.argsort(field, kind="stable")[-max(1, round(share * field.size)) :]] = True
    return mask.reshape(size)

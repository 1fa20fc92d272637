"""Pictures that go into the page itself, as data URLs: nothing is written to a disk and nothing is left to fetch."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from detector_zoo.app.answers import Heat
from detector_zoo.heatmaps import overlay

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["data_url", "examples", "layers", "thumbnail"]

LARGEST = 1024
"""Longest side of a picture on the page, pixels."""
THUMBNAIL = 192


def data_url(content: bytes, kind: str) -> str:
    """``data:`` URL of some bytes.

    Args:
        content: The bytes.
        kind: Their media type.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def thumbnail(image: Image.Image, longest: int = LARGEST) -> str:
    """A JPEG of a picture, no longer than ``longest`` pixels, as a data URL."""
    image = image.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return data_url(buffer.getvalue(), "image/jpeg")


def layers(heat: Heat) -> tuple[str, str]:
    """The picture, and its heatmap as `detector_zoo.heatmaps.overlay` colours it at full opacity.

    Returns:
        Two data URLs of one size; the page blends them.
    """
    scale = min(1.0, LARGEST / max(heat.image.size))
    size = (max(1, round(heat.image.width * scale)), max(1, round(heat.image.height * scale)))
    image = heat.image.resize(size, Image.Resampling.LANCZOS)
    return thumbnail(image), thumbnail(overlay(image, _resized(heat.heat, size), opacity=1.0))


def _resized(heat: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    import numpy as np

    return np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BOX), np.float32)


def examples() -> Path | None:
    """The folder of the example pictures: inside the package in a wheel, else the repository's; None without one."""
    places = [Path(__file__).with_name("examples"), Path(__file__).parents[3] / "examples"]
    return next((place for place in places if (place / "CREDITS.md").is_file()), None)

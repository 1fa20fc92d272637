"""Overlays of a detector's heatmap on the image, as PNG files."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector_zoo.errors import ZooError

_AT_A_TIME = 65536
"""Pixels that `overlay` blends at a time: its intermediate values take some 70 bytes each."""


def target(folder: Path, path: str, sha256: str, detector: str) -> Path:
    """Where an overlay goes: the image's own name for people, its hash so that two names cannot collide."""
    stem = re.sub(r"[^\w.-]+", "_", PurePath(path).stem).lstrip(".")[:80] or "image"
    # A reference to the Hub has slashes, and may be too long for a file's name.
    name = detector if "/" not in detector else re.sub(r"[^\w.@-]+", "_", detector)[:120]
    return folder / f"{stem}.{sha256[:8]}.{name}.png"


def overlay(image: Image.Image, heat: NDArray[np.float32], opacity: float = 0.6) -> Image.Image:
    """Blend a heatmap over an image.

    The image is shown in grey; where the evidence is strongest it turns red. The colour scale spans the map's own
    1st to 99th percentile: it shows where in this image, and cannot be compared between images.

    Args:
        image: RGB, (W, H).
        heat: (H, W), higher where the image looks generated.
        opacity: Of the colour at full evidence, in [0, 1].
    """
    low, high = np.percentile(heat, [1, 99])
    red = np.array([230.0, 30.0, 20.0], np.float32)
    blended = np.empty((image.height, image.width, 3), np.uint8)
    values, greys, pixels = heat.reshape(-1, 1), np.asarray(image.convert("L")).reshape(-1, 1), blended.reshape(-1, 3)
    for start in range(0, len(pixels), _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        strength = np.clip((values[part] - low) / max(high - low, 1e-12), 0, 1) * opacity
        grey = greys[part].astype(np.float32)
        pixels[part] = np.clip(grey * (1 - strength) + red * strength + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(blended)


def save(picture: Image.Image, path: Path) -> None:
    """Write an overlay so that a killed run leaves no half of one.

    Raises:
        ZooError: The folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        raise ZooError(f"{path}: cannot write the heatmap: {error.strerror or error}") from error

"""Give real and generated images the same codec history and the same sizes, so that neither tells the class.

Collections of generated images are PNGs of one size, photographs JPEGs of another; a detector that reads the
JPEG grid, or the size, separates them perfectly and has learnt nothing. One common JPEG at the end does not
cure that: photographs were then compressed twice and generated images once. Hence three steps:

1. a lossless file gets the JPEG generation that a photograph has behind it, with quality and chroma subsampling
   drawn from those of real photographs (`FIRST_GENERATION`);
2. both classes are cropped at a random offset that is no multiple of 8 (the first JPEG's grid falls anywhere)
   to sides drawn from one distribution (`SIDES`);
3. both end in one codec, `FINAL_QUALITY`.

Every draw is seeded by the SHA-256 of the file, so an image is always equalised in the same way.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

__all__ = [
    "FINAL_QUALITY",
    "FIRST_GENERATION",
    "SIDES",
    "equalise",
    "equalise_file",
    "equalised_jpeg",
    "first_generation",
    "reencode",
]

FIRST_GENERATION: tuple[tuple[int, int, int], ...] = (
    (75, 0, 3),
    (75, 1, 2),
    (75, 2, 20),
    (80, 0, 3),
    (80, 1, 4),
    (80, 2, 12),
    (85, 0, 16),
    (85, 1, 6),
    (85, 2, 9),
    (90, 0, 15),
    (90, 1, 14),
    (90, 2, 103),
    (93, 0, 7),
    (93, 1, 9),
    (93, 2, 30),
    (95, 0, 25),
    (95, 1, 7),
    (95, 2, 11),
    (97, 0, 16),
    (97, 1, 31),
    (97, 2, 11),
    (99, 0, 23),
    (99, 1, 7),
    (99, 2, 4),
)
"""JPEG quality, chroma subsampling (0: 4:4:4, 1: 4:2:2, 2: 4:2:0), and how many of 388 real JPEGs have them.

Counted over the quantisation tables of the training photographs (the sum of the luminance table, as a quality
of the IJG's scale, rounded to the nearest listed one); 15 grey or unusually sampled ones are left out.
"""

SIDES = (304, 368)
"""Range of the crops' widths and heights, pixels, both ends included."""

FINAL_QUALITY = 92
"""JPEG quality, 4:2:0, that every equalised image ends in."""

_COUNTS = np.array([count for *_, count in FIRST_GENERATION], float)

Codec = Literal["jpeg", "webp", "png"]


def reencode(image: Image.Image, codec: Codec, quality: int = 90, subsampling: int = 2) -> Image.Image:
    """Encode and decode an RGB image in memory.

    Args:
        image: Any size.
        codec: ``png`` changes no pixel.
        quality: 1 to 100; for JPEG and WebP.
        subsampling: 0 (4:4:4), 1 (4:2:2) or 2 (4:2:0); for JPEG.
    """
    if codec == "png":
        return image.copy()
    buffer = io.BytesIO()
    if codec == "jpeg":
        image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    else:
        image.save(buffer, "WEBP", quality=quality, method=2)
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")


def first_generation(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Compress a lossless image as a camera or an editor would have, drawing from `FIRST_GENERATION`."""
    quality, subsampling, _ = FIRST_GENERATION[rng.choice(len(FIRST_GENERATION), p=_COUNTS / _COUNTS.sum())]
    return reencode(image, "jpeg", quality, subsampling)


def _span(length: int, sides: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """A crop's start, no multiple of 8 where there is room, and its end, along one side of ``length`` pixels."""
    side = min(int(rng.integers(sides[0], sides[1] + 1)), max(1, length - 7))
    start = int(rng.integers(length - side + 1))
    if start % 8 == 0:
        start += 1 if start + side < length else -1 if start else 0
    return start, start + side


def equalise(
    image: Image.Image,
    *,
    has_jpeg_history: bool,
    rng: np.random.Generator,
    sides: Sequence[int] = SIDES,
    final_quality: int | None = FINAL_QUALITY,
) -> Image.Image:
    """Bring one image to the common history.

    Args:
        image: RGB, any size.
        has_jpeg_history: Whether the pixels were JPEG-compressed already, on a grid that starts at (0, 0).
        rng: Source of every draw.
        sides: Smallest and largest side of the crop; an image that is smaller loses at most 7 pixels a side.
        final_quality: Of the last JPEG; None leaves it out.

    Returns:
        RGB, decoded from that last JPEG.
    """
    # Streams of their own, so that images of one seed are cropped alike whatever their history.
    history, position = rng.spawn(2)
    if not has_jpeg_history:
        image = first_generation(image, history)
    left, right = _span(image.width, sides, position)
    top, bottom = _span(image.height, sides, position)
    image = image.crop((left, top, right, bottom))
    return image if final_quality is None else reencode(image, "jpeg", final_quality)


def equalise_file(path: Path, salt: str = "") -> Image.Image:
    """`equalise` a file, seeded by the SHA-256 of its bytes and ``salt``.

    A file counts as compressed before if it is a JPEG. WebP files get a JPEG generation on top of their own:
    their history is longer than the others', which the photographs that are measured on do not have.
    """
    content = path.read_bytes()
    image, rng = _opened(content, salt)
    return equalise(image, has_jpeg_history=_is_jpeg(content), rng=rng)


def equalised_jpeg(path: Path) -> bytes:
    """The JPEG file that `equalise_file` decodes its result from."""
    content = path.read_bytes()
    image, rng = _opened(content, "")
    buffer = io.BytesIO()
    cropped = equalise(image, has_jpeg_history=_is_jpeg(content), rng=rng, final_quality=None)
    cropped.info.clear()  # Pillow would write a JPEG's comment into the copy
    cropped.save(buffer, "JPEG", quality=FINAL_QUALITY, subsampling=2)
    return buffer.getvalue()


def _opened(content: bytes, salt: str) -> tuple[Image.Image, np.random.Generator]:
    digest = hashlib.sha256(content + salt.encode()).digest()
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB"), np.random.default_rng(np.frombuffer(digest, np.uint32))


def _is_jpeg(content: bytes) -> bool:
    return content[:3] == b"\xff\xd8\xff"

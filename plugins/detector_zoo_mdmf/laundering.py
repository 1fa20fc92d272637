"""One random life on the web, for training images of both classes alike."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from detector_zoo.evaluation.equalise import first_generation, reencode

__all__ = ["launder"]

RESAMPLE = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)


def launder(image: Image.Image, compressed: bool, size: int, rng: np.random.Generator) -> Image.Image:
    """One random life on the web: first JPEG, resize, blur, crop, last codec, flip.

    Only an image without a JPEG behind it gets the first one; the other draws do not depend on the image.

    Args:
        image: RGB; sides of at least ``size`` are wanted, smaller ones are reflected.
        compressed: Whether it was JPEG-compressed before.
        size: Side of the crop that comes back.
        rng: Source of every draw.
    """
    first, draws = rng.spawn(2)
    u = draws.random(8)
    scale = draws.uniform(0.5, 1.2) if u[0] < 0.3 else 1.0
    need = int(np.ceil(size / scale)) + 8
    # Cutting first saves the codecs most of their work; the margin leaves the last crop an offset of its own.
    need_w, need_h = min(need, image.width), min(need, image.height)
    left, top = int(u[1] * (image.width - need_w + 1)) // 8 * 8, int(u[2] * (image.height - need_h + 1)) // 8 * 8
    image = image.crop((left, top, left + need_w, top + need_h))
    if not compressed:
        image = first_generation(image, first)
    if scale != 1.0:
        resized = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(resized, RESAMPLE[draws.integers(3)])
    if u[3] < 0.12:
        image = image.filter(ImageFilter.GaussianBlur(draws.uniform(0.3, 1.2)))
    if image.width < size or image.height < size:
        pixels = np.asarray(image)
        pad = [(0, max(0, size - side)) for side in pixels.shape[:2]]
        image = Image.fromarray(np.pad(pixels, [*pad, (0, 0)], "symmetric"))
    left, top = int(u[4] * (image.width - size + 1)), int(u[5] * (image.height - size + 1))
    image = image.crop((left, top, left + size, top + size))
    quality = int(draws.triangular(60, 97, 101))
    if u[6] < 0.56:
        image = reencode(image, "jpeg", min(quality, 100), int(draws.integers(3)))
    elif u[6] < 0.86:
        image = reencode(image, "webp", min(quality, 100))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if u[7] < 0.5 else image

"""The perturbations that the core registers; see `detector_zoo.evaluation.perturbations`.

Where a real chain (a screenshot, an upload) has no published constants, those here are chosen and stated.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter, features

from detector_zoo.evaluation.equalise import reencode

__all__ = [
    "avif",
    "blur",
    "crop",
    "jpeg",
    "noise",
    "none",
    "resize_bicubic",
    "resize_bilinear",
    "resize_lanczos",
    "screenshot",
    "social_media",
    "webp",
]

Rng = np.random.Generator
_Filter = Image.Resampling


def none(image: Image.Image, *, rng: Rng) -> Image.Image:
    """The image as it is."""
    return image


def jpeg(image: Image.Image, quality: float, *, rng: Rng) -> Image.Image:
    """JPEG, ``quality`` 1 to 100 of the IJG's scale, 4:2:0."""
    return reencode(image, "jpeg", _quality(quality))


def webp(image: Image.Image, quality: float, *, rng: Rng) -> Image.Image:
    """Lossy WebP, ``quality`` 1 to 100."""
    return reencode(image, "webp", _quality(quality))


def avif(image: Image.Image, quality: float, *, rng: Rng) -> Image.Image:
    """AVIF, ``quality`` 1 to 100, 4:2:0, at the encoder's fastest speed but one."""
    if not features.check("avif"):
        raise ValueError("this Pillow cannot write AVIF (pip install 'pillow>=11.3')")
    buffer = io.BytesIO()
    # One thread: with several the encoder cuts the picture into tiles, and the result depends on the machine.
    image.save(buffer, "AVIF", quality=_quality(quality), speed=9, max_threads=1, autotiling=False)
    with Image.open(buffer) as decoded:
        return decoded.convert("RGB")


def resize_bilinear(image: Image.Image, scale: float, *, rng: Rng) -> Image.Image:
    """Both sides times ``scale`` (above 0, up to 8), antialiased."""
    return _resize(image, scale, _Filter.BILINEAR)


def resize_bicubic(image: Image.Image, scale: float, *, rng: Rng) -> Image.Image:
    """Both sides times ``scale`` (above 0, up to 8), antialiased."""
    return _resize(image, scale, _Filter.BICUBIC)


def resize_lanczos(image: Image.Image, scale: float, *, rng: Rng) -> Image.Image:
    """Both sides times ``scale`` (above 0, up to 8), antialiased."""
    return _resize(image, scale, _Filter.LANCZOS)


def crop(image: Image.Image, share: float, *, rng: Rng) -> Image.Image:
    """A piece of ``share`` (above 0, up to 1) of each side, at a random place."""
    if not 0 < share <= 1:
        raise ValueError(f"a crop keeps a share above 0 and up to 1 of each side, not {share:g}")
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def blur(image: Image.Image, sigma: float, *, rng: Rng) -> Image.Image:
    """Gaussian blur of ``sigma`` pixels (0 to 100)."""
    if not 0 <= sigma <= 100:
        raise ValueError(f"sigma must lie in 0 to 100 pixels, not {sigma:g}")
    return image.filter(ImageFilter.GaussianBlur(sigma))


def noise(image: Image.Image, sigma: float, *, rng: Rng) -> Image.Image:
    """Gaussian noise of ``sigma`` grey levels (0 to 255), independent in every pixel and channel."""
    if not 0 <= sigma <= 255:
        raise ValueError(f"sigma must lie in 0 to 255 grey levels, not {sigma:g}")
    pixels = np.asarray(image, np.float32)
    noisy = pixels + np.float32(sigma) * rng.standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def screenshot(image: Image.Image, scale: float = 0.8, *, rng: Rng) -> Image.Image:
    """Shown at ``scale`` (above 0, up to 8; bicubic), 1 to 7 pixels lost at each edge, kept without loss."""
    shown = _resize(image, scale, _Filter.BICUBIC)
    left, top, right, bottom = (int(pixels) for pixels in rng.integers(1, 8, 4))
    return shown.crop((left, top, max(shown.width - right, left + 1), max(shown.height - bottom, top + 1)))


def social_media(image: Image.Image, side: float = 1080, *, rng: Rng) -> Image.Image:
    """Uploaded: the longer side at most ``side`` pixels (Lanczos), sharpened a little, JPEG 72 4:2:0."""
    if side < 1:
        raise ValueError(f"a side has at least 1 pixel, not {side:g}")
    scale = side / max(image.size)
    small = _resize(image, scale, _Filter.LANCZOS) if scale < 1 else image
    return reencode(small.filter(ImageFilter.UnsharpMask(radius=0.8, percent=40, threshold=0)), "jpeg", 72)


def _quality(quality: float) -> int:
    if not 1 <= quality <= 100:
        raise ValueError(f"a quality lies in 1 to 100, not {quality:g}")
    return round(quality)


def _resize(image: Image.Image, scale: float, kernel: _Filter) -> Image.Image:
    if not 0 < scale <= 8:
        raise ValueError(f"a scale lies above 0 and up to 8, not {scale:g}")
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), kernel)

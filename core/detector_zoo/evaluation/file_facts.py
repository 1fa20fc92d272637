"""What a file tells without its pixels: codec, quantisation, size, chroma subsampling, metadata."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image, JpegImagePlugin

from detector_zoo.pillow_plugins import hide_warnings

__all__ = ["GROUPS", "Facts", "file_facts"]

Facts = Mapping[str, Mapping[str, float]]
"""Numbers by group and name; a name that a file lacks counts as -1."""

GROUPS = ("codec", "quantisation", "size", "subsampling", "metadata")
"""Groups of facts."""

_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")
_EXIF = {0x010F: "make", 0x0131: "software", 0x9003: "taken", 0x8769: "camera settings", 0x8825: "position"}
_INFO = (
    "icc_profile",
    "dpi",
    "jfif",
    "adobe",
    "comment",
    "xmp",
    "gamma",
    "srgb",
    "chromaticity",
    "progressive",
    "interlace",
    "transparency",
    "loop",
)
# Text chunks in which programs that generate or edit images leave their name or their prompt.
_TEXT = ("parameters", "prompt", "workflow", "Software", "Comment", "Description", "Title", "Author")


def file_facts(data: bytes) -> Facts:
    """Read a header.

    Args:
        data: A file that `detector_zoo.images.decode` takes. How many bytes it has is left out: at one quality that
            is how busy the picture is, which is content.

    Returns:
        For each of `GROUPS` names and numbers.
    """
    hide_warnings()
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        tables = getattr(image, "quantization", None) or {}
        return {
            "codec": {f"is {'JPEG' if image.format == 'MPO' else image.format}": 1.0, "lossless WebP": _lossless(data)},
            "quantisation": {
                f"table {number}, {part}": float(sum(table[start:stop]))
                for number, table in tables.items()
                for part, start, stop in (("low", 0, 16), ("middle", 16, 40), ("high", 40, 64))
            },
            "size": {
                "width": float(width),
                "height": float(height),
                "pixels": float(width * height),
                "aspect": width / height,
                "width mod 8": float(width % 8),
                "height mod 8": float(height % 8),
                "sides mod 64": float(width % 64 == 0 and height % 64 == 0),
            },
            "subsampling": {_subsampling(image): 1.0},
            "metadata": _metadata(image),
        }


def _lossless(data: bytes) -> float:
    return float(data[:4] == b"RIFF" and data[12:16] == b"VP8L")


def _subsampling(image: Image.Image) -> str:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return "not a JPEG"
    return _SUBSAMPLING.get(JpegImagePlugin.get_sampling(image), "grey or unusual")


def _metadata(image: Image.Image) -> dict[str, float]:
    facts = {f"mode {mode}": float(image.mode == mode) for mode in _MODES}
    facts |= {name: float(bool(image.info.get(name))) for name in _INFO}
    facts |= {f"text {name}": float(isinstance(image.info.get(name), str)) for name in _TEXT}
    resolution = image.info.get("dpi")
    facts["resolution"] = float(resolution[0]) if isinstance(resolution, tuple) else 0.0
    facts["profile bytes"] = float(len(image.info.get("icc_profile") or b""))
    # Metadata can be damaged in ways for which Pillow has no one exception; the picture itself was decoded.
    try:
        exif = image.getexif()
        facts["EXIF tags"] = float(len(exif))
        facts["EXIF orientation"] = float(exif.get(0x0112, 0) or 0)
        facts |= {f"EXIF {name}": float(tag in exif) for tag, name in _EXIF.items()}
    except Exception:  # noqa: BLE001
        facts["EXIF unreadable"] = 1.0
    return facts

"""Pillow's plugins, without what Pillow shares between all threads of a process.

`open_image` reads a header and `with_limit` keeps Pillow's own pixel limit out of the way; everything that goes wrong
is a `Refused` with its cause in plain words. Used by `detector_zoo.images` and by nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import threading
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

from PIL import Image, ImageFile

from detector_zoo.sources import printable

__all__ = ["Refused", "Stream", "damaged", "ends_early", "hide_warnings", "open_image", "too_many", "with_limit"]

_T = TypeVar("_T")
_Opener = tuple[str, Callable[[io.BytesIO, str], ImageFile.ImageFile], Callable[[bytes], bool | str]]

# Formats that hold photographs and that Pillow decodes in its own process. Left out on purpose: EPS starts
# Ghostscript, WMF and the scientific formats hand the file to whatever handler is registered, and TGA, IM and
# their like have no signature, so that any bytes may be taken for one.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM", "ICO", "QOI")


class Refused(Exception):  # noqa: N818  never leaves the two modules
    """The cause of an `ImageError`, before the name of the image is put in front."""

    def __init__(self, cause: str, hint: str | None = None) -> None:
        super().__init__(cause)
        self.hint = hint


class Stream(io.BytesIO):
    """Bytes that remember whether a reader came to their end; used to tell truncated files from damaged ones."""

    ended = False
    short = False

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes, and remember if there were fewer."""
        data = super().read(size)
        if size is not None and len(data) < size:
            self.short = True
            self.ended = self.ended or not data
        return data


@functools.cache
def _openers() -> tuple[_Opener, ...]:
    """The plugins of `_FORMATS` that this Pillow has."""
    with contextlib.suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(ImportError):
        import_module("pillow_avif")
    Image.init()
    table = [(name, *Image.OPEN[name]) for name in _FORMATS if name in Image.OPEN]
    return tuple((name, factory, accept) for name, factory, accept in table if accept is not None)


def open_image(data: bytes, stream: Stream) -> ImageFile.ImageFile:
    """Read the header.

    Not by ``Image.open``: that one checks the size against ``Image.MAX_IMAGE_PIXELS``, a variable of the whole
    process, and changing it while other threads decode (the host's among them) would be a race. Going through
    Pillow's table of plugins leaves it alone, and says why a plugin that knows the signature failed.
    """
    for format_, factory, accept in _openers():
        # The catch is broad because there is no list of what a plugin may raise: on hostile bytes Pillow has been
        # seen to raise SyntaxError, struct.error, ValueError, KeyError, OverflowError, zlib.error, MemoryError, ...
        try:
            if accept(data[:16]) is not True:
                continue
            stream.seek(0)
            return factory(stream, "")
        except Image.DecompressionBombError:
            raise
        except Exception as error:
            raise damaged(format_, error, stream.short or ends_early(data)) from error
    guess = _guess(data)
    hint = "pip install pillow-heif" if guess == "HEIC" else None
    content = f"content looks like {guess}" if guess else "unknown content"
    raise Refused(f"not an image that Pillow can read ({content})", hint)


def hide_warnings() -> None:
    """Put a filter for Pillow's own modules in front.

    What Pillow warns of is refused or told in a note here; left alone, a directory of odd files would flood the
    terminal, and under ``-W error`` a warning would break decoding. The filter stays, because the alternative is
    worse: ``warnings.catch_warnings`` swaps the filters of the whole process, and two threads that leave it in
    another order than they entered it leave the wrong filters behind for good.
    """
    if not warnings.filters or warnings.filters[0] != _WARNING_FILTER:
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)


_PILLOW_MODULES = r"PIL\."
_WARNING_FILTER = ("ignore", None, Warning, re.compile(_PILLOW_MODULES), 0)
_PILLOW_LIMIT_LOCK = threading.Lock()


def with_limit(max_pixels: int, work: Callable[[], _T]) -> _T:
    """Do ``work``; where Pillow refuses by its own limit, do it once more under ours.

    A few plugins (WebP above all) compare sizes with ``Image.MAX_IMAGE_PIXELS`` themselves, at twice its value.
    Only for such an image is the variable changed, by one thread at a time; others that decode meanwhile are not
    affected, since they are held to ``max_pixels`` by `_require_pixels`.
    """
    with contextlib.suppress(Image.DecompressionBombError):
        return work()
    with _PILLOW_LIMIT_LOCK:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels // 2 + 1
        try:
            return work()
        except Image.DecompressionBombError as error:
            pixels = re.search(r"\d+", str(error))
            raise Refused(too_many(int(pixels[0]) if pixels else max_pixels + 1, max_pixels)) from error
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def too_many(pixels: int, max_pixels: int) -> str:
    """The cause, where an image is too large."""
    return f"{pixels:,} pixels; the limit is {max_pixels:,} (--max-pixels)"


def damaged(format_: str, error: Exception, truncated: bool) -> Refused:
    """The cause, where a plugin gave up on a file."""
    text = str(error)
    if isinstance(error, MemoryError):
        return Refused("decoding needs more memory than there is")
    if truncated or "truncated" in text.lower():
        return Refused("the file ends early (truncated)")
    return Refused(f"damaged {format_} data ({printable(text)[:200] or type(error).__name__})")


def ends_early(data: bytes) -> bool:
    """Whether a container (RIFF, ISO base media, JPEG 2000) declares more bytes than there are."""
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data[:4] == b"\xff\x4f\xff\x51" or data[4:8] == b"jP  ":
        return b"\xff\xd9" not in data  # the end of the codestream; its packets cannot contain these bytes
    position = 0
    if data[4:8] == b"ftyp":
        while position + 8 <= len(data):
            size = int.from_bytes(data[position : position + 4], "big")
            if size == 1:
                size = int.from_bytes(data[position + 8 : position + 16], "big")
            if size < 8:  # 0 stands for "to the end of the file"; other values are damage
                return False
            position += size
    return position > len(data)


_SIGNATURES = (
    (rb"\s*(?:<!doctype html|<html|<head|<body)", "HTML"),
    (rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<svg", "SVG"),
    (rb"\s*<\?xml", "XML"),
    (rb"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched"),
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "gzip"),
    (rb"\x1aE\xdf\xa3", "video"),
    (rb"RIFF....AVI ", "video"),
    (rb"....ftyp(?:hei|hev|mif1|msf1)", "HEIC"),
    (rb"....ftypavi[fs]", "AVIF, which this Pillow was built without"),
    (rb"....ftyp", "video"),
    (rb"\xff\x0a|....JXL ", "JPEG XL"),
    (rb"8BPS", "a Photoshop document"),
    (rb"\x00+\Z", "nothing but zeros"),
)


def _guess(data: bytes) -> str:
    """What a file that is no image is, for the message; "" if unknown."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf")
    for pattern, name in _SIGNATURES:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return name
    with contextlib.suppress(UnicodeDecodeError):
        if not re.search(rb"[\x00-\x08\x0e-\x1f]", head) and head[:1000].decode("utf-8", "strict"):
            return "text"
    return ""

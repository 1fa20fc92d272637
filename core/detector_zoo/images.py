"""One safe decoder: a path, bytes, an array or a PIL image to RGB, or an `ImageError` that says why not.

How colours become RGB. A detector was trained on what its authors' loader made of a file, and nearly all of them
used torchvision's ``pil_loader``, which is ``Image.open(file).convert("RGB")``. So the same is done here:

- alpha is dropped, not composited: the colour under a transparent pixel counts;
- a palette is looked up, its transparency dropped likewise;
- CMYK and YCCK are converted by Pillow's arithmetic, without a colour profile;
- grey (L, LA, 1-bit) is repeated in all three channels;
- embedded colour profiles are ignored;
- of several frames or pages, the first is read.

One exception: more than 8 bits in a grey channel. ``convert("RGB")`` clips such values to white, so that a 16-bit
picture would be scored as a blank one. Here 16-bit grey keeps its high byte, exactly what Pillow does with 16-bit
colour. Integers of 32 bits (mode I) carry no range: up to 255 they are taken as they are, up to 65,535 as 16 bits,
beyond that (or negative) they are refused. Floats (mode F) must be finite and are taken as [0, 1] or, if any is
above 1, as [0, 255]; others are refused.

EXIF orientation is reported and not applied; see `DecodedImage.oriented`. TIFF is the exception that Pillow makes:
its plugin turns the picture by the file's own orientation tag while loading, for the authors as for us, and the
orientation left to report is 1.

Whatever is not plain is told in `DecodedImage.note`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageFile

from detector_zoo.errors import ImageError
from detector_zoo.pillow_plugins import (
    Refused,
    Stream,
    damaged,
    ends_early,
    hide_warnings,
    open_image,
    too_many,
    with_limit,
)
from detector_zoo.sources import SUFFIX_FORMATS, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DEFAULT_MAX_PIXELS", "DecodedImage", "decode", "read_file"]

DEFAULT_MAX_PIXELS = 180_000_000
"""Pixels (width times height) above which an image is refused unless the caller raises the limit."""

MAX_BYTES = 1 << 30

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image, ready to be scored.

    Attributes:
        image: Mode RGB, EXIF orientation not applied, no metadata: the pixels and nothing else.
        sha256: Of the file's bytes; of the size and the RGB bytes for an array or a PIL image.
        format: Pillow's name of the content's format, or "array".
        orientation: EXIF orientation, 1 to 8; 1 where there is none or it is not valid.
        note: What a reader of the score must know, such as "first of 12 frames"; several joined by "; ".
    """

    image: Image.Image
    sha256: str
    format: str
    orientation: int
    note: str

    def oriented(self, policy: str) -> Image.Image:
        """The image as a detector wants it.

        Args:
            policy: "apply" to turn the image upright by its EXIF orientation, "ignore" to take the pixels as stored.

        Raises:
            ValueError: Another policy.
        """
        if policy not in ("apply", "ignore"):
            raise ValueError(f"orientation policy {policy!r} is neither 'apply' nor 'ignore'")
        if policy == "ignore" or self.orientation == 1:
            return self.image
        return self.image.transpose(_TURNS[self.orientation])


def decode(
    source: str | os.PathLike[str] | bytes | NDArray[Any] | Image.Image,
    *,
    name: str | None = None,
    sha256: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> DecodedImage:
    """Decode an image completely, or refuse it. Safe to call from many threads.

    Args:
        source: A path; the bytes of a file; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or float in
            [0, 1]; or a PIL image of any mode, which is left as it is (one that is lazily opened is loaded).
        name: For bytes: the path that they were read from, for messages and notes.
        sha256: For bytes: their hash, when the caller has it already.
        max_pixels: Largest width times height. Checked before a pixel is decoded.

    Returns:
        The image. The same pixels give the same image whatever way they come.

    Raises:
        ImageError: One line, ``PATH: cause`` (``<bytes>``, ``<array>`` or ``<image>`` where there is no path).
        TypeError: ``source`` is of another type.
    """
    path = os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else name or ""
    name = printable(path) if path else "<bytes>"
    hide_warnings()
    try:
        if isinstance(source, (str, os.PathLike, bytes)):
            data = source if isinstance(source, bytes) else read_file(source)
            return _decode_file(data, sha256, PurePath(path).suffix.lower(), max_pixels)
        if isinstance(source, Image.Image):
            name = printable(os.fsdecode(getattr(source, "filename", "") or "<image>"))
            return _decode_pil(source, max_pixels)
        # Whoever has an array has imported numpy.
        if "numpy" in sys.modules and isinstance(source, sys.modules["numpy"].ndarray):
            name = "<array>"
            return _decode_array(source, max_pixels)
    except Refused as refused:
        raise ImageError(f"{name}: {refused}", hint=refused.hint) from refused.__cause__
    raise TypeError(f"an image must be a path, bytes, an array or a PIL image, not {type(source).__name__}")


def read_file(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file; nothing else is opened, so that a pipe or a device can neither block nor be disturbed.

    Raises:
        ImageError: The file is missing, empty, larger than ``max_bytes``, not a regular file, or cannot be read.
    """
    name = printable(os.fsdecode(path))
    try:
        _require_regular(os.stat(path), max_bytes)  # noqa: PTH116  Path("") would be the directory
        # Should the file be replaced by a pipe at this very moment, O_NONBLOCK keeps the opening from waiting.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb") as stream:
            size = _require_regular(os.fstat(stream.fileno()), max_bytes)
            data = stream.read(size + 1)
        if len(data) > size:
            raise Refused("the file grew while it was read")
    except Refused as refused:
        raise ImageError(f"{name}: {refused}", hint=refused.hint) from None
    except FileNotFoundError as error:
        broken = os.path.islink(path)  # noqa: PTH114
        raise ImageError(f"{name}: {'a symbolic link to a missing file' if broken else 'no such file'}") from error
    except PermissionError as error:
        raise ImageError(f"{name}: permission denied") from error
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a NUL in the path
        raise ImageError(f"{name}: not a valid path ({error})") from error
    return data


def _require_regular(status: os.stat_result, max_bytes: int) -> int:
    mode = status.st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise Refused(f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a file")
    if status.st_size == 0:
        raise Refused("the file is empty")
    if status.st_size > max_bytes:
        raise Refused(f"{status.st_size:,} bytes; the limit is {max_bytes:,}")
    return status.st_size


def _require_pixels(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise Refused(too_many(size[0] * size[1], max_pixels))
    if size[0] * size[1] == 0:
        raise Refused(f"no pixels ({size[0]} x {size[1]})")


def _decode_array(array: NDArray[Any], max_pixels: int) -> DecodedImage:
    import numpy as np

    shape = array.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise Refused(f"shape {shape} is none of (H, W), (H, W, 1), (H, W, 3), (H, W, 4)")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise Refused(f"dtype {array.dtype} is neither uint8 nor float in [0, 1]")
    _require_pixels((shape[1], shape[0]), max_pixels)
    if array.dtype != np.uint8:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # NaN compares false
            raise Refused(f"{array.dtype} values from {low:g} to {high:g}; floats must lie in [0, 1]")
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    if len(shape) == 3 and shape[2] == 1:
        array = array[:, :, 0]
    rgb, notes = _to_rgb(Image.fromarray(np.ascontiguousarray(array)), "array", "")
    return DecodedImage(rgb, _pixel_hash(rgb), "array", 1, "; ".join(notes))


def _decode_pil(source: Image.Image, max_pixels: int) -> DecodedImage:
    _require_strict_pillow()
    _require_pixels(source.size, max_pixels)
    rgb, orientation, notes = with_limit(max_pixels, lambda: _load(source, max_pixels, lambda: False))
    return DecodedImage(rgb, _pixel_hash(rgb), source.format or "array", orientation, "; ".join(notes))


def _pixel_hash(rgb: Image.Image) -> str:
    digest = hashlib.sha256(b"RGB %d x %d\n" % rgb.size)
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def _decode_file(data: bytes, sha256: str | None, suffix: str, max_pixels: int) -> DecodedImage:
    if not data:
        raise Refused("the file is empty")
    opened, rgb, orientation, notes = with_limit(max_pixels, lambda: _open_and_load(data, max_pixels))
    format_ = "JPEG" if opened == "MPO" else opened  # a camera's JPEG with further pictures behind the first
    if SUFFIX_FORMATS.get(suffix, format_) != format_:
        notes.append(f"content is {format_}, extension says {suffix}")
    return DecodedImage(rgb, sha256 or hashlib.sha256(data).hexdigest(), format_, orientation, "; ".join(notes))


def _open_and_load(data: bytes, max_pixels: int) -> tuple[str, Image.Image, int, list[str]]:
    _require_strict_pillow()
    stream = Stream(data)
    image = open_image(data, stream)
    _require_pixels(image.size, max_pixels)
    if image.format == "JPEG2000" and ends_early(data):  # OpenJPEG fills what a missing last byte leaves open
        raise Refused("the file ends early (truncated)")
    return (image.format or "", *_load(image, max_pixels, lambda: stream.ended or ends_early(data)))


def _require_strict_pillow() -> None:
    # Pillow has this switch for the whole process and asks it while it decodes, so it can be neither overruled for
    # one image nor turned off for a moment without a race with whoever turned it on.
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise Refused(
            "Pillow is set to fill missing pixels with grey, and such an image must not be scored",
            "something in this process sets PIL.ImageFile.LOAD_TRUNCATED_IMAGES; it has to stay False",
        )


def _load(image: Image.Image, max_pixels: int, truncated: Callable[[], bool]) -> tuple[Image.Image, int, list[str]]:
    """Decode the pixels: (RGB, orientation, notes)."""
    # Broad for the same reason as in open_image.
    try:
        frames, frame, raw = getattr(image, "n_frames", 1), image.tell(), _raw_mode(image)
        image.load()
        _require_pixels(image.size, max_pixels)  # an ICO may hold a larger picture than its directory says
        rgb, notes = _to_rgb(image, image.format or "", raw)
    except (Image.DecompressionBombError, Refused):
        raise
    except Exception as error:
        raise damaged(image.format or "image", error, truncated()) from error
    if frames > 1:
        notes.insert(0, f"{'first' if frame == 0 else f'number {frame + 1}'} of {frames} frames")
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  the pixels are whole; what is lost is told
        orientation = 1
        notes.append("EXIF unreadable, taken as upright")
    return rgb, orientation if orientation in _TURNS else 1, notes


def _raw_mode(image: Image.Image) -> str:
    """How the samples lie in the file, as far as the plugin tells; "" once an image is loaded."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _to_rgb(image: Image.Image, format_: str, raw: str) -> tuple[Image.Image, list[str]]:
    notes = []
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if image.mode == "CMYK":
        notes.append("CMYK converted to RGB without a colour profile")
    if image.mode == "F" or image.mode.startswith("I"):
        image, note = _to_8_bits(image, format_, raw)
        notes.append(note)
    elif ";16" in raw:
        notes.append("16 bits a channel reduced to 8")
    if alpha:
        notes.append("alpha dropped")
    rgb = image.convert("RGB")
    rgb.info = {}  # a detector sees the same thing whether it came from a file or from an array
    return rgb, notes


def _to_8_bits(image: Image.Image, format_: str, raw: str) -> tuple[Image.Image, str]:
    """Grey of more than 8 bits to mode L; see the module's docstring."""
    import numpy as np

    values: NDArray[Any] = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 255):  # NaN compares false
            raise Refused(f"float pixels from {low:g} to {high:g}; only [0, 1] and [0, 255] are understood")
        unit = high <= 1
        note = f"float pixels taken as [0, {1 if unit else 255}]"
        grey = np.rint(values.astype(np.float64) * (255 if unit else 1))
    elif raw == "I;12":
        grey, note = values >> 4, "12 bits a channel reduced to 8"
    elif image.mode != "I" or format_ in ("PNG", "PPM"):  # what Pillow opens as mode I from these is 16 bits
        grey, note = values >> 8, "16 bits a channel reduced to 8"
    elif low < 0 or high > 65535:
        raise Refused(f"32-bit pixels from {low:,} to {high:,}; only ranges within 0 to 65,535 are understood")
    elif high > 255:
        grey, note = values >> 8, "32-bit pixels taken as 16 bits and reduced to 8"
    else:
        grey, note = values, "32-bit pixels taken as 8 bits"
    return Image.fromarray(grey.astype(np.uint8)), note

"""What a file tells without a detector: codec, quality, size, metadata, credentials.

All of it was written by whoever made the file, and anybody can change it; it is context for a verdict, not evidence.
Whatever is damaged or hostile becomes a line, never an error: the pixels were decoded already.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin

from detector_zoo import images
from detector_zoo.app import credentials
from detector_zoo.app.credentials import Credentials
from detector_zoo.pillow_plugins import hide_warnings
from detector_zoo.plain import one_line, plain

__all__ = ["FileFacts", "read", "safe_name", "shown"]

_T = TypeVar("_T")
_NO_TEXT: Mapping[str, str] = {}
_NO_EXIF: tuple[Mapping[str, str], bool] = (_NO_TEXT, False)
_NO_QUALITY: tuple[int | None, bool | None] = (None, None)

_LIMIT = 300
"""Characters of any text that a file brings."""
_ENTRIES = 12
_NAME = 100

_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
_EXIF = {
    "camera": (ExifTags.Base.Make, ExifTags.Base.Model),
    "lens": (ExifTags.Base.LensModel,),
    "software": (ExifTags.Base.Software,),
    "taken": (ExifTags.Base.DateTimeOriginal,),
    "changed": (ExifTags.Base.DateTime,),
    "artist": (ExifTags.Base.Artist,),
    "description": (ExifTags.Base.ImageDescription,),
    "comment": (ExifTags.Base.UserComment,),
}
_NAMES = (
    r"stable.?diffusion|\bsdxl\b|comfyui|automatic1111|invoke.?ai\b|novelai|midjourney|\bdall[·•'’ -]e\b|adobe.firefly"
    r"|\bflux[. -]?[12]\b|black.forest.labs|google.imagen|\bimagen.?[1-9]\b|gpt.?image|openai|leonardo\.ai"
    r"|google.gemini|fooocus|trainedAlgorithmicMedia|made with google ai"
)
_ANYWHERE = re.compile(_NAMES, re.IGNORECASE)
_AS_SOFTWARE = re.compile(rf"{_NAMES}|\b(?:dall.?e|firefly|flux|imagen|gemini|ideogram|diffusers)\b", re.IGNORECASE)
"""Words that are also just words, in one language or another, count only where a program writes its name."""
_SOFTWARE_KEYS = ("software", "source", "creator", "generator", "creatortool")
_GENERATOR_KEYS = ("parameters", "prompt", "workflow", "sd-metadata", "invokeai_metadata", "Dream", "generation_data")
"""Text chunks in which programs that generate pictures leave their settings."""
_SOURCE_TYPE = re.compile(rb"digitalsourcetype/(\w{0,40}algorithmic\w{0,20})", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """Facts of one file.

    Attributes:
        name: Base name, printable.
        sha256: Of the bytes.
        bytes: Size.
        format: Of the content, such as "JPEG".
        width: Pixels, as stored.
        height: Pixels, as stored.
        mode: Pillow's, such as "RGB".
        quality: JPEG quality, 1 to 100 of the IJG's scale, whose quantisation tables are the nearest; None for
            other formats.
        standard_tables: Whether the tables are exactly those of that quality; None for other formats.
        subsampling: Of a JPEG's chroma, such as "4:2:0", or "".
        progressive: Whether it is a progressive JPEG.
        orientation: By EXIF, 1 to 8; 1 is upright.
        exif: Camera, software, dates and the like, as far as there.
        gps: Whether EXIF holds a position, which is not shown.
        icc: Colour profile, or "".
        xmp: Whether there is XMP.
        text: Text chunks and comments by their keys.
        generators: Lines in which the metadata names a program that generates pictures.
        credentials: C2PA.
        notes: What decoding had to say, and what could not be read.
    """

    name: str
    sha256: str
    bytes: int
    format: str
    width: int
    height: int
    mode: str = ""
    quality: int | None = None
    standard_tables: bool | None = None
    subsampling: str = ""
    progressive: bool = False
    orientation: int = 1
    exif: Mapping[str, str] = field(default_factory=dict)
    gps: bool = False
    icc: str = ""
    xmp: bool = False
    text: Mapping[str, str] = field(default_factory=dict)
    generators: tuple[str, ...] = ()
    credentials: Credentials
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of every fact worth a line, for people; printable, of some 400 characters at most."""
        found = [
            ("file", self.name),
            ("content", self._content()),
            ("size", f"{self.width} x {self.height} pixels, {self.bytes:,} bytes"),
        ]
        if self.orientation != 1:
            found.append(("EXIF orientation", f"{self.orientation}: stored turned or mirrored"))
        found += [(f"EXIF {key}", value) for key, value in self.exif.items()]
        if self.gps:
            found.append(("EXIF position", "present, not shown"))
        if self.icc:
            found.append(("colour profile", self.icc))
        if self.xmp:
            found.append(("XMP", "present"))
        found += [(f"text {key!r}", value) for key, value in self.text.items()]
        found += [("names a generator", line) for line in self.generators]
        found.append(("C2PA credentials", self.credentials.line))
        return found + [("note", note) for note in self.notes]

    def _content(self) -> str:
        if self.quality is None:
            return f"{self.format}, {self.mode}"
        exactly = "" if self.standard_tables else "about "
        kind = "progressive, " if self.progressive else ""
        return f"{self.format}, {kind}quality {exactly}{self.quality}, {self.subsampling or 'grey'}, {self.mode}"

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        plain_ones = {
            name: getattr(self, name)
            for name in self.__slots__
            if name not in ("exif", "text", "generators", "credentials", "notes")
        }
        return plain_ones | {
            "exif": dict(self.exif),
            "text": dict(self.text),
            "generators": list(self.generators),
            "credentials": self.credentials.to_dict(),
            "notes": list(self.notes),
        }


def shown(value: object, limit: int = _LIMIT) -> str:
    """A stranger's value on one printable line of at most about ``limit`` characters."""
    if isinstance(value, bytes):
        value = value[: 4 * limit].removeprefix(b"ASCII\0\0\0").removeprefix(b"UNICODE\0").replace(b"\0", b"")
        value = value.decode("utf-8", "replace")
    elif isinstance(value, tuple | list):
        value = ", ".join(shown(item, 20) for item in value[:8])
    return plain(str(value)[: 4 * limit].strip("\0 \r\n\t"), limit)


def safe_name(name: str) -> str:
    """The base name of what a client calls its file, printable and short; "image" where nothing is left."""
    base = re.split(r"[/\\]", name[-4096:])[-1].strip()
    if base in ("", ".", ".."):
        return "image"
    if len(base) > _NAME:  # the extension is worth keeping
        base = f"{base[: _NAME - 21]}…{base[-20:]}"
    return plain(base)


def read(data: bytes, decoded: images.DecodedImage, name: str) -> FileFacts:
    """The facts of a file that was decoded.

    Args:
        data: The file's bytes.
        decoded: What `images.decode` made of them.
        name: As its owner calls it.
    """
    notes = [part for part in decoded.note.split("; ") if part]
    found: dict[str, Any] = {}
    hide_warnings()
    try:
        with Image.open(io.BytesIO(data), formats=[decoded.format]) as image:
            found = dict(_header(image, notes))
            mime = Image.MIME.get("JPEG" if image.format == "MPO" else image.format or "")
    # Damaged in ways for which Pillow has no one exception; here and below the picture itself was decoded.
    except Exception as error:  # noqa: BLE001
        mime = Image.MIME.get(decoded.format)
        notes.append(f"header unreadable: {one_line(error, _LIMIT)}")
    return FileFacts(
        name=safe_name(name),
        sha256=decoded.sha256,
        bytes=len(data),
        format=decoded.format,
        width=decoded.image.width,
        height=decoded.image.height,
        orientation=decoded.orientation,
        credentials=credentials.read(data, mime),
        notes=tuple(notes),
        **found,
    )


def _header(image: Image.Image, notes: list[str]) -> Iterator[tuple[str, Any]]:
    info = {key: value for key, value in image.info.items() if isinstance(key, str)}
    exif, gps = _guarded("EXIF", notes, lambda: _exif(image), _NO_EXIF)
    text = _guarded("text", notes, lambda: _text(info), _NO_TEXT)
    xmp = _xmp(info)
    yield "mode", image.mode
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        quality, exact = _guarded("quantisation tables", notes, lambda: _quality(image.quantization), _NO_QUALITY)
        yield "quality", quality
        yield "standard_tables", exact
        yield "subsampling", _SUBSAMPLING.get(JpegImagePlugin.get_sampling(image), "" if image.mode == "L" else "other")
        yield "progressive", bool(info.get("progressive"))
    yield "exif", exif
    yield "gps", gps
    yield "icc", _guarded("colour profile", notes, lambda: _icc(info.get("icc_profile")), "")
    yield "xmp", bool(xmp)
    yield "text", text
    yield "generators", tuple(_generators(exif, text, info, xmp))


def _guarded(what: str, notes: list[str], work: Callable[[], _T], otherwise: _T) -> _T:
    try:
        return work()
    except Exception as error:  # noqa: BLE001  see `read`
        notes.append(f"{what} unreadable: {one_line(error, _LIMIT)}")
        return otherwise


def _exif(image: Image.Image) -> tuple[Mapping[str, str], bool]:
    found = image.getexif()
    tags: dict[int, Any] = {**found, **found.get_ifd(ExifTags.IFD.Exif)}
    values = {
        name: " ".join(filter(None, (shown(tags[key]) for key in keys if tags.get(key))))
        for name, keys in _EXIF.items()
    }
    return {name: value for name, value in values.items() if value}, bool(found.get_ifd(ExifTags.IFD.GPSInfo))


def _text(info: Mapping[str, Any]) -> Mapping[str, str]:
    """PNG's text chunks and JPEG's or GIF's comment; generators' settings first."""
    skipped = ("xml:com.adobe.xmp", "xmp")
    entries = {
        key: value
        for key, value in info.items()
        if (isinstance(value, str) or key == "comment") and key.lower() not in skipped
    }
    order = sorted(entries, key=lambda key: key not in _GENERATOR_KEYS)
    return {shown(key, 40): shown(entries[key]) for key in order[:_ENTRIES]}


def _xmp(info: Mapping[str, Any]) -> bytes:
    value = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    return value.encode("utf-8", "replace") if isinstance(value, str) else value if isinstance(value, bytes) else b""


def _generators(exif: Mapping[str, str], text: Mapping[str, str], info: Mapping[str, Any], xmp: bytes) -> Iterator[str]:
    for key, value in text.items():
        names = _AS_SOFTWARE if key.lower() in _SOFTWARE_KEYS else _ANYWHERE
        if key in _GENERATOR_KEYS or names.search(str(info.get(key, value))[:10_000]):
            yield f"text chunk {key!r}"
    for key, value in exif.items():
        if found := (_AS_SOFTWARE if key == "software" else _ANYWHERE).search(value):
            yield f"EXIF {key}: {found[0]}"
    if named := _SOURCE_TYPE.search(xmp[:1_000_000]):
        yield f"XMP digital source type: {named[1].decode('ascii', 'replace')}"


def _icc(profile: Any) -> str:
    if not isinstance(profile, bytes) or not profile:
        return ""
    return f"{shown(profile[16:20], 8) or 'unknown'}, {len(profile):,} bytes, not applied"


def _quality(tables: Mapping[int, list[int]]) -> tuple[int | None, bool | None]:
    """The IJG quality whose luminance table is the nearest (sum of absolute differences), and whether it is equal."""
    if not tables:
        return None, None
    own = np.array(tables[min(tables)], np.int64)
    distances = np.abs(_tables() - own).sum(axis=1)
    best = int(distances.argmin())
    return best + 1, bool(distances[best] == 0)


@cache
def _tables() -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Luminance tables of qualities 1 to 100, (100, 64), as Pillow's encoder writes them."""
    rows = []
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            rows.append(image.quantization[0])  # type: ignore[attr-defined]
    return np.array(rows, np.int64)

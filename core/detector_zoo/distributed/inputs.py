"""What a distributed run scores: files, remote objects and tar archives, cut into slices.

A slice is what becomes one part of the output: up to so many paths, or one archive. Slices follow from the arguments
and what is in the folders alone, so that a second run cuts them alike. A share is what one worker scores in one go:
some of a slice's paths, or the archive.

Archives are WebDataset's: each regular member with the suffix of an image is an image, read in the order of the
archive without seeking, so that an archive may be a remote object or compressed. A member's name is only ever part of
the ``path`` of a row, ``ARCHIVE::MEMBER``; nothing opens it.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import PurePosixPath
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import IO, Any, Self, TextIO, TypeVar

from detector_zoo import images, sources
from detector_zoo.errors import DatasetError, ImageError, ZooError
from detector_zoo.plain import one_line
from detector_zoo.scoring import Source

__all__ = ["Share", "Slice", "is_remote", "open_share", "require", "slices", "walk"]

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+"
_URL = re.compile(rf"(?:{_SCHEME}::)*{_SCHEME}://")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_MOST_NAMES = 10_000_000
_ATTEMPTS = 4

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class Slice:
    """A part's worth of images.

    Attributes:
        number: Its place among the slices of a run, from 0.
        names: Paths and URLs; or one archive.
        archive: Whether it is one.
    """

    number: int
    names: tuple[str, ...]
    archive: bool = False

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that tell apart slices of different names."""
        joined = b"\0".join(os.fsencode(name) for name in self.names)
        return hashlib.sha256(joined).hexdigest()[:16]

    def shares(self, size: int) -> Iterator[Share]:
        """Cut it into shares of ``size`` names, so that workers may divide it; an archive has one, the end none."""
        for first in range(0, max(1, len(self.names)), size):
            names = self.names[first : first + size]
            yield Share(self.number, self.digest, names, self.archive, first, first + len(names) == len(self.names))


@dataclass(frozen=True, slots=True)
class Share:
    """Some of a slice's images.

    Attributes:
        number: Of the slice.
        digest: Of the slice.
        names: Paths and URLs; or one archive.
        archive: Whether it is one.
        first: Place in the slice of the first image.
        last: Whether the slice ends with it.
    """

    number: int
    digest: str
    names: tuple[str, ...]
    archive: bool
    first: int
    last: bool


def is_remote(name: str) -> bool:
    """Whether a name is a URL of fsspec's: ``s3://bucket/key``, ``https://...``, ``zip://*::file.zip``."""
    return bool(_URL.match(name))


def require(arguments: Iterable[str]) -> None:
    """Check that the file systems of the arguments are installed.

    Raises:
        ZooError: One is not, or fsspec knows none of that name.
    """
    import fsspec

    for argument in filter(is_remote, arguments):
        for scheme in re.findall(rf"(?:^|::)({_SCHEME})(?=://|::)", argument):
            try:
                fsspec.get_filesystem_class(scheme)
            except ImportError as error:
                packages = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
                hint = f"pip install {packages[scheme]}" if scheme in packages else None
                raise ZooError(f"{scheme}://: {one_line(error)}", hint=hint) from error
            except ValueError as error:
                raise ZooError(f"{scheme}://: fsspec knows no such file system") from error


def slices(arguments: Iterable[str], size: int, stdin: TextIO | None = None) -> Iterator[Slice]:
    """Cut what the arguments stand for into slices of at most ``size`` paths, lazily; an archive is a slice.

    Raises:
        DatasetError: As `walk`.
    """
    number = 0
    pending: list[str] = []
    for name in walk(arguments, stdin=stdin):
        archive = _is_archive(name)
        if pending and (archive or len(pending) == size):
            yield Slice(number, tuple(pending))
            number, pending = number + 1, []
        if archive:
            yield Slice(number, (name,), archive=True)
            number += 1
        else:
            pending.append(name)
    if pending:
        yield Slice(number, tuple(pending))


def _is_archive(name: str) -> bool:
    # What follows the ? of a URL, such as a signature, says nothing of the file; in a path it is part of the name.
    return (name.partition("?")[0] if is_remote(name) else name).lower().endswith(_ARCHIVES)


def walk(arguments: Iterable[str], *, stdin: TextIO | None = None) -> Iterator[str]:
    """Yield the path or URL of every image and archive that the arguments stand for.

    Args:
        arguments: As for `detector_zoo.sources.walk`, and besides: numbers in braces (``shard-{000..099}.tar``), which
            count; and URLs of files, or of folders and patterns where the file system can list (HTTP cannot).
        stdin: As for `detector_zoo.sources.walk`; its lines may be URLs of files, and archives.

    Raises:
        DatasetError: As `detector_zoo.sources.walk`, for URLs too.
    """
    for argument in arguments:
        for name in _counted(argument):
            yield from _listed(name) if is_remote(name) else _named(name, stdin)


def _named(name: str, stdin: TextIO | None) -> Iterator[str]:
    """What a local argument stands for. A folder of archives alone has no image: say how to name them."""
    try:
        yield from sources.walk([name], stdin=stdin)
    except DatasetError as error:
        for suffix in _ARCHIVES:
            if next(glob.iglob(f"{glob.escape(name)}/*{suffix}"), None):  # noqa: PTH207 (names stay as they were given)
                pattern = sources.printable(f"{name.rstrip('/')}/*{suffix}")
                raise DatasetError(str(error), hint=f"name its archives: {pattern}") from error
        raise


def _counted(argument: str) -> Iterator[str]:
    """An argument with its ranges in braces written out."""
    ranges = _RANGE.findall(argument)
    if not ranges or (not is_remote(argument) and os.path.lexists(argument)):
        yield argument
        return
    total = 1
    for first, last in ranges:
        total *= max(0, int(last) - int(first) + 1)
    if not 0 < total <= _MOST_NAMES:
        raise DatasetError(f"{sources.printable(argument)}: the braces stand for {total:,} names")
    texts = _RANGE.sub("\0", argument).split("\0")
    counts = [range(int(first), int(last) + 1) for first, last in ranges]
    widths = [len(first) if first.startswith("0") else 0 for first, _ in ranges]
    for numbers in product(*counts):
        written = (f"{number:0{width}d}" for number, width in zip(numbers, widths, strict=True))
        yield "".join(text + number for text, number in zip(texts, [*written, ""], strict=True))


def _listed(url: str) -> Iterator[str]:
    """The files that a URL stands for."""
    if url.lower().startswith(("http://", "https://")):  # cannot be listed, and ? is no pattern there
        yield url
        return
    import fsspec

    where = sources.printable(url)
    try:
        system, path = fsspec.core.url_to_fs(url)
        pattern = glob.has_magic(path)
        # A chain of URLs has no short form for what is found inside of it.
        if "::" in url and (pattern or system.isdir(path)):
            raise DatasetError(f"{where}: only single files of a chain of URLs", hint="unpack it, or make it a tar")
        if pattern:
            found = iter(sorted(system.glob(path)))
        elif system.isdir(path):
            found = _below(system, path)
        else:
            found = iter((path,))
        empty = True
        for name in found:
            empty = False
            yield url if name == path else str(system.unstrip_protocol(name))
    except ZooError:
        raise
    except Exception as error:  # see `_retried`
        raise DatasetError(f"{where}: cannot be listed ({one_line(error)})") from error
    if empty:
        raise DatasetError(f"{where}: no image there")


def _below(system: Any, top: str) -> Iterator[str]:
    """Images below a remote folder, names in order, as `detector_zoo.sources.walk` has them."""
    for folder, folders, files in system.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and PurePosixPath(name).suffix.lower() in sources.IMAGE_SUFFIXES:
                yield f"{folder.rstrip('/')}/{name}"


def open_share(share: Share) -> Iterator[str | Source]:
    """A share's images, for `detector_zoo.scoring.run`."""
    if share.archive:
        return _members(share.names[0])
    return (Source(name, partial(_fetch, name)) if is_remote(name) else name for name in share.names)


def _fetch(url: str) -> bytes:
    """The bytes of a remote file; as `images.read_file` has it for files."""
    import fsspec

    def read() -> bytes:
        with fsspec.open(url, "rb") as stream:
            data: bytes = stream.read(images.MAX_BYTES + 1)
        return data

    return _checked(sources.printable(url), _retried(url, read))


def _checked(name: str, data: bytes) -> bytes:
    if not data:
        raise ImageError(f"{name}: the file is empty")
    if len(data) > images.MAX_BYTES:
        raise ImageError(f"{name}: more than {images.MAX_BYTES:,} bytes, which is the limit")
    return data


def _retried(url: str, read: Callable[[], Content]) -> Content:
    """Read or open, and do it again where it fails for a reason that may pass.

    Raises:
        ImageError: It failed four times, or the file is missing or forbidden.
    """
    name = sources.printable(url)
    for attempt in range(_ATTEMPTS):
        try:
            return read()
        except FileNotFoundError as error:
            raise ImageError(f"{name}: no such file") from error
        except PermissionError as error:
            raise ImageError(f"{name}: permission denied") from error
        # Every file system has exceptions of its own beside OSError, such as aiohttp's and botocore's.
        except Exception as error:
            if attempt == _ATTEMPTS - 1:
                raise ImageError(f"{name}: cannot be read ({one_line(error)})") from error
            time.sleep(2**attempt / 4)
    raise AssertionError("unreachable")


def _members(archive: str) -> Iterator[Source]:
    """The images of an archive; then, where it cannot be read to its end, the archive itself with the cause."""
    count = 0
    try:
        with _opened(archive) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if _is_image(member):
                    yield _member(f"{archive}::{member.name}", tar, member)
                    count += 1
    except ImageError as error:  # it could not be opened
        yield _failed(archive, str(error).removeprefix(f"{sources.printable(archive)}: "))
    except Exception as error:
        # Of a local file nothing else is the file's fault; for a remote one see `_retried`.
        if not (is_remote(archive) or isinstance(error, OSError | tarfile.TarError | EOFError | ValueError)):
            raise
        cause = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        yield _failed(archive, f"the archive cannot be read after {count} images ({cause})")
    else:
        if not count:
            yield _failed(archive, "no image in this archive")


class _Header(tarfile.TarInfo):
    """A member's header. Where there is neither one nor the mark of the end, tarfile takes that for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(f"{error}, where a member or the end should be") from None


def _is_image(member: tarfile.TarInfo) -> bool:
    name = PurePosixPath(member.name)
    return member.isreg() and not name.name.startswith(".") and name.suffix.lower() in sources.IMAGE_SUFFIXES


def _member(name: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Source:
    # Read at once: a stream cannot go back, and threads call `Source.read` in any order.
    if member.size > images.MAX_BYTES:
        return _failed(name, f"{member.size:,} bytes; the limit is {images.MAX_BYTES:,}")
    stream = tar.extractfile(member)
    data = b"" if stream is None else stream.read()
    return Source(name, partial(_checked, sources.printable(name), data))


def _failed(name: str, cause: str) -> Source:
    def fail() -> bytes:
        raise ImageError(f"{sources.printable(name)}: {cause}")

    return Source(name, fail)


def _opened(archive: str) -> IO[bytes]:
    if not is_remote(archive):
        return open(archive, "rb")
    import fsspec

    def read() -> IO[bytes]:
        stream: IO[bytes] = fsspec.open(archive, "rb").open()
        return stream

    return _retried(archive, read)

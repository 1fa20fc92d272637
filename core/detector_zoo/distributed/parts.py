"""The output of a distributed run: a directory of Parquet files, each complete or absent.

    out/
      _run.json          what the run is: detectors, versions, settings; when it is complete, how much it holds
      part-00000000-0123456789abcdef.parquet    the rows of slice 0, in order; its number, a digest of its names

A part is written under another name, synced and renamed. Its name follows from its slice, so that a slice that is
scored twice, because a worker died when it was nearly done, makes one part. Only one process writes to a directory.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector_zoo.errors import DatasetError
from detector_zoo.predictions import sync_directory
from detector_zoo.rows import PARTS, RUN
from detector_zoo.sources import printable

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Count", "Parts", "ready"]

_NAME = re.compile(r"part-(\d{8,})-([0-9a-f]{16})\.parquet")
_KEY = b"detector_zoo.part"


@dataclass(frozen=True, slots=True)
class Count:
    """How much a part, or several, hold.

    Attributes:
        images: Images.
        rows: Rows.
        errors: Images with an error in one of their rows.
    """

    images: int = 0
    rows: int = 0
    errors: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.images + other.images, self.rows + other.rows, self.errors + other.errors)


def ready(folder: Path) -> None:
    """Refuse an output that could not be written, before any work is done.

    Raises:
        DatasetError: The place is a file, or a folder that holds something other than a run's parts.
    """
    name = printable(str(folder))
    if folder.suffix.lower() in (".jsonl", ".csv"):
        raise DatasetError(f"{name}: --engine ray writes a directory of Parquet files", hint="for example -o scores/")
    if folder.exists() and not folder.is_dir():
        raise DatasetError(f"{name}: a file, not a directory", hint="--engine ray writes a directory of Parquet files")
    if folder.is_dir() and not (folder / RUN).exists() and any(folder.iterdir()):
        raise DatasetError(f"{name}: a directory that holds something else", hint="name a new or an empty one")


class Parts:
    """The parts of one run; use `opened`.

    Args:
        folder: Where they are.
        settings: What the scores depend on; all parts of a directory share them.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))
        self.kept: dict[int, str] = {}
        """Digests of the slices that were there when last looked, by their numbers."""

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, settings: Mapping[str, Any], *, resume: bool = True) -> Iterator[Parts]:
        """Lock a directory and go on from what is in it.

        Args:
            folder: Made where there is none.
            settings: See `Parts`.
            resume: With False, an earlier run's parts are removed.

        Raises:
            DatasetError: See `ready`; another process writes there; or the parts in it were made with other settings.
        """
        ready(folder)
        name = printable(str(folder))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise DatasetError(f"{name}: cannot be written ({error.strerror})") from error
        try:
            if sys.platform != "win32":
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise DatasetError(f"{name}: another process is writing it") from None
            parts = cls(folder, settings)
            try:
                parts._begin(resume)
            except OSError as error:
                raise DatasetError(f"{name}: cannot be written ({error.strerror})") from error
            yield parts
        finally:
            os.close(descriptor)

    def _begin(self, resume: bool) -> None:
        for left in self.folder.glob(".part-*.partial"):
            left.unlink()
        earlier = _read_run(self.folder / RUN)
        if not resume:
            for _, path in self._found():
                path.unlink()
        elif earlier and earlier.get("settings") != self.settings:
            other = _difference(earlier, self.settings)
            raise DatasetError(
                f"{printable(str(self.folder))}: the parts in it were made with other {other}",
                hint="name another directory, or begin anew with --no-resume",
            )
        self._write(self.folder / RUN, json.dumps({"settings": self.settings}, indent=2).encode())
        self.look()

    def look(self) -> Mapping[int, str]:
        """Find what is there; returns `kept`."""
        self.kept = {number: path.name[-24:-8] for number, path in self._found()}
        return self.kept

    def _found(self) -> Iterator[tuple[int, Path]]:
        for path in sorted(self.folder.glob(PARTS)):
            if match := _NAME.fullmatch(path.name):
                yield int(match[1]), path

    def add(self, number: int, digest: str, table: pa.Table, count: Count) -> None:
        """Write a part. When this returns it survives the process and the machine.

        Raises:
            DatasetError: It cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(asdict(count)).encode()}
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(metadata), sink)
        earlier = self.kept.pop(number, None)
        if earlier not in (None, digest):  # first, so that never two parts have one number
            self._path(number, str(earlier)).unlink(missing_ok=True)
        self._write(self._path(number, digest), sink.getvalue())

    def _path(self, number: int, digest: str) -> Path:
        return self.folder / f"part-{number:08d}-{digest}.parquet"

    def _write(self, path: Path, data: bytes | pa.Buffer) -> None:
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DatasetError(f"{printable(str(path))}: cannot be written ({error.strerror})") from error
        sync_directory(self.folder)

    def finish(self, total: int) -> Count:
        """Remove what is left of slices that there are no more, and say how much the directory holds.

        Args:
            total: Slices of the run.

        Returns:
            The count of all parts, those of earlier runs included.

        Raises:
            DatasetError: A part is missing, or cannot be read; or there are parts and no slices.
        """
        if self.kept and not total:
            # More likely a list that could not be made than the wish to throw all of it away.
            raise DatasetError(
                f"{printable(str(self.folder))}: there are parts of an earlier run, and nothing to score",
                hint="--no-resume removes them",
            )
        count, numbers = Count(), set()
        for number, path in self._found():
            if number >= total:
                path.unlink()
                continue
            numbers.add(number)
            count += _count(path)
        if missing := total - len(numbers):
            raise DatasetError(f"{printable(str(self.folder))}: {missing} of {total} parts are missing")
        complete = {"parts": total, **asdict(count)}
        self._write(self.folder / RUN, json.dumps({"settings": self.settings, "complete": complete}, indent=2).encode())
        return count


def _count(path: Path) -> Count:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return Count(**json.loads(pq.read_metadata(path).metadata[_KEY]))
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DatasetError(f"{printable(str(path))}: not a part of a run", hint="remove it, and run again") from error


def _read_run(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DatasetError(f"{printable(str(path))}: not JSON ({error})") from error
    return found if isinstance(found, dict) else {}


def _difference(earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    before = earlier.get("settings", {})
    return ", ".join(sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key)))

"""The zoo's own store of weights: where files lie, what is recorded of them, and who may write.

A record (``<zoo home>/weights/NAME.json``) holds the hashes of a file that was verified, with its size and time of
change, so that later runs need not hash hundreds of megabytes again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from detector_zoo import convert
from detector_zoo.registry import WeightSpec, zoo_home

__all__ = ["Record", "converted_path", "lock", "part_path", "read_record", "writable", "write_record"]


@dataclass(frozen=True, slots=True)
class Record:
    """What was verified, and how to see that it has not changed since.

    ``source`` and ``revision`` are the spec's at that time; ``source_sha256`` and ``source_md5`` are of the file as
    published, ``sha256``, ``size`` and ``mtime_ns`` of the safetensors at ``path``.
    """

    source: str | None
    revision: str | None
    source_sha256: str
    source_md5: str | None
    path: str
    sha256: str
    size: int
    mtime_ns: int

    def is_of(self, spec: WeightSpec) -> bool:
        """Whether the record is of the file that the spec means: by hash, or else by where it came from."""
        if spec.hashed:
            return (
                spec.sha256 in {None, self.source_sha256}
                and self.source_sha256.startswith(spec.sha256_prefix or "")
                and spec.md5 in {None, self.source_md5}
            )
        return (self.source, self.revision) == (spec.source, spec.revision)

    def unchanged(self) -> bool:
        """Whether the file still has the size and the time of change that it was verified with."""
        try:
            now = Path(self.path).stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.size, self.mtime_ns)


def _folder() -> Path:
    return zoo_home() / "weights"


def _stem(name: str) -> str:
    """A name of weights as that of a file: a catalogue's as it is, a reference to the Hub without slash and labels."""
    from urllib.parse import quote

    return quote(name.partition("#")[0], safe="") if "/" in name else name


def converted_path(name: str) -> Path:
    """Where weights are kept that the Hub's cache does not keep: converted, downloaded or imported ones."""
    return _folder() / f"{_stem(name)}.safetensors"


def part_path(name: str) -> Path:
    """Where a download that is not complete waits for its rest."""
    return _folder() / f"{_stem(name)}.part"


def _record_path(name: str) -> Path:
    return _folder() / f"{_stem(name)}.json"


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Keep other processes from writing the same weights; the system frees the lock of a process that dies.

    Raises:
        WeightsError: If the zoo's home cannot be written to.
    """
    from filelock import FileLock

    path = _folder() / f".{_stem(name)}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path)
        held.acquire()
    except OSError as error:
        raise convert.os_error(path, error) from error
    try:
        yield
    finally:
        held.release()


def writable() -> bool:
    """Whether anything can be kept."""
    try:
        _folder().mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(_folder(), os.W_OK)


def read_record(spec: WeightSpec) -> Record | None:
    """The record of the file that the spec means, whether or not the file is still there."""
    path = _record_path(spec.name)
    if not path.exists():
        return None
    import json

    try:
        raw = json.loads(path.read_text("utf-8"))
        record = Record(**(raw | {"path": str(_folder() / raw["path"])}))
    except (OSError, ValueError, TypeError, KeyError):
        return None  # another version wrote it: fetch again
    return record if record.is_of(spec) else None


def write_record(
    spec: WeightSpec, path: Path, source_sha256: str, source_md5: str | None, *, sha256: str | None = None
) -> None:
    """Record that ``path`` was made of the file with these hashes, and is safe to use while it does not change.

    Args:
        spec: The weights.
        path: The safetensors.
        source_sha256: Of the file as published.
        source_md5: Of the same, where the spec goes by it.
        sha256: Of ``path``, where it is known already.

    Raises:
        WeightsError: If the zoo's home cannot be written to.
    """
    import json

    try:
        now = path.stat()
        record = Record(
            source=spec.source,
            revision=spec.revision,
            source_sha256=source_sha256,
            source_md5=source_md5,
            # Relative to the record, so that the home can be moved.
            path=path.name if path.parent == _folder() else str(path),
            sha256=sha256 or convert.sha256_of(path),
            size=now.st_size,
            mtime_ns=now.st_mtime_ns,
        )
    except OSError as error:
        raise convert.os_error(path, error) from error
    with convert.atomic(_record_path(spec.name)) as staging:
        staging.write_text(json.dumps(asdict(record), indent=1) + "\n", "utf-8")

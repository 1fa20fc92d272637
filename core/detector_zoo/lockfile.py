"""``zoo.lock``: which commit of the Hub a reference stands for, and what its files hash to.

With a lock file, a reference that it does not name is refused, and so is a file that differs from it. The file is
looked for where ``--lock`` says, else at ``DETECTOR_ZOO_LOCK``, else as ``zoo.lock`` in the working directory.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detector_zoo import convert
from detector_zoo.errors import WeightsError

__all__ = ["DEFAULT", "SCHEMA_VERSION", "Entry", "File", "active", "read", "using", "write"]

DEFAULT = "zoo.lock"
SCHEMA_VERSION = 1
_LIMIT = 4_000_000
_named: ContextVar[Path | None] = ContextVar("lock", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """What a file has to be: its SHA-256 in hexadecimal, and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a reference is locked to.

    Attributes:
        commit: 40 hexadecimal digits.
        locked: The day, ISO 8601, UTC.
        files: By name in the repository.
    """

    commit: str
    locked: str
    files: Mapping[str, File] = field(default_factory=dict)


@contextmanager
def using(path: Path | None) -> Iterator[None]:
    """Within the block, the lock file is ``path``, whether or not it exists; None changes nothing."""
    token = _named.set(path or _named.get())
    try:
        yield
    finally:
        _named.reset(token)


def active() -> Path | None:
    """The lock file that holds here: the one that was named, which must then exist, or zoo.lock if there is one."""
    named = _named.get()
    if named is None and (variable := os.environ.get("DETECTOR_ZOO_LOCK")):
        named = Path(variable)
    if named is not None:
        return named
    return Path(DEFAULT) if Path(DEFAULT).is_file() else None


def read(path: Path) -> dict[str, Entry]:
    """The entries of a lock file, by reference.

    Raises:
        WeightsError: It cannot be read, or is not a lock file of this version in every key.
    """
    try:
        if path.stat().st_size > _LIMIT:
            raise WeightsError(f"{path}: larger than {_LIMIT // 10**6} MB, not a lock file")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}", hint="zoo lock writes one") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not a lock file: {convert.one_line(error)}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise WeightsError(
            f"{path}: schema_version {version}, this zoo reads {SCHEMA_VERSION}",
            hint="update detector-zoo" if newer else None,
        )
    weights = document.get("weights")
    if set(document) != {"schema_version", "weights"} or not isinstance(weights, dict):
        raise WeightsError(f"{path}: not a lock file: expected schema_version and weights")
    return {reference: _entry(raw, f"{path}: {reference}") for reference, raw in weights.items()}


def write(path: Path, entries: Mapping[str, Entry]) -> None:
    """Write a lock file, complete or not at all; references in order, so that it can be compared.

    Raises:
        WeightsError: It cannot be written.
    """
    weights = {reference: asdict(entries[reference]) for reference in sorted(entries)}
    text = json.dumps({"schema_version": SCHEMA_VERSION, "weights": weights}, indent=2) + "\n"
    try:
        staging = path.with_name(f".{path.name}.{os.getpid()}")
        staging.write_text(text, "utf-8")
        staging.replace(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written: {error.strerror or error}") from error


def _entry(raw: Any, where: str) -> Entry:
    if not isinstance(raw, dict) or set(raw) != {"commit", "locked", "files"} or not isinstance(raw["files"], dict):
        raise WeightsError(f"{where}: expected commit, locked and files")
    if not _is_hex(raw["commit"], 40) or not isinstance(raw["locked"], str):
        raise WeightsError(f"{where}: expected a commit of 40 hexadecimal digits, and a date")
    files = {}
    for name, file in raw["files"].items():
        if not isinstance(file, dict) or set(file) != {"sha256", "bytes"} or not _is_hex(file["sha256"], 64):
            raise WeightsError(f"{where}: {name}: expected sha256 and bytes")
        if type(file["bytes"]) is not int or file["bytes"] < 0:
            raise WeightsError(f"{where}: {name}: bytes: expected a number, got {file['bytes']!r}")
        files[name] = File(sha256=file["sha256"], bytes=file["bytes"])
    return Entry(commit=raw["commit"], locked=raw["locked"], files=files)


def _is_hex(value: Any, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) is not None

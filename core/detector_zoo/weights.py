"""Weights: find, fetch, verify and read them.

What was fetched is verified before anything opens it, converted to safetensors where it was not, and recorded, so
that later runs neither ask the network nor hash hundreds of megabytes again. Every failure is a `WeightsError`:
there is no score from half-loaded weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector_zoo import convert
from detector_zoo.errors import WeightsError, ZooError
from detector_zoo.registry import WeightSpec, registry
from detector_zoo.weights_store import converted_path, lock, part_path, read_record, writable, write_record

if TYPE_CHECKING:
    import torch

    from detector_zoo.detector import Weights

__all__ = [
    "fetch",
    "fetchable",
    "instantiate",
    "load_weights",
    "locate",
    "read",
    "read_backbone",
    "recorded",
    "state",
    "verify",
]


def locate(spec: WeightSpec) -> Path | None:
    """The verified safetensors of the weights on this machine, or None; asks no network and hashes nothing."""
    if spec.scheme == "package" and spec.format == "safetensors":
        path = _package_path(spec)
        return path if path is not None and path.is_file() else None
    record = read_record(spec)
    return Path(record.path) if record is not None and record.unchanged() else None


def state(spec: WeightSpec) -> str:
    """Where the weights are, for people: "embedded 5.1 MB", "cached 282 MB", "on the Hub 282 MB", ..."""
    path = locate(spec)
    if spec.scheme == "package":
        return f"embedded {_megabytes(path.stat().st_size)}" if path else "missing from its package"
    if path:
        return f"cached {_megabytes(path.stat().st_size)}"
    size = f" {_megabytes(spec.bytes)}" if spec.bytes else ""
    if not spec.verifiable:
        size += ", not pinned"
    words = {"hub": f"on the Hub{size}", "url": f"at the authors' server{size}", "file": "bring your own"}
    return words.get(spec.scheme, "not published")


def fetchable(spec: WeightSpec) -> bool:
    """Whether `fetch` can get the weights without the user's help: published, in reach, and verifiable."""
    return locate(spec) is not None or (spec.scheme in {"package", "hub", "url"} and spec.verifiable)


def recorded(spec: WeightSpec) -> bool:
    """Whether the weights are, or have been, on this machine: what `verify` can say something about."""
    return read_record(spec) is not None or locate(spec) is not None


def fetch(spec: WeightSpec, *, progress: bool = False) -> Path:
    """Have the weights on this machine, verified, as safetensors.

    Args:
        spec: Which.
        progress: Show a bar while downloading, on a terminal.

    Returns:
        The safetensors file.

    Raises:
        WeightsError: If they cannot be had or are not what they should be.
    """
    if spec.scheme == "package" and spec.format == "safetensors":
        path = _package_file(spec)
        convert.check(spec, path)
        return path
    if found := locate(spec):
        return found
    if spec.scheme == "hub" and spec.format == "safetensors" and not writable():
        # Nothing has to be written for these: a read-only home costs only the record, and with it a hash a run.
        path = _published(spec, progress)
        convert.check(spec, path)
        return path
    with lock(spec.name):
        # Another process may have fetched them while this one waited for the lock.
        return locate(spec) or _rehashed(spec) or _obtain(spec, progress)


def verify(spec: WeightSpec) -> Path:
    """Hash the local file again, whatever its record says.

    Raises:
        WeightsError: If it is not there or has changed.
    """
    if spec.scheme == "package" and spec.format == "safetensors":
        path = _package_file(spec)
        convert.check(spec, path)
        return path
    record = read_record(spec)
    if record is None or not Path(record.path).exists():
        raise WeightsError(f"{spec.name}: not on this machine", hint=f"zoo weights pull {spec.name}")
    convert.check(replace(spec, sha256=record.sha256, sha256_prefix=None, md5=None, bytes=None), Path(record.path))
    return Path(record.path)


def read(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        WeightsError: If it is missing, truncated or something else.
    """
    return convert.read_safetensors(path)


def load_weights(spec: WeightSpec, *, progress: bool = False) -> Weights:
    """Fetch and read weights, and those of the backbone that they are a head on.

    The result's spec always has the ``sha256`` of the file as published, even where the registry has only an md5.

    Raises:
        WeightsError: If either cannot be had.
    """
    from detector_zoo.detector import Weights

    path = fetch(spec, progress=progress)
    backbone = read_backbone(spec, progress=progress)
    if not spec.sha256:
        record = read_record(spec)
        spec = replace(spec, sha256=record.source_sha256 if record else convert.sha256_of(path))
    return Weights(spec, read(path), backbone)


def read_backbone(spec: WeightSpec, *, progress: bool = False) -> Mapping[str, torch.Tensor]:
    """Fetch the network that weights are a head on; empty for weights of a whole network.

    Returns:
        Its state dict, read from the file when it is first looked into.

    Raises:
        WeightsError: If it cannot be had.
    """
    if spec.backbone is None:
        return {}
    backbone = registry().specs.get(spec.backbone)
    if backbone is None:
        raise WeightsError(f"{spec.name}: its backbone {spec.backbone} is in no catalogue")
    return _Unread(fetch(backbone, progress=progress))


class _Unread(Mapping[str, "torch.Tensor"]):
    """The tensors of a file that may never be needed: gigabytes, where the network is loaded already."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return read(self._path)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def instantiate(target: Any, weights: Weights) -> Any:
    """Build a detector of the class ``target``.

    Raises:
        WeightsError: If the weights do not fit; the message names the first key that does not.
    """
    try:
        return target.from_weights(weights)
    except ZooError:
        raise
    # A plugin's class is a stranger's code, and torch reports a wrong key as a bare RuntimeError.
    except Exception as error:
        name = getattr(target, "__name__", str(target))
        raise WeightsError(f"{weights.spec.name}: does not fit {name}: {_first_wrong(error)}") from error


def _rehashed(spec: WeightSpec) -> Path | None:
    """A file that was only touched (restored from a backup, copied) needs a new record, not a new download."""
    record = read_record(spec)
    path = Path(record.path) if record else None
    if record is None or path is None or not path.is_file() or convert.sha256_of(path) != record.sha256:
        return None
    write_record(spec, path, record.source_sha256, record.source_md5)
    return path


def _obtain(spec: WeightSpec, progress: bool) -> Path:
    """Fetch, verify, convert and record; the lock is held."""
    if spec.source is None:
        raise WeightsError(f"{spec.name}: no weights were published: {spec.why}", hint=spec.how_to_get or None)
    if spec.scheme == "file":
        raise WeightsError(
            f"{spec.name}: no command can fetch it, you have to bring the file",
            hint=f"{spec.how_to_get}; then run: zoo weights import {spec.name} FILE",
        )
    file = _published(spec, progress)
    try:
        sha256 = convert.check(spec, file)
        tensors = None if spec.format == "safetensors" else convert.read_tensors(file)
    except WeightsError:
        if spec.scheme == "url":  # nothing of it is worth going on from
            file.unlink(missing_ok=True)
        raise
    md5 = convert.md5_of(file) if spec.md5 else None
    if spec.scheme == "hub" and tensors is None:
        # The Hub's cache has it in the right format: a second copy would only fill the disk.
        write_record(spec, file, sha256, md5, sha256=sha256)
        return file
    path = converted_path(spec.name)
    with convert.atomic(path) as staging:
        if tensors is None:
            file.replace(staging)
        else:
            convert.write(tensors, staging)
    if spec.scheme == "url":
        file.unlink(missing_ok=True)
    write_record(spec, path, sha256, md5)
    return path


def _published(spec: WeightSpec, progress: bool) -> Path:
    """The file as its authors published it, not yet verified."""
    if spec.scheme == "package":
        return _package_file(spec)
    if not spec.verifiable:
        # A branch or a bare address may hold another file tomorrow, and without a hash nobody would notice.
        how = spec.how_to_get or "download it"
        raise WeightsError(
            f"{spec.name}: neither a commit nor a hash of {spec.place} is known, so it could not be verified",
            hint=f"{how}; then run: zoo weights import {spec.name} FILE",
        )
    from detector_zoo import download

    if spec.scheme == "hub":
        return download.from_hub(spec, progress=progress)
    return download.from_url(spec, part_path(spec.name), progress=progress)


def _package_path(spec: WeightSpec) -> Path | None:
    """Where the file is, or ought to be, without running the package; None if there is no such package."""
    package, _, inner = spec.place.partition("/")
    try:
        found = find_spec(package)
    # For a.b the parent a is imported: a stranger's code, which can raise anything.
    except Exception:  # noqa: BLE001
        return None
    folder = next(iter(found.submodule_search_locations or ()), None) if found else None
    return Path(folder, inner) if folder else None


def _package_file(spec: WeightSpec) -> Path:
    path = _package_path(spec)
    if path is None or not path.is_file():
        package, _, inner = spec.place.partition("/")
        raise WeightsError(
            f"{spec.name}: {inner} is missing from the package {package}", hint=f"reinstall what provides {package}"
        )
    return path


def _megabytes(size: int) -> str:
    if size < 1_000_000:
        return f"{size / 1000:.1f} kB"
    return f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e6:.0f} MB"


def _first_wrong(error: Exception) -> str:
    """The list that torch makes of all that does not fit, cut down to the first of it."""
    text = str(error)
    if isinstance(error, KeyError):
        return f"key {text} is missing"
    for kind, words in (("Missing", "is missing"), ("Unexpected", "is not part of it")):
        if keys := re.search(rf'{kind} key\(s\) in state_dict: "([^"]+)"((?:, "[^"]+")*)', text):
            more = keys[2].count(", ")
            return f"key {keys[1]!r} {words}" + (f" (and {more} more)" if more else "")
    if found := re.search(r"size mismatch for (\S+): .*?torch\.Size\((.*?)\).*?torch\.Size\((.*?)\)", text, re.S):
        return f"key {found[1]!r} has shape {found[2]}, expected {found[3]}"
    return f"{type(error).__name__}: {convert.one_line(error)}"

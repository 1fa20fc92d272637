"""Files of weights: hash them, read them without running them, write them as safetensors.

A ``.pth`` is a pickle, that is a program. It is hashed before it is opened, opened with ``weights_only=True`` and
nothing else, and converted once; everything after that reads safetensors.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector_zoo.errors import WeightsError
from detector_zoo.weight_specs import WeightSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = [
    "SPEC_METADATA",
    "atomic",
    "check",
    "embedded_spec",
    "is_safetensors",
    "md5_of",
    "one_line",
    "os_error",
    "read_safetensors",
    "read_tensors",
    "sha256_of",
    "write",
]

SPEC_METADATA = "detector_zoo"
"""Key of a safetensors file's metadata under which a trainer may leave the spec of its weights, as JSON."""

_CONTAINERS = ("model", "state_dict", "net")
_PREFIX = "module."
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}


def one_line(error: object, limit: int = 240) -> str:
    """An exception's message without line breaks, not longer than ``limit``."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def os_error(path: Path, error: OSError, *, variable: str = "DETECTOR_ZOO_HOME") -> WeightsError:
    """A WeightsError for a file that cannot be written; ``variable`` is what moves it elsewhere."""
    if error.errno in _FULL:
        return WeightsError(
            f"{path}: the disk is full: {error.strerror}",
            hint=f"free some space, or point {variable} at a larger disk",
        )
    if error.errno in _FORBIDDEN:
        return WeightsError(
            f"{path}: cannot be written: {error.strerror}",
            hint=f"point {variable} at a directory that you can write to",
        )
    return WeightsError(f"{path}: {error.strerror or one_line(error)}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hexadecimal.

    Raises:
        WeightsError: If it cannot be read.
    """
    return _digest(path, "sha256")


def md5_of(path: Path) -> str:
    """The file's MD5, in hexadecimal: it tells a damaged file, not a forged one.

    Raises:
        WeightsError: If it cannot be read.
    """
    return _digest(path, "md5")


def _digest(path: Path, kind: str) -> str:
    import hashlib  # here, because `zoo list` hashes nothing and should not wait for OpenSSL

    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def check(spec: WeightSpec, path: Path) -> str:
    """Compare a file, unopened, with what the spec knows of the published one.

    Returns:
        Its SHA-256.

    Raises:
        WeightsError: If size or hash differ, or it cannot be read.
    """
    with _reading(path):
        size = path.stat().st_size
    if spec.bytes is not None and size != spec.bytes:
        raise WeightsError(
            f"{spec.name}: {path} has {size} bytes, expected {spec.bytes}: truncated, or another file",
            hint="delete it and fetch it again",
        )
    sha256 = sha256_of(path)
    for kind, expected, found in (
        ("sha256", spec.sha256, sha256),
        ("sha256", spec.sha256_prefix, sha256[: len(spec.sha256_prefix or "")]),
        ("md5", spec.md5, md5_of(path) if spec.md5 else None),
    ):
        if expected is not None and expected != found:
            raise WeightsError(
                f"{spec.name}: {path} has {kind} {found}, expected {expected}: damaged, or another file",
                hint="delete it and fetch it again",
            )
    return sha256


def is_safetensors(path: Path) -> bool:
    """Whether the file starts like safetensors: the header's length, then JSON.

    Raises:
        WeightsError: If it cannot be read.
    """
    with _reading(path), path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        WeightsError: If it is missing, truncated or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with _reading(path):
            return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path}: not safetensors, or truncated: {one_line(error)}") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint, safetensors or ``.pth``, by its content and not by its name.

    A ``.pth`` may hold the state dict itself or a container of it, with or without a ``module.`` before each key.

    Raises:
        WeightsError: If it cannot be read, or holds anything but tensors; nothing in it has been run.
    """
    if is_safetensors(path):
        return read_safetensors(path)
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or hostile file provokes exceptions of many kinds, all of which mean that these are no weights.
    except Exception as error:
        raise _refused(path, error) from error
    return _state_dict(path, content)


def _refused(path: Path, error: Exception) -> WeightsError:
    text = one_line(error, 10_000)
    # torch's own message advises weights_only=False; it must not reach the user.
    if found := re.search(r"(?:GLOBAL|class|global) ([A-Za-z_][\w.]*\.\w+)", text):
        return WeightsError(
            f"{path}: refused, it holds more than tensors: {found[1]}",
            hint="a pickle can run any program; ask its publisher for safetensors or a plain state dict",
        )
    if "weights only" in text.lower() or "TorchScript" in text:
        kind = "a TorchScript archive" if "TorchScript" in text else "not a plain state dict, or damaged"
        return WeightsError(
            f"{path}: refused: {kind}", hint="only safetensors and plain state dicts of tensors are read"
        )
    return WeightsError(f"{path}: cannot be read as weights, truncated or another file: {one_line(text)}")


def _state_dict(path: Path, content: Any) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(content, Mapping):
        content = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: holds {type(content).__name__}, expected a state dict of tensors")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path}: entry {key!r} is {type(value).__name__}, expected a tensor")
    if all(key.startswith(_PREFIX) for key in content):
        content = {key.removeprefix(_PREFIX): value for key, value in content.items()}
    return dict(content)


def write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write safetensors.

    Raises:
        OSError: If the disk is full, or the place cannot be written to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Tied weights share storage, which safetensors refuses: each gets its own copy.
    plain = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to ``path`` at the end, removed after any failure.

    Raises:
        WeightsError: For any OSError inside.
    """
    # Named after the target and not after the process: what a killed one left is overwritten by the next. The
    # caller holds a lock.
    staging = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield staging
        staging.replace(path)
    except OSError as error:
        raise os_error(path, error) from error
    finally:
        # If even that fails, the error that matters is the one on its way.
        with suppress(OSError):
            staging.unlink(missing_ok=True)


def embedded_spec(path: Path) -> dict[str, Any]:
    """The spec that a trainer left in a safetensors file's metadata; empty where there is none.

    Raises:
        WeightsError: If it is not a JSON object, or the file cannot be read.
    """
    import json

    from safetensors import SafetensorError, safe_open

    if not is_safetensors(path):
        return {}
    try:
        with _reading(path), safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(SPEC_METADATA, "{}")
        found = json.loads(text)
    except SafetensorError as error:
        raise WeightsError(f"{path}: not safetensors, or truncated: {one_line(error)}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: metadata {SPEC_METADATA}: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: metadata {SPEC_METADATA}: expected a JSON object")
    return found

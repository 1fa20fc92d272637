"""Catalogues of weights on disk: YAML for people, and a copy as JSON that is faster to read.

Importing a YAML parser and parsing takes longer than all the rest of `zoo list`.
"""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from detector_zoo.errors import WeightsError

__all__ = ["SPEC_FILE", "WEIGHTS_FILE", "read"]

WEIGHTS_FILE = "weights.safetensors"
SPEC_FILE = "weights.yaml"
"""A catalogue of one entry, in the folder of the file that it describes: what a training leaves, and the Hub holds."""


def read(path: Path, cache: Path | None = None) -> Any:
    """The document in a catalogue's YAML, from the cache if that was made of the very same file.

    Args:
        path: The catalogue.
        cache: Folder of the copies; None reads the YAML.

    Raises:
        WeightsError: If it cannot be read, or is not YAML.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    of = [str(path), status.st_mtime_ns, status.st_size, status.st_ino]
    # The name only has to differ between catalogues: what is inside says which one it is.
    copy = cache / f"{path.stem}-{zlib.crc32(os.fsencode(path)):08x}.json" if cache else None
    if copy is not None:
        with suppress(OSError, ValueError, TypeError, KeyError):  # any copy that is not as it should be is made anew
            held = json.loads(copy.read_bytes())
            if held["of"] == of:
                return held["document"]
    from detector_zoo import strict_yaml

    document = strict_yaml.read(path)
    if copy is not None:
        with suppress(TypeError, ValueError, RecursionError):  # JSON has no dates, and only text for keys
            text = json.dumps({"of": of, "document": document})
            if json.loads(text)["document"] == document:
                _keep(text, copy)
    return document


def _keep(text: str, copy: Path) -> None:
    with suppress(OSError):  # a home that cannot be written to costs milliseconds, not an answer
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_name(f"{copy.name}.{os.getpid()}")
        partial.write_text(text, "utf-8")
        partial.replace(copy)

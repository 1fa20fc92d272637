"""Reading YAML strictly: safe types only, no key given twice, and nothing that grows or never ends when it is read.

A few hundred bytes of YAML can describe billions of nodes (aliases of aliases), overflow the parser's stack (a hundred
thousand brackets crash the process, which no exception handler survives) or keep one number busy for minutes. Files of
plugins are read by every command, so all of that is looked for before anything is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from detector_zoo.errors import WeightsError
from detector_zoo.plain import one_line

__all__ = ["LARGEST", "parse", "read"]

LARGEST = 4_000_000
"""Bytes of a file that is read; the zoo's own catalogue has 60 kB."""
_NODES = 100_000
"""Scalars, lists and mappings, counted as often as aliases repeat them."""
_DEPTH = 20
_LONGEST_NUMBER = 100
"""Characters of what is not text: Python takes quadratic time for numbers, and YAML has some to the base 60."""
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path) -> Any:
    """The document in a YAML file.

    Raises:
        WeightsError: If it cannot be read, or `parse` refuses it.
    """
    try:
        if path.stat().st_size > LARGEST or not path.is_file():  # a pipe would be waited for
            raise WeightsError(f"{path}: no file, or larger than {LARGEST} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    return parse(data, str(path))


def parse(data: bytes, where: str, *, aliases: bool = True) -> Any:
    """The document that YAML describes.

    Args:
        data: UTF-8.
        where: Its place, for messages.
        aliases: Whether parts may be given once and named again.

    Raises:
        WeightsError: If it is not YAML, gives a key twice, holds other than plain values, is nested too deeply, or has
            too many nodes, repeated ones included.
    """
    try:
        _bounded(data, aliases)
        return yaml.load(data, _Loader)  # noqa: S506 (a SafeLoader's subclass)
    # A date that does not exist is a ValueError, and so is a number with too many digits.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise WeightsError(f"{where}: {one_line(error, 400)}") from error


def _bounded(data: bytes, aliases: bool) -> None:
    """Refuse what cannot be built in reasonable time and memory, by its events, which are made one at a time."""
    nodes = 0
    begun: list[tuple[str | None, int]] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(data, _SAFE):
        if isinstance(event, yaml.AliasEvent):
            if not aliases:
                raise yaml.YAMLError("aliases are not read")
            if event.anchor not in sizes:
                raise yaml.YAMLError(f"the alias {event.anchor} names nothing that is complete before it")
            nodes += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            if anchor is not None:
                sizes[anchor] = nodes - before
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if len(begun) > _DEPTH or nodes > _NODES:
            raise yaml.YAMLError("nested too deeply, or too long")


class _Loader(_SAFE):  # type: ignore[misc]
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_scalar(self, node: yaml.Node) -> Any:
        if node.tag != "tag:yaml.org,2002:str" and len(node.value) > _LONGEST_NUMBER:
            raise yaml.constructor.ConstructorError(None, None, "a number or date of that length", node.start_mark)
        return super().construct_scalar(node)

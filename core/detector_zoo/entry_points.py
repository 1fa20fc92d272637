"""The entry points of one group, read straight from the installed distributions' directories.

``importlib.metadata`` finds the same (a test holds the two together), but importing it brings in the email package,
which alone takes `zoo list` over its limit (benchmarks/startup.py). Distributions inside zip files are not looked for.
"""

from __future__ import annotations

# os and not pathlib, which costs 4 ms to import.
import os
import re
import sys
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from itertools import takewhile
from typing import Any, NamedTuple


class EntryPoint(NamedTuple):
    """One line of an ``entry_points.txt``.

    Attributes:
        name: Left of the equals sign.
        value: ``module`` or ``module:attribute``.
        distribution: Name of the distribution, as it spells itself.
        version: Of the distribution.
    """

    name: str
    value: str
    distribution: str
    version: str

    def load(self) -> Any:
        """Import what the entry point names."""
        module, _, attributes = self.value.partition(":")
        return reduce(getattr, attributes.split(".") if attributes else [], import_module(module))


def entry_points(group: str) -> list[EntryPoint]:
    """All entry points of ``group``, of every distribution on ``sys.path``; the first of a name shadows others."""
    found: list[EntryPoint] = []
    seen: set[str] = set()
    for folder in dict.fromkeys(sys.path):
        for name, path in _distributions(folder or os.curdir):
            if name not in seen:
                seen.add(name)
                found += _read(path, group)
    return found


def _distributions(folder: str) -> Iterator[tuple[str, str]]:
    """(normalised name, path) of the metadata directories in one entry of ``sys.path``."""
    try:
        names = os.listdir(folder)
    except OSError:  # a zip file, or a path that does not exist: both are usual on sys.path
        return
    for name in sorted(names):
        if name.endswith((".dist-info", ".egg-info")):
            yield re.split(r"-|\.egg-info|\.dist-info", name)[0].lower().replace(".", "_"), os.path.join(folder, name)


def _read(path: str, group: str) -> Iterator[EntryPoint]:
    lines = _lines(path, "entry_points.txt")
    if f"[{group}]" not in lines:
        return
    headers = takewhile(bool, _lines(path, "METADATA") or _lines(path, "PKG-INFO"))  # the description comes after
    facts = dict(line.split(": ", 1) for line in headers if line.startswith(("Name: ", "Version: ")))
    inside = False
    for line in lines:
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, value = line.split("=", 1)
            target = re.split(r"[\s\[]", value.strip())[0]  # extras in brackets are not for the loader
            yield EntryPoint(name.strip(), target, facts.get("Name", "?"), facts.get("Version", ""))


def _lines(path: str, file: str) -> list[str]:
    try:
        with open(os.path.join(path, file), encoding="utf-8", errors="replace") as stream:
            return [line.strip() for line in stream]
    except OSError:  # most distributions have no entry points; an unreadable one offers none
        return []

"""Discovery of plugins: lazy, guarded, and without any heavy import.

The loop walks the entry points itself, so that one plugin that raises, lacks a dependency or registers nonsense
is a row of `zoo plugins` and nothing more. ``DETECTOR_ZOO_PLUGINS`` restricts loading to the entry points that it
names (comma-separated; empty loads none): the safe mode for when a plugin misbehaves badly.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import pluggy

from detector_zoo import hookspecs
from detector_zoo.entry_points import EntryPoint, entry_points
from detector_zoo.errors import PluginError
from detector_zoo.info import CAPABILITIES, DetectorInfo, Paper
from detector_zoo.plain import one_line, plain

_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_LONGEST = 300
_MOST = 1000
"""Items that a plugin may register."""
TAKEN: Mapping[str, frozenset[str]] = {
    "detectors": frozenset({"all", "backbone", "file", "hf", "hub", "package", "url"}),
    "datasets": frozenset({"folders", "hf", "manifest", "triples", "webdataset"}),
    "perturbations": frozenset({
        "avif", "blur", "crop", "jpeg", "noise", "none", "resize_bicubic", "resize_bilinear", "resize_lanczos",
        "screenshot", "social_media", "webp",
    }),
}  # fmt: skip
"""Names that no plugin may register: words that mean something else, and what the core brings itself."""
_HOOKS = {"register_detectors": "detectors", "register_datasets": "datasets", "register_perturbations": "perturbations"}


@dataclass(slots=True, eq=False)
class Plugin:
    """One entry point, loaded or not: a row of `zoo plugins`."""

    name: str
    distribution: str
    version: str
    status: str = "ok"
    hooks: tuple[str, ...] = ()
    detectors: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Catalogue:
    """All that plugins registered."""

    plugins: list[Plugin] = field(default_factory=list)
    detectors: dict[str, DetectorInfo] = field(default_factory=dict)
    datasets: dict[str, str] = field(default_factory=dict)
    perturbations: dict[str, str] = field(default_factory=dict)
    owners: dict[tuple[str, str], Plugin] = field(default_factory=dict)

    def broken(self) -> list[Plugin]:
        """The plugins that did not load."""
        return [plugin for plugin in self.plugins if plugin.status != "ok"]


@cache
def catalogue() -> Catalogue:
    """Load every plugin once, first-party ones first, and return what they registered."""
    found = Catalogue()
    allowed = os.environ.get("DETECTOR_ZOO_PLUGINS")
    names = None if allowed is None else {part.strip() for part in allowed.split(",")}
    points: dict[str, Plugin] = {}
    for point in sorted(entry_points(hookspecs.ENTRY_POINT_GROUP), key=_precedence):
        if names is not None and point.name not in names:
            continue
        plugin = Plugin(point.name, point.distribution, point.version)
        # What a plugin prints would end up in `--json`.
        with _interrupts() as interrupted, redirect_stdout(sys.stderr):
            try:
                if owner := points.get(point.name):  # else the safe mode could be had by taking a name
                    raise PluginError(
                        f"entry point {point.name!r} of {plugin.distribution} is taken: {owner.distribution} has it"
                    )
                _load(point, plugin, found)
            # A plugin is a stranger's code: whatever it raises must not take the zoo with it, SystemExit included
            # and KeyboardInterrupt too, unless it is the user's.
            except BaseException as error:
                if interrupted:
                    raise
                plugin.status = f"{type(error).__name__}: {one_line(error)}"
        found.plugins.append(plugin)
        points.setdefault(point.name, plugin)
    return found


def list_detectors() -> list[DetectorInfo]:
    """The installed detectors, by name."""
    return [info for _, info in sorted(catalogue().detectors.items())]


def _precedence(point: EntryPoint) -> tuple[bool, str, str]:
    # A stranger's package must not be able to take a name of ours by sorting before us.
    return (point.distribution != "detector-zoo", point.distribution, point.name)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Tells the user's Ctrl-C, by a number in the list, from a KeyboardInterrupt that a plugin raises itself."""
    seen: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    if current_thread() is not main_thread() or usual is not signal.default_int_handler:
        yield seen  # handlers are the main thread's, and whoever has set one of their own keeps it
        return

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, usual)


def _load(point: EntryPoint, plugin: Plugin, found: Catalogue) -> None:
    """Import one plugin and run its hooks; what they register counts only if all of it is valid."""
    module = point.load()
    manager = pluggy.PluginManager(hookspecs.ENTRY_POINT_GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(module, point.name)
    manager.check_pending()
    plugin.hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(module) or ()))
    if not plugin.hooks:
        raise PluginError(f"implements no hook of {', '.join(_HOOKS)}")
    new: dict[tuple[str, str], Any] = {}
    refused: list[PluginError] = []

    def add(kind: str, name: str, item: Any) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PluginError(f"{kind} name {name!r:.80} is not of the form [a-z][a-z0-9_]*, or longer than 50")
        owner = plugin if (kind, name) in new else found.owners.get((kind, name))
        if owner is not None or name in TAKEN[kind]:
            by = f"{owner.distribution} registers it already" if owner else "it means something to the zoo itself"
            raise PluginError(f"{kind[:-1]} {name!r} of {plugin.distribution} is taken: {by}")
        if len(new) == _MOST:
            raise PluginError(f"registers more than {_MOST} items")
        new[kind, name] = item

    @contextmanager
    def noted() -> Iterator[None]:
        if refused:
            raise PluginError("an item before was refused")
        try:
            yield
        except PluginError as error:
            refused.append(error)  # it counts even where the plugin catches it
            raise

    def register_detector(info: DetectorInfo) -> None:
        with noted():
            _check_info(info)
            add("detectors", info.name, info)

    def register_target(kind: str) -> Callable[[str, str], None]:
        def register(name: str, target: str) -> None:
            with noted():
                if not isinstance(target, str) or not _TARGET.fullmatch(target):
                    raise PluginError(f'{kind[:-1]} {name!r:.80}: expected "module:name", got {target!r:.80}')
                add(kind, name, target)

        return register

    for hook in plugin.hooks:
        kind = _HOOKS[hook]
        register = register_detector if kind == "detectors" else register_target(kind)
        getattr(manager.hook, hook)(register=register)
    if refused:
        raise refused[0]
    for (kind, name), item in new.items():
        getattr(found, kind)[name] = item
        found.owners[kind, name] = plugin
    plugin.detectors = tuple(name for kind, name in new if kind == "detectors")


_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "summary": (str,),
    "capabilities": (frozenset, set),
    "default_tag": (str, type(None)),
    "paper": (Paper, type(None)),
    "control": (bool,),
    "registry": (Path, type(None)),
    "card": (Path, type(None)),
}


def _check_info(info: DetectorInfo) -> None:
    if not isinstance(info, DetectorInfo):
        raise PluginError(f"register_detectors takes a DetectorInfo, got {type(info).__name__}")
    for name, kinds in _KINDS.items():
        value = getattr(info, name)
        if not isinstance(value, kinds):
            raise PluginError(f"{name} must be {' or '.join(kind.__name__ for kind in kinds)}, got {value!r}")
    if info.paper is not None:
        for name, kind in (("title", str), ("authors", str), ("year", int), ("url", str), ("bibtex", str)):
            value = getattr(info.paper, name)
            if not isinstance(value, kind):
                raise PluginError(f"{info.name}: paper: {name} must be {kind.__name__}, got {value!r:.80}")
    for name, text in (("summary", info.summary), *((("paper", info.paper.authors),) if info.paper else ())):
        if not text.strip() or plain(text) != text or len(text) > _LONGEST:
            raise PluginError(f"{info.name}: {name} must be one printable line of at most {_LONGEST} characters")
    if not isinstance(info.load, str) or not _TARGET.fullmatch(info.load):
        raise PluginError(f'{info.name}: load must be "module:Class", got {info.load!r}')
    unknown = sorted(set(info.capabilities) - set(CAPABILITIES))
    if unknown:
        raise PluginError(f"{info.name}: unknown capabilities {', '.join(unknown)} (known: {', '.join(CAPABILITIES)})")

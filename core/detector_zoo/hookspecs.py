"""The hooks that a plugin may implement. Each receives a ``register`` callback to call once an item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

from detector_zoo.info import DetectorInfo

ENTRY_POINT_GROUP = "detector_zoo"

hookspec = pluggy.HookspecMarker(ENTRY_POINT_GROUP)
hookimpl = pluggy.HookimplMarker(ENTRY_POINT_GROUP)


@hookspec
def register_detectors(register: Callable[[DetectorInfo], None]) -> None:
    """Register detectors: ``register(DetectorInfo(...))``."""


@hookspec
def register_datasets(register: Callable[[str, Any], None]) -> None:
    """Register data-set adapters: ``register(name, "module:Class")``."""


@hookspec
def register_perturbations(register: Callable[[str, Any], None]) -> None:
    """Register perturbations: ``register(name, "module:function")``."""

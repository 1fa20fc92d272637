"""Detectors of AI-generated images: one interface, one evaluation, every method a plugin.

>>> import detector_zoo
>>> detector_zoo.load("dummy").score(["examples/real_1.jpg"])  # doctest: +SKIP
array([-0.21], dtype=float32)

Names below are resolved when they are first used, so that importing the package loads neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detector_zoo.detector import (
        Detector,
        Explainer,
        Localizer,
        Score,
        TorchDetector,
        Trainable,
        Weights,
    )
    from detector_zoo.errors import (
        DatasetError,
        ImageError,
        LicenceError,
        PluginError,
        UnknownDetectorError,
        WeightsError,
        ZooError,
    )
    from detector_zoo.hookspecs import hookimpl
    from detector_zoo.info import DetectorInfo, Paper
    from detector_zoo.loading import LoadedDetector, load
    from detector_zoo.plugins import list_detectors
    from detector_zoo.scoring import score

__version__ = "0.1.0"

_HOME = {
    "detector": (
        "Detector",
        "Explainer",
        "Localizer",
        "Score",
        "TorchDetector",
        "Trainable",
        "Weights",
    ),
    "errors": (
        "DatasetError",
        "ImageError",
        "LicenceError",
        "PluginError",
        "UnknownDetectorError",
        "WeightsError",
        "ZooError",
    ),
    "hookspecs": ("hookimpl",),
    "info": ("DetectorInfo", "Paper"),
    "loading": ("LoadedDetector", "load"),
    "plugins": ("list_detectors",),
    "scoring": ("score",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "DatasetError",
    "Detector",
    "DetectorInfo",
    "Explainer",
    "ImageError",
    "LicenceError",
    "LoadedDetector",
    "Localizer",
    "Paper",
    "PluginError",
    "Score",
    "TorchDetector",
    "Trainable",
    "UnknownDetectorError",
    "Weights",
    "WeightsError",
    "ZooError",
    "__version__",
    "hookimpl",
    "list_detectors",
    "load",
    "score",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

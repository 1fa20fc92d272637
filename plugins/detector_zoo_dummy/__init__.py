"""A statistic of the image that detects nothing: for testing pipelines without weights."""

from __future__ import annotations

from collections.abc import Callable

from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo


@hookimpl
def register_detectors(register: Callable[[DetectorInfo], None]) -> None:
    """Register the dummy."""
    register(
        DetectorInfo(
            name="dummy",
            summary="NOT a detector: log-odds of the mean pixel value, to test pipelines without weights",
            load="detector_zoo_dummy.detector:Dummy",
            capabilities=frozenset({"localize"}),
            control=True,
        )
    )

"""Fixtures for the tests of plugins, installed with the zoo as a pytest plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from detector_zoo import __version__

if TYPE_CHECKING:
    from PIL import Image


def pytest_report_header() -> str:
    """The zoo's version, which decides what conformance means."""
    return f"detector-zoo: {__version__}"


@pytest.fixture
def zoo_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home of the zoo for one test, so that it neither reads nor writes the user's own weights."""
    from detector_zoo import registry

    home = tmp_path / "zoo-home"
    monkeypatch.setenv("DETECTOR_ZOO_HOME", str(home))
    registry.registry.cache_clear()
    yield home
    registry.registry.cache_clear()


@pytest.fixture
def zoo_pictures() -> list[Image.Image]:
    """Six RGB pictures of four sizes, the same in every run: smooth colours with grain, no photographs."""
    from detector_zoo.testing.subject import SIZES, grainy

    return [grainy(*size, seed) for seed, size in enumerate(SIZES)]

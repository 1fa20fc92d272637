"""Fixtures that several test files share."""

from __future__ import annotations

import io
import os
import pty
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from detector_zoo import plugins, registry
from detector_zoo.entry_points import EntryPoint

if TYPE_CHECKING:
    from hub_server import HubServer


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own caches."""
    home = tmp_path_factory.mktemp("zoo-home")
    monkeypatch.setenv("DETECTOR_ZOO_HOME", str(home))
    registry.registry.cache_clear()
    return home


class FakePlugins:
    """Installs plugins for one test: modules behind entry points of distributions that do not exist."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._points: list[EntryPoint] = []

    def add(
        self, name: str, module: ModuleType | Exception, distribution: str = "zoo-fake", version: str = "1.0"
    ) -> None:
        class Point(EntryPoint):
            def load(self) -> ModuleType:
                if isinstance(module, BaseException):
                    raise module
                return module

        point = Point(name, f"fake_{name}", distribution, version)
        self._points.append(point)
        every = [*plugins_installed, *self._points]
        self._monkeypatch.setattr(plugins, "entry_points", lambda group: every)
        plugins.catalogue.cache_clear()
        registry.registry.cache_clear()


plugins_installed = plugins.entry_points("detector_zoo")


@pytest.fixture
def fake_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePlugins]:
    yield FakePlugins(monkeypatch)
    monkeypatch.undo()
    plugins.catalogue.cache_clear()
    registry.registry.cache_clear()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub on this machine, and nobody logged in."""
    from hub_toys import attached

    with attached(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def run(hub: HubServer, tmp_path: Path, fake_plugins: FakePlugins, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder of an installed toy, and a token that may write."""
    from hub_toys import install_toy, run_folder

    install_toy(fake_plugins)
    monkeypatch.setenv("HF_TOKEN", hub.writer)
    return run_folder(tmp_path / "run")


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A smooth random colour picture with some grain: no photograph, but not flat either."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def on_a_terminal(command: Sequence[str], **options: Any) -> tuple[int, str, str]:
    """Run a command with its standard output on a terminal: exit status, what the terminal got, standard error."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdout=slave, stderr=subprocess.PIPE, **options)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # Linux says so when the last writer has gone
            break
        if not part:
            break
        shown += part
    os.close(master)
    _, errors = process.communicate(timeout=120)
    return process.returncode, shown.decode(), errors.decode()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of twelve pictures of four sizes, in two formats, with distinct means."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    sizes = [(96, 64), (64, 96), (80, 80), (33, 47)]
    for i in range(12):
        image = photo(*sizes[i % 4], seed=i)
        suffix = "png" if i % 2 else "jpg"
        image.save(folder / f"{i:02d}.{suffix}")
    return folder

"""The wheel, and a stranger's package beside it, in a clean virtual environment. Slow: it installs everything anew."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import photo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[1]
THIRD_PARTY = Path(__file__).with_name("third_party")
HEAVY = ("torch", "torchgen", "functorch", "triton", "nvidia", "cuda")
"""What torch consists of: 5 GB on Linux, linked rather than installed a second time on one disk."""
NO_NETWORK = """
import socket

def refuse(*args, **kwargs):
    raise OSError("the test has switched the network off")

socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
"""


class Clean:
    """A virtual environment with the wheel and what it declares to need, and nothing of this checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheels = root / "wheels"
        self.work = root / "elsewhere"
        self.work.mkdir()
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"PYTHONPATH", "VIRTUAL_ENV", "DETECTOR_ZOO_PLUGINS"}
        } | {"HF_HOME": str(root / "hf"), "DETECTOR_ZOO_HOME": str(root / "home")}

    def link_torch(self) -> None:
        """Let pip find the torch of the tests' own environment: its packages and their metadata, nothing else."""
        (target,) = (self.root / "venv").glob("lib/*/site-packages")
        for place in map(Path, site.getsitepackages()):
            for entry in place.iterdir():
                name = re.match(r"[a-z0-9]+", entry.name.lower())
                if name is not None and name[0] in HEAVY:
                    (target / entry.name).symlink_to(entry)

    def pip(self, *words: str) -> None:
        self.run(str(self.root / "venv/bin/python"), "-m", "pip", *words)

    def zoo(self, *words: str) -> str:
        return self.run(str(self.root / "venv/bin/zoo"), *words)

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=1200, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def build(self, project: Path) -> Path:
        """The wheel of a project, built from a copy so that no build output lands beside the sources."""
        copy = self.root / "src" / project.name
        ignored = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".work", "dist", "*.egg-info", ".*_cache")
        shutil.copytree(project, copy, ignore=ignored)
        target = self.wheels / project.name
        self.run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(copy))
        (wheel,) = target.iterdir()
        return wheel


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clean]:
    root = tmp_path_factory.mktemp("clean")
    environment = Clean(root)
    venv.create(root / "venv", with_pip=True)
    environment.link_torch()
    environment.pip("install", "--quiet", str(environment.build(ROOT)))
    yield environment
    shutil.rmtree(root)  # a GB


def test_the_wheel_has_the_catalogue_and_the_weights_and_stays_small(clean: Clean) -> None:
    (wheel,) = (clean.wheels / ROOT.name).iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "detector_zoo/registry.yaml" in names
    assert "detector_zoo/py.typed" in names
    assert "detector_zoo_mdmf/weights/lite.safetensors" in names
    assert "detector_zoo_mdmf/CARD.md" in names
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks"))]
    assert wheel.stat().st_size < 40e6


def test_the_wheel_alone_scores_with_the_network_off(clean: Clean) -> None:
    for seed in range(3):
        photo(300, 280, seed).save(clean.work / f"{seed}.png")
    off = clean.root / "off"
    off.mkdir()
    (off / "sitecustomize.py").write_text(NO_NETWORK)
    clean.environment["PYTHONPATH"] = str(off)
    try:
        rows = [json.loads(line) for line in clean.zoo("score", "-d", "mdmf", ".").splitlines()]
    finally:
        del clean.environment["PYTHONPATH"]
    assert [row["path"] for row in rows] == ["./0.png", "./1.png", "./2.png"]
    assert all(row["weights"] == "lite" and row["calibrated"] and not row["error"] for row in rows)
    where = clean.run(str(clean.root / "venv/bin/python"), "-c", "import detector_zoo; print(detector_zoo.__file__)")
    assert str(clean.root) in where


def test_a_strangers_package_comes_and_goes(clean: Clean) -> None:
    photo(64, 48).save(clean.work / "stranger.png")
    wheel = clean.build(THIRD_PARTY)
    clean.pip("install", "--quiet", "--no-deps", str(wheel))
    assert "ninth" in clean.zoo("list", "-q").split()
    (row,) = [json.loads(line) for line in clean.zoo("score", "-d", "ninth", "stranger.png").splitlines()]
    assert row["detector"] == "ninth"
    assert row["error"] == ""
    listed = json.loads(clean.zoo("plugins", "--json"))["plugins"]
    (plugin,) = [plugin for plugin in listed if plugin["name"] == "ninth"]
    assert (plugin["distribution"], plugin["version"], plugin["status"]) == ("zoo-ninth", "0.3.0", "ok")

    (module,) = (clean.root / "venv").glob("lib/*/site-packages/zoo_ninth/__init__.py")
    whole = module.read_text()
    module.write_text("raise RuntimeError('broken on purpose')\n")
    assert "ninth" not in clean.zoo("list", "-q").split()
    assert "dummy" in clean.zoo("list", "-q").split()
    assert "RuntimeError: broken on purpose" in clean.zoo("plugins")
    assert json.loads(clean.zoo("score", "-d", "dummy", "stranger.png"))["error"] == ""
    module.write_text(whole)

    clean.pip("uninstall", "--quiet", "--yes", "zoo-ninth")
    assert "ninth" not in clean.zoo("list", "-q").split()

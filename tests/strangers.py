"""Packages of strangers, installed for one test in a folder of their own, with the metadata that pip would write."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from detector_zoo import plugins, registry

INIT = """
from pathlib import Path
from detector_zoo import DetectorInfo, hookimpl

@hookimpl
def register_detectors(register):
    register(DetectorInfo(name={name!r}, load="zoo_{name}.detector:D", {info}))
"""
SCORE = """
import numpy as np

class D:
    def score(self, images):
        {body}
"""
CARD = "".join(
    f"\n## {heading}\n\nNone.\n" for heading in ("Training data", "Results", "Limits and known shortcuts", "Licence")
)


class Site:
    """A folder on ``sys.path``, and in the environment's PYTHONPATH, as long as the context lasts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        self.folder.mkdir()
        self._before = os.environ.get("PYTHONPATH")
        self._modules = set(sys.modules)
        sys.path.insert(0, str(self.folder))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(self.folder), self._before)))
        self.forget()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        sys.path.remove(str(self.folder))
        if self._before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = self._before
        for name in set(sys.modules) - self._modules:
            if str(self.folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
        self.forget()

    @staticmethod
    def forget() -> None:
        plugins.catalogue.cache_clear()
        registry.registry.cache_clear()

    def describe(self, distribution: str, points: str, licence: str = "MIT") -> None:
        """Write the metadata of a distribution whose files are there already."""
        folder = self.folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        stated = f"License-Expression: {licence}\n" if licence else ""
        folder.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {distribution}\nVersion: 1.0\n{stated}", "utf-8"
        )
        folder.joinpath("entry_points.txt").write_text(f"[detector_zoo]\n{points}\n", "utf-8")
        self.forget()

    def install(
        self,
        name: str,
        body: str = "return np.array([np.asarray(i).mean() / 64 - 2 for i in images], np.float32)",
        *,
        init: str | None = None,
        detector: str | None = None,
        info: str = 'summary="A stranger", card=Path(__file__).with_name("CARD.md")',
        card: str = CARD,
        licence: str = "MIT",
    ) -> Path:
        """A package with one detector; by default a sound one. ``body`` is that of its method score."""
        package = self.folder / f"zoo_{name}"
        package.mkdir()
        package.joinpath("__init__.py").write_text(init if init is not None else INIT.format(name=name, info=info))
        package.joinpath("detector.py").write_text(detector if detector is not None else SCORE.format(body=body))
        package.joinpath("CARD.md").write_text(card)
        self.describe(f"zoo-{name}", f"{name} = zoo_{name}", licence)
        return package


def link_environment(venv: Path) -> None:
    """Let a virtual environment have what the tests' own has, all but the zoo: gigabytes, not installed twice."""
    (target,) = venv.glob("lib/*/site-packages")
    for place in map(Path, site.getsitepackages()):
        for entry in place.iterdir():
            ours = entry.name.lstrip("_").startswith(("detector_zoo", "editable__"))
            if not ours and not entry.name.endswith(".pth") and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)


def build_wheel(project: Path, folder: Path) -> Path:
    """The wheel of a project in ``folder``, built from a copy so that no build output lands beside the sources."""
    copy = folder / "src" / project.name
    ignored = shutil.ignore_patterns(".*_cache", ".venv", ".git", ".work", "__pycache__", "dist", "*.egg-info")
    shutil.copytree(project, copy, ignore=ignored)
    wheels = folder / "wheels" / project.name
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = wheels.iterdir()
    return wheel

"""Where a result comes from: versions of what computed it, and the commit of the code."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["environment", "git_state"]

_PACKAGES = ("detector-zoo", "torch", "torchvision", "timm", "open-clip-torch", "numpy", "pillow", "scikit-learn")


def environment() -> dict[str, str]:
    """Versions of Python, the platform and what decodes and computes, as far as installed."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """The commit of the checkout that this code runs from, and whether tracked files differ; None outside one."""
    here = Path(__file__).resolve().parent
    try:
        top = _git(here, "rev-parse", "--show-toplevel")
        # An installed copy may lie in a virtual environment inside somebody else's repository.
        if not (Path(top) / "core" / "detector_zoo" / "evaluation").samefile(here):
            return None
        commit = _git(here, "rev-parse", "HEAD")
        changed = bool(_git(here, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": changed}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()

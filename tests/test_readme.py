"""The README does what it says: every command and every Python block is run, every output compared."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import on_a_terminal, photo

ROOT = Path(__file__).resolve().parents[1]
README = ROOT.joinpath("README.md").read_text("utf-8")
NUMBER = re.compile(r"^[+-]?\d+(\.\d+)?$")
BAR = re.compile(r"^[█░]{10}$")


def commands() -> list[tuple[str, str]]:
    """(command, expected output or "") of every console block."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command.split("  #")[0].strip(), output.rstrip()))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader of the README might stand: the examples, and photographs of their own."""
    root = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "examples", root / "examples")
    (root / "photos").mkdir()
    for i in range(3):
        photo(320, 240, i).save(root / "photos" / f"{i}.{'png' if i else 'jpg'}")
    return root


def typed(command: str, folder: Path) -> tuple[int, str]:
    """Type a shell command on a terminal of 100 columns; exit status and what it shows, without colour."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "100",
        "DETECTOR_ZOO_HOME": str(folder / "home"),
    }
    status, shown, errors = on_a_terminal(["bash", "-c", command], cwd=folder, env=environment)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n")
    return status, plain.rstrip() or errors


def same(shown: str, expected: str) -> bool:
    """Whether two words agree; numbers to 0.05, because a score's last digit depends on the processor."""
    if NUMBER.match(shown) and NUMBER.match(expected):
        return abs(float(shown) - float(expected)) <= 0.05
    if BAR.match(shown) and BAR.match(expected):
        return abs(shown.count("█") - expected.count("█")) <= 1
    return shown == expected


@pytest.mark.parametrize(("command", "expected"), commands())
def test_command(command: str, expected: str, folder: Path) -> None:
    status, shown = typed(command, folder)
    assert status == 0, shown
    if expected:
        assert len(shown.splitlines()) == len(expected.splitlines()), shown
        for line, wanted in zip(shown.splitlines(), expected.splitlines(), strict=True):
            words, wanted_words = line.split(), wanted.split()
            assert len(words) == len(wanted_words), shown
            assert all(map(same, words, wanted_words)), f"{line!r} is not {wanted!r}"


def test_python_blocks(folder: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_make_targets_exist() -> None:
    makefile = ROOT.joinpath("Makefile").read_text()
    targets = re.findall(r"^ {4}make ([\w-]+)|`make ([\w-]+)", README, re.MULTILINE)
    assert len(targets) >= 2
    for first, second in targets:
        assert re.search(rf"^{first or second}:", makefile, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target

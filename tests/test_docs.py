"""The pages of docs/ do what they say: every block is run, in order, and every output compared."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector_zoo.cli import COMMANDS
from test_readme import ROOT, typed

PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in (
        "which-metric",
        "is-my-data-biased",
        "what-does-093-mean",
        "tutorial",
        "howto-many-files",
        "scale",
        "howto-calibrate",
        "howto-train",
        "howto-offline",
    )
]
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def same(shown: str, expected: str) -> bool:
    """Whether two words agree; numbers with a decimal point to 0.05: last digits depend on the processor."""
    if NUMBER.sub("#", shown) != NUMBER.sub("#", expected):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(expected), strict=True)
    return all(a == b or ("." in a and "." in b and abs(float(a) - float(b)) <= 0.05) for a, b in pairs)


def agrees(shown: str, expected: str) -> bool:
    """Whether the words agree one by one; ``...`` stands for any number of words, line ends included."""
    words, parts = shown.split(), [part.split() for part in expected.split("...")]
    at = 0
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        starts = [at] if number == 0 else [len(words) - len(part)] if last else range(at, len(words) - len(part) + 1)
        found = [s for s in starts if s >= at and len(words[s : s + len(part)]) == len(part)]
        found = [s for s in found if all(map(same, words[s : s + len(part)], part))]
        if not found:
            return False
        at = found[0] + len(part)
    return at == len(words)


class Tolerant(doctest.OutputChecker):
    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return agrees(got, want)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """(command, expected output or "")."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output.strip()


def interpreted(block: str, names: dict[str, object], where: str) -> None:
    """Run a session of the interpreter; ``names`` go on from block to block."""
    test = doctest.DocTestParser().get_doctest(block, names, where, where, 0)
    assert test.examples
    report = io.StringIO()
    runner = doctest.DocTestRunner(Tolerant())
    with contextlib.redirect_stdout(report):
        failed = runner.run(test, out=report.write, clear_globs=False).failed
    names.update(test.globs)
    assert failed == 0, report.getvalue()


def test_blocks(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    names: dict[str, object] = {}
    compared = 0
    for kind, block in BLOCK.findall(page.read_text("utf-8")):
        if kind == "console":
            for command, expected in commands(block):
                status, shown = typed(command, tmp_path)
                assert status == 0, f"{command}\n{shown}"
                assert agrees(shown, expected) or not expected, f"{command}\n{shown}\nis not\n{expected}"
                compared += bool(expected)
        elif block.startswith(">>>"):
            interpreted(block, names, page.name)
        else:
            done = subprocess.run(
                [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    assert compared >= 3


@pytest.mark.parametrize(
    ("shown", "expected", "verdict"),
    [
        ("a 0.50 b", "a 0.52 b", True),
        ("a 0.50 b", "a 0.60 b", False),
        ("4 images", "5 images", False),
        ("[0.051, 0.981]", "[0.06, 0.98]", True),
        ("a\nb\nc", "a ... c", True),
        ("a b c d", "a ... c", False),
        ("a b", "b ...", False),
        ("a b c", "... b ...", True),
        ("a", "a a", False),
    ],
)
def test_agrees(shown: str, expected: str, verdict: bool) -> None:
    assert agrees(shown, expected) is verdict


def test_generated_tables_are_current(page: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "--diff", str(page)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nmake docs"


def test_names_only_commands_that_exist(page: Path, tmp_path: Path) -> None:
    named = set(re.findall(r"\bzoo ([a-z]+)(?: ([a-z][a-z-]+)\b)?", "\n".join(coded(page))))
    assert named
    for command, sub in sorted(named):
        assert command in COMMANDS
        if command in ("audit", "data"):
            status, shown = typed(f"zoo {command} {sub} --help", tmp_path)
            assert status == 0, shown


def coded(page: Path) -> list[str]:
    """What a page sets as code: in the running text, and the commands of its console blocks."""
    text = page.read_text("utf-8")
    blocks = [command for kind, block in BLOCK.findall(text) if kind == "console" for command, _ in commands(block)]
    return [*blocks, *re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))]


def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8"))
    assert targets
    for target in targets:
        assert target.startswith("https://") or (page.parent / target).exists(), target

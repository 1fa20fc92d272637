"""docs/http-api.md does what it says: its server is started, and every request on the page is made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click import Option

from detector_zoo.app.analysis import PERTURBATIONS
from detector_zoo.app.api import MAX_LAUNDERINGS, PREFIX
from detector_zoo.app.limits import BODY_SECONDS
from detector_zoo.app.problems import STATUS
from detector_zoo.cli.app import command
from test_docs import BLOCK, agrees, commands
from test_readme import ROOT, typed

TEXT = (ROOT / "docs" / "http-api.md").read_text("utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


@pytest.fixture
def text(folder: Path) -> Iterator[str]:
    """The page for a server that runs on a port of its own, started as its first command says."""
    first, expected = next(commands(BLOCK.findall(TEXT)[0][1]))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DETECTOR_ZOO_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [*first.split(), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=folder,
    )
    try:
        assert process.stdout is not None
        shown = "".join(process.stdout.readline() for _ in expected.splitlines())
        found = re.search(r"http://127\.0\.0\.1:(\d+)", shown)
        assert found, shown
        assert agrees(shown.replace(found[1], "7860"), expected), shown
        yield TEXT.replace("7860", found[1])
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_blocks(text: str, folder: Path) -> None:
    compared = 0
    for kind, block in BLOCK.findall(text)[1:]:
        if kind == "python":
            done = subprocess.run(
                [sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert "'scored': 2" in done.stdout
            continue
        for typed_, expected in commands(block):
            status, shown = typed(typed_, folder)
            assert status == 0, f"{typed_}\n{shown}"
            assert agrees(shown, expected) or not expected, f"{typed_}\n{shown}\nis not\n{expected}"
            compared += bool(expected)
    assert compared >= 6


def test_every_error_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| .+ \|$", TEXT, re.MULTILINE)
    assert {name: int(status) for name, status in rows} == STATUS


def test_every_path_is_documented() -> None:
    from fastapi import FastAPI

    from detector_zoo.app.analysis import Analyst
    from detector_zoo.app.api import install
    from detector_zoo.app.options import Options

    app = FastAPI()
    install(app, Analyst(["dummy"]), Options())
    served = {
        (method.upper(), path, field)
        for path, methods in app.openapi()["paths"].items()
        for method, described in methods.items()
        for field in fields(app.openapi(), described)
    }
    rows = re.findall(rf"^\| `(GET|POST) ({PREFIX}/\w+)` \| (.*?) \|", TEXT, re.MULTILINE)
    told = {(method, path, field) for method, path, cell in rows for field in re.findall(r"`(\w+)`", cell) or [""]}
    assert told == served


def fields(schema: dict[str, object], described: dict[str, object]) -> list[str]:
    body = str(described.get("requestBody", ""))
    found = re.search(r"#/components/schemas/(\w+)", body)
    if found is None:
        return [""]
    return list(schema["components"]["schemas"][found[1]]["properties"])  # type: ignore[index]


def test_what_is_said_of_limits_is_so() -> None:
    assert BODY_SECONDS == 120
    assert f"at most {MAX_LAUNDERINGS} a request" in TEXT
    assert all(f"`{spec}`" in TEXT for spec in PERTURBATIONS)
    options = {name for parameter in command.params if isinstance(parameter, Option) for name in parameter.opts}
    assert set(re.findall(r"`(--[\w-]+)`", TEXT)) <= options | {"--no-page"}

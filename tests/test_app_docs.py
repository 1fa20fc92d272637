"""docs/app.md, the Dockerfile and the files of the Space say what the code does; there is no Docker here to ask."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

import click
import pytest
import yaml

from detector_zoo.app.guard import OPEN
from detector_zoo.app.limits import BODY_SECONDS
from detector_zoo.app.options import Options
from detector_zoo.app.uploads import CLEAN_AFTER, CLEAN_EVERY, LARGEST_UPLOADS
from detector_zoo.cli import main
from detector_zoo.cli.app import AUTH
from test_docs import BLOCK, agrees, commands

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "app.md"
TEXT = PAGE.read_text("utf-8")
TYPED = [typed for _, block in BLOCK.findall(TEXT) for typed in commands(block)]
SERVED = [(command, expected) for command, expected in TYPED if "zoo app" in command]
EXTRAS = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]


def asked(url: str, login: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_every_command_is_known() -> None:
    assert len(SERVED) == 3
    rest = [command for command, _ in TYPED if "zoo app" not in command]
    assert rest == ["pip install 'detector-zoo[app,heatmaps]'"]
    assert {"app", "heatmaps"} <= set(EXTRAS)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "expected"), SERVED, ids=[command for command, _ in SERVED])
def test_a_server_that_the_page_starts(command: str, expected: str, tmp_path: Path) -> None:
    """As it stands, but for the port, which may be taken here."""
    words = shlex.split(command)
    given = [word.partition("=") for word in words if "=" in word]
    words = words[len(given) :]
    port = words[words.index("--port") + 1] if "--port" in words else "7860"
    environment = {name: value for name, value in os.environ.items() if name != AUTH} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DETECTOR_ZOO_HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        **{name: value for name, _, value in given},
    }
    with subprocess.Popen(
        [*words, "--port", "0"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            shown = ""
            while "Ctrl-C" not in shown:
                line = process.stdout.readline()
                assert line, shown
                shown += line
            found = re.search(r"http://([\d.]+):(\d+)", shown)
            assert found
            if expected:
                assert agrees(shown.replace(found[2], port), expected)
            here = f"http://127.0.0.1:{found[2]}"
            assert asked(f"{here}{OPEN[0]}")[0] == 200
            login = {name: value for name, _, value in given}.get(AUTH)
            assert asked(f"{here}/")[0] == (401 if login else 200)
            status, html = asked(f"{here}/", login)
            assert status == 200
            assert "Detector zoo" in html
            named = words[1:][words[1:].index("--detector") :] if "--detector" in words else []
            loaded = json.loads(asked(f"{here}/api/v1/detectors", login)[1])["detectors"]
            assert len(loaded) == (named.count("--detector") or 7)
            assert list(tmp_path.glob("zoo-app-*"))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert list(tmp_path.glob("zoo-app-*")) == []


def test_links_and_pictures() -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT)
    assert len([target for target in targets if target.startswith("images/")]) == 2
    for target in targets:
        assert target.startswith("https://") or (PAGE.parent / target).exists(), target
        if target.startswith("images/"):
            assert (PAGE.parent / target).stat().st_size < 200_000


def test_figures_are_the_defaults() -> None:
    plain = Options()
    for words in (
        f"`--max-upload` ({plain.max_upload // 1_000_000} MB)",
        f"`--max-pixels` ({plain.max_pixels // 1_000_000} million)",
        f"`--concurrency` ({plain.concurrency})",
        f"`--queue` ({plain.queue})",
    ):
        assert words in TEXT


def test_what_is_kept_is_as_long_and_as_much() -> None:
    """The page, and what the server's own page and the Space say of it."""
    assert (CLEAN_AFTER, 2 * BODY_SECONDS + CLEAN_EVERY) == (3600, 300)
    kept = TEXT.partition("## What it keeps\n")[2]
    assert "deleted after an hour at the latest" in kept
    assert "after five minutes" in kept
    room = LARGEST_UPLOADS * Options().max_upload
    assert f"room for {LARGEST_UPLOADS} uploads of `--max-upload` ({room / 1e9:.0f} GB)" in kept
    assert "for an hour at the latest" in ROOT.joinpath("space", "README.md").read_text("utf-8")


def test_a_limit_of_uploads_is_told_in_words_that_fit() -> None:
    command = main.get_command(click.Context(main), "app")
    assert command is not None
    with pytest.raises(click.BadParameter, match=r"'5' is less than 1MB$"):
        command.make_context("app", ["--max-upload", "5"])


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of a Dockerfile, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", path.read_text("utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.mark.parametrize("path", [ROOT / "Dockerfile", ROOT / "space" / "Dockerfile"], ids=["image", "space"])
def test_dockerfile(path: Path) -> None:
    steps = instructions(path)
    names = [name for name, _ in steps]
    assert steps[0] == ("FROM", "python:3.12-slim")
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "CMD"}
    assert set(names) <= known
    # torch for the CPU comes first, so that the zoo's own dependency is met by it.
    runs = [text for name, text in steps if name == "RUN"]
    assert "torch" in runs[0]
    assert "--index-url https://download.pytorch.org/whl/cpu" in runs[0]
    assert ("USER", "zoo") in steps
    assert names.index("USER") < names.index("CMD")
    assert all(name != "RUN" for name in names[names.index("USER") :])
    assert "useradd" in runs[-1]
    assert ("EXPOSE", str(Options().port)) in steps
    for name, text in steps:
        if name == "COPY":
            for source in text.split()[:-1]:
                assert (path.parent / source).exists(), source
        if name == "ENV":
            assert all("=" in word for word in text.split())


def test_image_runs_what_the_command_line_knows() -> None:
    steps = dict(instructions(ROOT / "Dockerfile"))
    words = json.loads(steps["CMD"])
    assert words[:2] == ["zoo", "app"]
    command = main.get_command(click.Context(main), "app")
    assert command is not None
    given = command.make_context("app", words[2:]).params
    assert given["host"] == "0.0.0.0"
    assert OPEN[0] in steps["HEALTHCHECK"]
    run = next(line for line in TEXT.splitlines() if line.startswith("docker run"))
    assert f"{AUTH}=" in run
    assert "-p 127.0.0.1:7860:7860" in run
    assert "--tmpfs /tmp" in run
    # What the build needs is in the context, and what it does not need is not.
    let_in = ROOT.joinpath(".dockerignore").read_text("utf-8").splitlines()
    assert let_in[0] == "*"
    copied = [text.split()[:-1] for name, text in instructions(ROOT / "Dockerfile") if name == "COPY"]
    assert sorted(source for sources in copied for source in sources) == sorted(
        line[1:] for line in let_in if line.startswith("!")
    )


def test_space() -> None:
    space = ROOT / "space"
    _, head, body = space.joinpath("README.md").read_text("utf-8").split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["sdk"] == "docker"
    assert front["license"] == "apache-2.0"
    assert len(front["short_description"]) <= 60
    assert {front["colorFrom"], front["colorTo"]} <= {
        *("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
    }
    options = runpy.run_path(str(space / "app.py"))["OPTIONS"]
    assert isinstance(options, Options)
    assert options.embed
    assert options.port == front["app_port"]
    asked_for = re.fullmatch(r"detector-zoo\[([\w,]+)\]\n", space.joinpath("requirements.txt").read_text("utf-8"))
    assert asked_for
    assert set(asked_for[1].split(",")) <= set(EXTRAS)
    assert "zoo app" in body

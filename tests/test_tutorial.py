"""The tutorial's commands, typed as they stand from an empty directory, give a new detector in `zoo list`."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from strangers import build_wheel, link_environment
from test_docs import ROOT, agrees, commands

from conftest import on_a_terminal

PAGE = ROOT / "docs" / "tutorial-plugin.md"
BLOCK = re.compile(r'^```(console|python title="([^"]+)")\n(.*?)^```$', re.MULTILINE | re.DOTALL)


class Shell:
    """One session: directory and environment go on from command to command."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.state = folder.parent / "state.sh"
        self.state.write_text(f"cd {shlex.quote(str(folder))}\n")

    def typed(self, command: str) -> tuple[int, str]:
        keep = f'{{ export -p; printf "cd %q\\n" "$PWD"; }} > {shlex.quote(str(self.state))}'
        script = f". {shlex.quote(str(self.state))}\n{command}\nstatus=$?\n{keep}\nexit $status"
        status, shown, errors = on_a_terminal(["bash", "-c", script], env=self.environment)
        return status, re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n").rstrip() or errors

    @property
    def place(self) -> Path:
        return Path(shlex.split(self.state.read_text().splitlines()[-1])[1])


def test_links_lead_somewhere() -> None:
    for page in (PAGE, PAGE.with_name("plugins.md")):
        targets = re.findall(r"\]\(([^)#]+)(#[^)]+)?\)", page.read_text("utf-8"))
        assert targets
        for target, anchor in targets:
            assert target.startswith("https://") or (page.parent / target).exists(), target
            if anchor:
                assert f"\n## {anchor[1:].capitalize()}\n" in (page.parent / target).read_text("utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_as_it_stands(tmp_path: Path) -> None:
    wheel = build_wheel(ROOT, tmp_path)
    folder = tmp_path / "empty"
    folder.mkdir()
    left_out = {"PYTHONPATH", "VIRTUAL_ENV", "DETECTOR_ZOO_PLUGINS"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out} | {
        "COLUMNS": "120",
        "DETECTOR_ZOO_HOME": str(tmp_path / "home"),
        # No network: the zoo comes from the wheel, all it needs from the tests' own environment (linked below).
        "PIP_FIND_LINKS": str(wheel.parent),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it the wrong way round: no isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    shell = Shell(folder, environment)
    compared = 0
    for kind, file, block in BLOCK.findall(PAGE.read_text("utf-8")):
        if kind != "console":
            (shell.place / file).write_text(block, "utf-8")
            continue
        for command, expected in commands(block):
            status, shown = shell.typed(command)
            assert status == 0, f"{command}\n{shown}"
            assert agrees(shown, expected) or not expected, f"{command}\n{shown}\nis not\n{expected}"
            compared += bool(expected)
            if "-m venv" in command:
                link_environment(folder / ".venv")
    assert compared >= 5
    assert "my_detector" in shell.typed("zoo list --quiet")[1].split()

"""docs/publish.md does what it says, with a Hub on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from detector_zoo import convert, registry, weights
from test_docs import BLOCK, agrees, commands
from test_readme import ROOT, typed

from hub_server import HubServer

PAGE = ROOT / "docs" / "publish.md"


def run_of(name: str, folder: Path) -> None:
    """A run's folder of weights that the zoo ships."""
    folder.mkdir(parents=True)
    path = folder / "weights.safetensors"
    shutil.copyfile(weights.fetch(registry.lookup(name)), path)
    entry = yaml.safe_load((ROOT / "registry.yaml").read_text("utf-8"))["weights"][name]
    entry |= {"source": "file:", "sha256": convert.sha256_of(path), "bytes": path.stat().st_size, "why": "trained here"}
    document = {"schema_version": 1, "weights": {f"{name.partition('.')[0]}.mine": entry}}
    (folder / "weights.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (folder / "CARD.md").write_text("# Mine\n\n## Training data\n\nHolidays.\n")


def test_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    run_of("mdmf.lite", tmp_path / "runs" / "mine")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    rows, compared = [], 0
    with HubServer() as hub:
        for name, value in (
            ("HF_ENDPOINT", hub.url),
            ("HF_HOME", str(tmp_path / "hf")),
            ("HF_TOKEN", hub.writer),
            ("HF_HUB_DISABLE_XET", "1"),
        ):
            monkeypatch.setenv(name, value)
        for _, block in BLOCK.findall(PAGE.read_text("utf-8")):
            for command, expected in commands(block):
                status, shown = typed(command, tmp_path)
                assert status == 0, f"{command}\n{shown}"
                assert agrees(shown, expected) or not expected, f"{command}\n{shown}\nis not\n{expected}"
                compared += bool(expected)
                if " score " in command:
                    rows.append(json.loads(shown[shown.index("{") :]))
    assert compared == 3
    (commit,) = hub.repos["alice/my-detector"].commits
    assert {row["weights"] for row in rows} == {f"hub:alice/my-detector@{commit}"}
    assert json.loads((tmp_path / "zoo.lock").read_text())["weights"]["hub:alice/my-detector"]["commit"] == commit
    here = typed("zoo score -d mdmf --weights runs/mine examples/real_1.jpg --format json", tmp_path)[1]
    assert rows[0]["log_odds"] == pytest.approx(json.loads(here)["log_odds"], abs=1e-6)


def test_the_table_of_words_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", "--diff", str(PAGE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nmake docs"

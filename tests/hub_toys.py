"""What the tests of the Hub share: a loopback Hub as huggingface_hub's endpoint, and a run's folder to publish."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import constants

from detector_zoo import hub_refs
from detector_zoo.cli import main
from detector_zoo.evaluation.metrics import Metric
from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo
from detector_zoo.training import artifact, calibration
from detector_zoo.weight_specs import WeightSpec
from test_weights import point_at
from training_toys import RECIPE, ToyNetwork

from conftest import FakePlugins
from hub_server import HubServer

REPO = "alice/toy-detector"


def zoo(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def complaint(result: Result, status: int = 1) -> str:
    """What a command that failed says: one line and at most one hint."""
    assert result.exit_code == status, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line]
    assert "Traceback" not in result.stderr
    assert [line.partition(":")[0] for line in lines if not line.startswith(("Usage", "Try"))][-2:] in (
        ["Error"],
        ["Error", "Hint"],
    ), lines
    return result.stderr


@contextmanager
def attached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server as the Hub, with nobody logged in and empty caches, and a working directory beside them."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT", "DETECTOR_ZOO_LOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # the oldest version has no such switch
    (folder / "work").mkdir()
    monkeypatch.chdir(folder / "work")
    hub_refs.forget()
    with HubServer() as server:
        point_at(monkeypatch, server.url)
        yield server


def install_toy(plugins: FakePlugins) -> None:
    @hookimpl
    def register_detectors(register: Any) -> None:
        register(DetectorInfo(name="toy", summary="a toy", load="training_toys:Toy"))

    module = types.ModuleType("toy")
    module.register_detectors = register_detectors  # type: ignore[attr-defined]
    plugins.add("toy", module, distribution="zoo-toy")


def run_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A folder as `zoo train` leaves it, of a network that was never trained."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    fields = {
        "summary": "a toy",
        "config": {"width": 6},
        "preprocessing": RECIPE["preprocessing"],
        "licence": "Apache-2.0",
        "why": "made by a test",
        **changes,
    }
    made = artifact.Made(
        spec=WeightSpec(name="toy.mine", **fields),
        tensors=artifact.half(ToyNetwork(6).state_dict()),
        fit=calibration.fit([0, 0, 0, 1, 1, 1], [-2.0, 0.5, -1.0, 1.0, -0.5, 2.0]),
        metrics={"all": {"AUROC": Metric(0.91, 0.8, 0.97)}, "edit": {"AUROC": Metric(0.7, 0.6, 0.8)}},
        counts={"train": (6, 6), "validation": (3, 3)},
        sources={"phone": (9, 0), "gan": (0, 9)},
        data_sha256="0" * 64,
        recipe="lite",
        values=RECIPE,
        data="holiday, split train",
        seed=seed,
        steps=(24, 16),
        seconds=1.0,
        why="the schedule is done",
        machine="a test",
    )
    artifact.write_folder(made, folder)
    return folder

"""Checkpoints that are whole or not there, and the record of a run's metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector_zoo import convert
from detector_zoo.errors import WeightsError, ZooError

__all__ = ["Metrics", "Progress", "find", "read", "write"]

FOLDER = "checkpoints"


@dataclass(slots=True)
class Progress:
    """How far a run is; with the tensors of a checkpoint all that it takes to go on.

    Attributes:
        fingerprint: Of the recipe, the data and the seed: a run goes on only with the same ones.
        step: Steps done.
        seconds: Spent on them.
        scale: Factor on the learning rate, by the plateau rule.
        bad: Validations since the monitored figure last rose.
        best: Metrics of the best validation.
        best_step: When that was.
        finished: Why the run ended; "" while it has not.
    """

    fingerprint: str
    step: int = 0
    seconds: float = 0.0
    scale: float = 1.0
    bad: int = 0
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    finished: str = ""


def write(
    out: Path,
    progress: Progress,
    tensors: Mapping[str, Mapping[str, Tensor]],
    optimiser: Mapping[str, Any],
) -> None:
    """Write a checkpoint and remove the ones before it.

    Args:
        out: The run's folder.
        progress: See there.
        tensors: State dicts by name (``model``, ``best``, ...).
        optimiser: Of tensors, numbers and texts, as torch can read back without running anything.

    Raises:
        WeightsError: It cannot be written.
    """
    folder = out / FOLDER
    final = folder / f"{progress.step:09d}"
    staging = folder / ".tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        for name, state in tensors.items():
            convert.write({key: value.cpu() for key, value in state.items()}, staging / f"{name}.safetensors")
        torch.save(dict(optimiser), staging / "optimiser.pt")
        (staging / "progress.json").write_text(json.dumps(asdict(progress), indent=1) + "\n", "utf-8")
        if final.exists():
            shutil.rmtree(final)
        staging.rename(final)
        for older in folder.iterdir():
            if older != final:
                shutil.rmtree(older)
    except OSError as error:
        raise convert.os_error(folder, error) from error


def find(out: Path) -> Path | None:
    """The latest checkpoint of a run; what was being written when it was killed is not one."""
    whole = [path for path in (out / FOLDER).glob("[0-9]*") if (path / "progress.json").is_file()]
    return max(whole, default=None)


def read(folder: Path, fingerprint: str) -> tuple[Progress, dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint.

    Args:
        folder: From `find`.
        fingerprint: What the progress has to have.

    Returns:
        What `write` got.

    Raises:
        ZooError: It is of another recipe, data or seed.
        WeightsError: A file is damaged.
    """
    try:
        progress = Progress(**json.loads((folder / "progress.json").read_text("utf-8")))
        optimiser = torch.load(folder / "optimiser.pt", weights_only=True, map_location="cpu")
    # A damaged file provokes exceptions of many kinds.
    except Exception as error:
        raise WeightsError(f"{folder}: damaged checkpoint: {convert.one_line(error)}", hint="--no-resume") from error
    if progress.fingerprint != fingerprint:
        raise ZooError(
            f"{folder} is of a run with another recipe, other data or another seed",
            hint="--no-resume starts anew and removes it, another --out keeps both",
        )
    tensors = {path.stem: convert.read_safetensors(path) for path in sorted(folder.glob("*.safetensors"))}
    return progress, tensors, optimiser


class Metrics:
    """The run's ``metrics.jsonl``: a JSON object a line, each with its step, in order and none twice.

    Args:
        out: The run's folder.
        step: Lines of later steps are dropped: a run that goes on from there will write them again.
    """

    def __init__(self, out: Path, step: int = 0) -> None:
        self._path = out / "metrics.jsonl"
        kept = [row for row in self.read(out) if row["step"] <= step] if step else []
        with convert.atomic(self._path) as staging:
            staging.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")

    @staticmethod
    def read(out: Path) -> list[dict[str, Any]]:
        """All whole lines; a killed run may have left half of one."""
        path = out / "metrics.jsonl"
        rows: list[dict[str, Any]] = []
        if not path.is_file():
            return rows
        for line in path.read_text("utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def add(self, **row: Any) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

"""`Job`: what `zoo train` asks of a detector's class, and what the generic loop runs on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from detector_zoo import __version__

if TYPE_CHECKING:
    from detector_zoo.evaluation.samples import Sample

__all__ = ["Job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training.

    Attributes:
        name: Of the weights that will come of it, ``method.tag``.
        samples: Of the split to train on, hashed, each file once, both classes (`splits.select`).
        recipe: Which recipe ``values`` come from.
        values: The recipe, with the user's changes; a class checks them with `recipes.build`.
        out: The run's folder: checkpoints, metrics and in the end the weights.
        data: What was asked for, in words, for the card.
        base: Name or run folder of the weights to start from, where a method needs some.
        seed: Of every draw.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: Of the forward pass.
        resume: Go on from the checkpoint in ``out``; else begin anew.
        limit_minutes: End after so many minutes of training, this run and those that it resumes together.
        workers: Processes that prepare batches; 0 does it in the training's own.
        quiet: Say nothing on the way.
    """

    name: str
    samples: tuple[Sample, ...]
    recipe: str
    values: Mapping[str, Any]
    out: Path
    data: str = ""
    base: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    resume: bool = True
    limit_minutes: float | None = None
    workers: int = 0
    quiet: bool = False

    @property
    def method(self) -> str:
        """The part of the name before the dot."""
        return self.name.partition(".")[0]

    def fingerprint(self, *more: str) -> str:
        """Hash of all that the weights depend on: recipe, data, seed, precision, core version and ``more``."""
        data = sorted((s.sha256, s.label, s.kind, s.source, s.generator, s.group) for s in self.samples)
        parts = (self.values, data, self.seed, self.precision, self.base, __version__, more)
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def within(self, folder: str) -> Job:
        """The same job in a folder of its own below ``out``."""
        return replace(self, out=self.out / folder)

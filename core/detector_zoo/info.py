"""What a plugin tells of its detectors without importing them; all that `zoo list` needs, so nothing heavy is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CAPABILITIES", "DetectorInfo", "Paper"]

CAPABILITIES = ("explain", "localize", "train")
"""What a detector may be able to do beyond scoring: as `zoo list --capability` takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """Where a method was published."""

    title: str
    authors: str
    year: int
    url: str
    bibtex: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorInfo:
    """What a plugin tells of a detector without importing it.

    Attributes:
        name: Lower-case letters, digits and underscores; what `zoo score --detector` takes.
        summary: One line.
        load: ``"module:Class"``, imported when the detector is first used. With weights the class is built by
            ``Class.from_weights(weights: Weights)``, without by ``Class()``.
        capabilities: Keys of `CAPABILITIES` that the class implements.
        default_tag: The weights that the bare name stands for; None for a detector without weights.
        paper: The publication, if there is one.
        control: True for a statistic that exists to test pipelines; never part of `--detector all`.
        registry: A catalogue of weights (the schema of registry.yaml) beside the plugin's module, if it has
            its own.
        card: The model card, Markdown.
    """

    name: str
    summary: str
    load: str
    capabilities: frozenset[str] = frozenset()
    default_tag: str | None = None
    paper: Paper | None = None
    control: bool = False
    registry: Path | None = None
    card: Path | None = None

"""The training data's ``manifest.csv``, and the slice of its train split that choices are made on."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

from detector_zoo.errors import DatasetError

__all__ = ["Row", "calibration_slice", "read_manifest", "selection_slice"]

SELECTION_SOURCES = frozenset(
    {"openimages-200", "scratch", "darknet", "dlib", "python3-sklearn", "lomiri-wallpapers-16.04", "sr-esrgan"}
)
"""Sources that no model of the selection stage learns from; chosen before any experiment for their variety."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image of the data set.

    Attributes:
        path: Absolute, or relative to the working directory, as the data folder was given.
        generated: True for label ``generated``.
        split: ``train`` or ``val``.
        generator: The model, "" for photographs.
        kind: ``photo``, ``t2i``, ``inpaint`` or ``recon``.
        source: The collection that the file comes from.
        codec: ``jpg``, ``png`` or ``webp``.
        sha256: Of the file.
    """

    path: Path
    generated: bool
    split: str
    generator: str
    kind: str
    source: str
    codec: str
    sha256: str


def read_manifest(data: Path, split: str) -> list[Row]:
    """Rows of one split, in the manifest's order.

    Raises:
        DatasetError: There is no manifest, or no row of that split.
    """
    manifest = data / "manifest.csv"
    if not manifest.is_file():
        raise DatasetError(f"{manifest} does not exist")
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [
            Row(
                path=data / line["path"],
                generated=line["label"] == "generated",
                split=line["split"],
                generator=line["generator"],
                kind=line["kind"],
                source=line["source"],
                codec=line["codec"],
                sha256=line["sha256"],
            )
            for line in csv.DictReader(file)
            if line["split"] == split
        ]
    if not rows:
        raise DatasetError(f"{manifest} has no row of split {split!r}")
    return rows


def selection_slice(row: Row) -> bool:
    """Whether a train row belongs to the slice that embedders and hyperparameters are chosen on.

    Whole sources where there are several; of the collections that hold one picture a generator, and of
    inpainting, every third by the hash of the generator's family (its name up to the first blank, dot or
    slash), or of the file where the collection has a single generator.
    """
    if row.source in SELECTION_SOURCES:
        return True
    if row.source in {"comfyui-examples", "sdnext-reference"}:
        family = row.generator.replace("/", " ").replace(".", " ").split(" ")[0]
        return hashlib.sha256(family.encode()).digest()[0] % 3 == 0
    if row.source == "inpaint-anything":
        return int(row.sha256[:4], 16) % 3 == 0
    return False


def calibration_slice(row: Row) -> bool:
    """Whether a train row belongs to the slice that the shipped weights are calibrated on: one file in seven."""
    return int(row.sha256[:8], 16) % 7 == 0

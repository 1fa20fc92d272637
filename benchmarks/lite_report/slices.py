"""Images of the training split that no detector learnt from: what a fusion may be fitted on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.samples import Sample
from detector_zoo.training.artifact import RECORD_FILE
from detector_zoo.training.recipes import build
from detector_zoo.training.splits import components, cut, data_hash, select

Sets = Mapping[str, Sequence[Sample]]
"""Samples of the training split by the name of their folder."""

DEFAULT = {"validation": 0.15, "calibration": 0.1}
"""`Course.slices` of a recipe that names none; where it changes, the counts in the records no longer fit."""


def record_of(run: Path) -> dict[str, Any] | None:
    """What a training left about itself in its folder, or None."""
    path = run / RECORD_FILE
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def taught(name: str, record: Mapping[str, Any] | None, sets: Sets) -> set[str]:
    """SHA-256 of the files that a detector learnt from; those that chose its step or calibrated it are not among them.

    Args:
        name: ``method.tag``.
        record: Of its training.
        sets: All training sets.

    Raises:
        DatasetError: It is not known, or the sets are not those that it was trained on.
    """
    if record is None:
        raise DatasetError(f"{name}: no {RECORD_FILE} tells what it learnt from", hint="--runs DIR")
    asked = str(record["data"]["asked_for"])
    names, _, split = asked.rpartition(", split ")
    missing = [place for place in names.split(", ") if place not in sets]
    if missing:
        raise DatasetError(f"{name} was trained on {asked}: no --train is called {missing[0]}")
    samples = select([s for place in names.split(", ") for s in sets[place]], None if split == "all" else split)
    if data_hash(samples) != record["data"]["sha256"]:
        raise DatasetError(f"{name}: the sets {names} are not the ones that it was trained on")
    slices = _cut(name.partition(".")[0], samples, record["recipe"]["values"])
    told = {k: (v["real"], v["generated"]) for k, v in record["data"]["slices"].items()}
    found = {k: (sum(not s.generated for s in v), sum(s.generated for s in v)) for k, v in slices.items()}
    if told != found:
        raise DatasetError(f"{name}: its slices were {told}, the same data are cut into {found} today")
    return {s.sha256 for s in slices["fit"]}


def _cut(method: str, samples: Sequence[Sample], values: Mapping[str, Any]) -> dict[str, list[Sample]]:
    if method == "mdmf":  # has a rule of its own
        from detector_zoo_mdmf.recipe import Recipe

        return build(Recipe, values, method).cut(samples)
    return cut(samples, values.get("slices", DEFAULT))


def held_out(sets: Sets, learnt: Sequence[set[str]]) -> dict[str, list[Sample]]:
    """Of each set the samples no picture of whose photograph any detector learnt from.

    Args:
        sets: Hashed samples.
        learnt: A set of SHA-256 a detector.
    """
    every = [(name, s) for name, samples in sets.items() for s in samples]
    where = components([s for _, s in every])
    known = set().union(*learnt)
    spoilt = {component for (_, s), component in zip(every, where, strict=True) if s.sha256 in known}
    return {
        name: [s for (owner, s), c in zip(every, where, strict=True) if owner == name and c not in spoilt]
        for name in sets
    }

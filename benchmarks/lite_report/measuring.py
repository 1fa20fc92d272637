"""Loading detectors, scoring pictures with all of them at once, and what they cost."""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from detector_zoo import registry, weights
from detector_zoo.detector import Localizer
from detector_zoo.errors import UnknownDetectorError, WeightsError
from detector_zoo.evaluation.localization import Localization, localization
from detector_zoo.evaluation.samples import Sample
from detector_zoo.evaluation.score_set import score_set
from detector_zoo.loading import LoadedDetector, load
from detector_zoo.plugins import list_detectors
from detector_zoo.scoring import Options
from detector_zoo.training.artifact import SPEC_FILE, load_detector
from detector_zoo.training.checkpoints import Metrics

from .figures import numbers
from .pictures import CONTROL, EDITED
from .slices import record_of

TIMED, REPEATS = 16, 3
"""Pictures that speed is measured on, and how often."""
BROUGHT = ("teacher", "backbone")
"""Keys of a recipe that may name a file of the machine where it ran."""


def say(line: str) -> None:
    """To standard error."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Measured:
    """A detector that is measured.

    Attributes:
        detector: Loaded, on the CPU.
        record: Of its training, where there is one.
        fused: Whether it is part of the fusion.
        curve: The training's loss, and AUROC on its validation slice: (step, value) each.
    """

    detector: LoadedDetector
    record: dict[str, Any] | None
    fused: bool
    curve: dict[str, list[tuple[int, float]]]

    @property
    def name(self) -> str:
        """``method.tag``."""
        return self.detector.name

    @property
    def localizes(self) -> bool:
        """Whether it has heatmaps."""
        return isinstance(self.detector.detector, Localizer)


def load_all(names: Sequence[str], also: Sequence[str], runs: Path | None) -> list[Measured]:
    """The named detectors, all by default: from the runs' folders where they are there, else from the catalogue.

    Raises:
        UnknownDetectorError: One is not known, or none has its weights at hand.
        WeightsError: A folder holds other weights.
    """
    wanted = [(name, True) for name in names or [i.name for i in list_detectors() if not i.control]]
    found = []
    for name, fused in [*wanted, *((name, False) for name in also)]:
        method = name.partition(".")[0]
        folders = [runs / n for n in (name, method, f"{method}.lite")] if runs else []
        folder = next((f for f in folders if (f / SPEC_FILE).is_file()), None)
        if folder is not None:
            detector = load_detector(folder, method=method, device="cpu")
            if name not in {method, detector.name}:
                raise WeightsError(f"{folder}: holds {detector.name}, not {name}")
        else:
            try:
                _, spec = registry.resolve(name)
            except UnknownDetectorError:
                if names:
                    raise
                spec, at_hand = None, False
            else:
                at_hand = spec is None or weights.locate(spec) is not None
            if not at_hand and not names:
                say(f"Left out: {name}, its weights are not at hand")
                continue
            detector = load(name, device="cpu")
        run = next((f for f in ([folder] if folder else folders) if record_of(f)), None)
        record, curve = (record_of(run), curve_of(run)) if run else (None, {})
        found.append(Measured(detector, record, fused, curve))
    if not found:
        raise UnknownDetectorError("no detector has its weights at hand")
    return found


def scored(samples: Sequence[Sample], chosen: Sequence[Measured], output: Path) -> NDArray[np.float64]:
    """Log-odds, (N, D), NaN for an error; kept in a prediction file."""
    say(f"{output.stem}: {len(samples)} pictures, {len(chosen)} detectors")
    detectors = [one.detector for one in chosen]
    rows = score_set(samples, detectors, output, equalise=False, options=Options(workers=1))
    for row in rows:
        if row.error:
            say(f"{row.path}: {row.detector}: {row.error}")
    values = [np.nan if row.log_odds is None else row.log_odds for row in rows]
    return np.array(values, np.float64).reshape(len(samples), len(chosen))


class _Remembering:
    """A detector whose heatmaps are computed once a picture: the same edits are in several figures."""

    def __init__(self, detector: Any) -> None:
        self._detector = detector
        self._known: dict[str, NDArray[np.float32]] = {}

    def score(self, images: Sequence[Image.Image]) -> Any:
        return self._detector.score(images)

    def heatmap(self, images: Sequence[Image.Image]) -> Any:
        (image,) = images
        key = hashlib.sha256(image.tobytes()).hexdigest()
        if key not in self._known:
            self._known[key] = np.asarray(self._detector.heatmap([image]), np.float32)
        return self._known[key]


def maps(one: Measured, samples: Sequence[Sample], options: argparse.Namespace) -> dict[str, Any]:
    """Heatmaps against masks: each kind of local edit, all of them, and splices apart; kept in a file."""
    kinds = sorted({s.kind for s in samples if s.generated and s.kind.endswith(EDITED)})
    groups = {kind: [s for s in samples if s.kind == kind] for kind in kinds}
    groups["local edits"] = [s for members in groups.values() for s in members]
    groups[CONTROL] = [s for s in samples if s.kind == CONTROL]
    files = "".join(sorted(s.sha256 for members in groups.values() for s in members))
    asked = f"{one.name} {one.detector.weights_sha256} {options.resamples} {files}"
    path = options.out / f"maps-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        say(f"heatmaps of {one.name}: {len(groups['local edits']) + len(groups[CONTROL])} pictures")
        detector = replace(one.detector, detector=_Remembering(one.detector.detector))
        found = {
            name: _localized(localization(members, detector, resamples=options.resamples))
            for name, members in groups.items()
            if members
        }
        path.write_text(json.dumps(found), "utf-8")
    known: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return known


def _localized(found: Localization) -> dict[str, Any]:
    names = ("miou", "oracle_miou", "energy", "area", "auroc", "ap")
    return {"images": found.images, **{name: numbers(getattr(found, name)) for name in names}}


def curve_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    """See `Measured.curve`."""
    rows = Metrics.read(run)
    keys = {"loss": "loss", "auroc": "val_auroc"}
    return {name: [(row["step"], round(row[key], 4)) for row in rows if key in row] for name, key in keys.items()}


def training(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the report tells of a run's training.json."""
    recipe = record["recipe"]
    return {
        "seconds": record["seconds"],
        "machine": record["machine"],
        "recipe": recipe["name"],
        "recipe_values": {key: value for key, value in recipe["values"].items() if key not in BROUGHT},
        "data": record["data"]["asked_for"],
        "data_sha256": record["data"]["sha256"],
        "slices": record["data"]["slices"],
        "steps": record["steps"],
    }


def costs(one: Measured, samples: Sequence[Sample]) -> dict[str, Any]:
    """Size, speed, training: speed as seconds of the processor, which other load disturbs less than the clock."""
    chosen = sorted(samples, key=lambda s: s.sha256)[:TIMED]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one.detector.predict([s.path for s in chosen[:2]])
        seconds = []
        for _ in range(REPEATS):
            started = time.process_time()
            one.detector.predict([s.path for s in chosen])
            seconds.append(time.process_time() - started)
    finally:
        torch.set_num_threads(before)
    spec = one.detector.spec
    return {
        "weights_sha256": one.detector.weights_sha256,
        "bytes": spec.bytes if spec else None,
        "images_per_second": round(len(chosen) / max(statistics.median(seconds), 1e-9), 3),
        "timed_on": f"{len(chosen)} equalised pictures, 304 to 368 px a side, median of {REPEATS}",
        "trained_on": spec.trained_on if spec else "",
        "training": one.record and training(one.record),
        "curve": one.curve,
    }

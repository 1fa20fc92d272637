"""The folder that a training leaves: weights, their spec, how they came about, a card; and detectors from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from detector_zoo import convert, weights
from detector_zoo.catalogue_files import SPEC_FILE, WEIGHTS_FILE
from detector_zoo.detector import Detector, Precision, TorchDetector, Weights
from detector_zoo.errors import PluginError, WeightsError
from detector_zoo.evaluation.metrics import Metric
from detector_zoo.info import DetectorInfo
from detector_zoo.loading import LoadedDetector, import_target, pick_device
from detector_zoo.plugins import catalogue
from detector_zoo.registry import resolve
from detector_zoo.training.calibration import Fit
from detector_zoo.weight_specs import SCHEMA_VERSION, Calibration, Result, WeightSpec, load_file

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SPEC_FILE",
    "WEIGHTS_FILE",
    "Made",
    "half",
    "info_of",
    "load_detector",
    "load_folder",
    "read_spec",
    "write_folder",
]

RECORD_FILE = "training.json"
CARD_FILE = "CARD.md"
INCONCLUSIVE = 0.5
"""Half-width, in log-odds, of the band where no class is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a training made, and what is known of it.

    Attributes:
        spec: Without source, hash and size, which follow from the file.
        tensors: As they are shipped.
        fit: On the calibration slice; None where it could not be had.
        metrics: On the validation slice, by group of images (``all``, kinds) and metric.
        counts: Photographs and generated images of each slice.
        sources: Photographs and generated images of each source of the training data.
        data_sha256: Of the data (`splits.data_hash`).
        recipe: Its name.
        values: And what it says, the user's changes included.
        data: What data were asked for, in words.
        seed: Of the training.
        steps: Done, and the best one.
        seconds: Of training.
        why: It ended.
        machine: What it ran on, in words.
        notes: Of the method, for the card.
    """

    spec: WeightSpec
    tensors: Mapping[str, Tensor]
    fit: Fit | None
    metrics: Mapping[str, Mapping[str, Metric]]
    counts: Mapping[str, tuple[int, int]]
    sources: Mapping[str, tuple[int, int]]
    data_sha256: str
    recipe: str
    values: Mapping[str, Any]
    data: str
    seed: int
    steps: tuple[int, int]
    seconds: float
    why: str
    machine: str
    notes: Sequence[str] = ()


def half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors as float16, half the size; others, and what float16 cannot hold, as they are.

    Raises:
        WeightsError: A tensor holds something that is not a finite number.
    """
    import torch

    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(f"tensor {key!r} is not finite")
        small = value.half() if value.is_floating_point() else value
        out[key] = small if not small.is_floating_point() or torch.isfinite(small).all() else value.float()
    return out


def write_folder(made: Made, out: Path) -> WeightSpec:
    """Write ``weights.safetensors``, ``weights.yaml``, ``training.json`` and ``CARD.md``, the spec last.

    Returns:
        The spec as `load_folder` will read it.

    Raises:
        WeightsError: A file cannot be written.
    """
    path = out / WEIGHTS_FILE
    with convert.atomic(path) as staging:
        convert.write(made.tensors, staging)
    calibration = None
    if made.fit is not None:
        calibration = Calibration(
            scale=round(made.fit.scale, 6),
            offset=round(made.fit.offset, 6),
            fitted_on=made.fit.sentence(),
            inconclusive=INCONCLUSIVE,
        )
    real, generated = (sum(pair[k] for pair in made.counts.values()) for k in (0, 1))
    held = made.counts.get("validation", (0, 0))
    spec = replace(
        made.spec,
        source="file:",
        sha256=convert.sha256_of(path),
        bytes=path.stat().st_size,
        calibration=calibration,
        trained_on=made.spec.trained_on or f"{made.data}: {real} photographs and {generated} generated images",
        why="trained by the user, published nowhere",
        how_to_get=f"zoo train {made.spec.method}, recipe {made.recipe}",
        reproduced=tuple(
            Result(
                data="validation slice of the training data" + ("" if group == "all" else f": {group}"),
                metric=name,
                value=round(metric.value, 4),
                interval=(round(metric.low, 4), round(metric.high, 4)),
                count=f"{held[0]} real, {held[1]} generated" if group == "all" else "",
                command=f"zoo train {made.spec.method}",
            )
            for group, by_name in made.metrics.items()
            for name, metric in by_name.items()
        ),
    )
    record = {
        "name": spec.name,
        "recipe": {"name": made.recipe, "values": made.values},
        "seed": made.seed,
        "data": {
            "asked_for": made.data,
            "sha256": made.data_sha256,
            "slices": {k: {"real": r, "generated": g} for k, (r, g) in made.counts.items()},
            "sources": {k: {"real": r, "generated": g} for k, (r, g) in made.sources.items()},
        },
        "steps": {"done": made.steps[0], "kept": made.steps[1]},
        "seconds": round(made.seconds, 1),
        "ended": made.why,
        "machine": made.machine,
        "metrics": {g: {n: asdict(m) for n, m in by.items()} for g, by in made.metrics.items()},
        "calibration": None if made.fit is None else asdict(made.fit),
    }
    _write(out / RECORD_FILE, json.dumps(record, indent=1, default=str) + "\n")
    _write(out / CARD_FILE, _card(made, spec))
    document = {"schema_version": SCHEMA_VERSION, "weights": {spec.name: _entry(spec)}}
    _write(out / SPEC_FILE, yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110))
    return load_folder(out).spec


def load_folder(folder: Path) -> Weights:
    """Read and verify the weights in a run's folder.

    Args:
        folder: See `read_spec`.

    Raises:
        WeightsError: One of the files is missing, is a link out of the folder, or not what the spec says.
    """
    spec = read_spec(folder)
    return Weights(spec, convert.read_safetensors(folder / WEIGHTS_FILE), weights.read_backbone(spec))


def read_spec(folder: Path) -> WeightSpec:
    """The spec of the weights in a run's folder, which have its hash.

    Args:
        folder: With ``weights.yaml`` and, beside it and nowhere else, ``weights.safetensors``.

    Raises:
        WeightsError: One of them is missing, is a link out of the folder, or not what the spec says.
    """
    home = folder.resolve()
    for name in (SPEC_FILE, WEIGHTS_FILE):
        path = folder / name
        if not path.is_file():
            raise WeightsError(f"{folder}: no {name}, not a folder of weights", hint="zoo train ends by writing one")
        if path.resolve().parent != home:
            raise WeightsError(f"{path}: leads out of its folder, to {path.resolve()}")
    specs = load_file(folder / SPEC_FILE)
    if len(specs) != 1:
        raise WeightsError(f"{folder / SPEC_FILE}: expected one set of weights, got {len(specs)}")
    (spec,) = specs.values()
    if spec.sha256 is None or spec.format != "safetensors":
        raise WeightsError(f"{folder / SPEC_FILE}: {spec.name}: expected a sha256 and the format safetensors")
    convert.check(spec, folder / WEIGHTS_FILE)
    return spec


def load_detector(
    folder: Path,
    *,
    method: str | None = None,
    device: str = "auto",
    threshold: float | None = None,
    memory: int | None = None,
    precision: Precision = "fp32",
    **options: Any,
) -> LoadedDetector:
    """A detector from a run's folder, as `detector_zoo.load` gives one from the catalogue.

    Args:
        folder: See `load_folder`.
        method: What the weights have to be of.
        device: See `detector_zoo.load`.
        threshold: See there.
        memory: See there.
        precision: See there.
        options: Further fields of `LoadedDetector`.

    Raises:
        WeightsError: The folder or its weights are not what they should be, or of another method.
        UnknownDetectorError: No installed plugin provides their method.
    """
    bundle = load_folder(folder)
    spec = bundle.spec
    if method is not None and method.partition(".")[0] != spec.method:
        raise WeightsError(f"{folder}: holds weights of {spec.method}, not of {method}")
    info = info_of(spec.method)
    built = weights.instantiate(import_target(info), bundle)
    if not isinstance(built, Detector):
        raise PluginError(f"{info.name}: {info.load} has no method score")
    if isinstance(built, TorchDetector):
        built.spec = spec
        built.to(pick_device(device))
        built.memory, built.precision = memory, precision
    return LoadedDetector(
        info=info,
        spec=spec,
        detector=built,
        threshold=spec.threshold if threshold is None else threshold,
        inconclusive=spec.calibration.inconclusive if spec.calibration and threshold is None else 0.0,
        weights_sha256=spec.sha256 or "",
        **options,
    )


def info_of(method: str) -> DetectorInfo:
    """What an installed plugin tells of a method, whether or not it has weights yet.

    Raises:
        UnknownDetectorError: No installed plugin provides it.
    """
    found = catalogue().detectors.get(method)
    return found if found is not None else resolve(method)[0]


def _entry(spec: WeightSpec) -> dict[str, Any]:
    """The fields of a spec as a catalogue holds them: those that differ from their defaults."""
    blank = WeightSpec(name=spec.name)
    out: dict[str, Any] = {}
    for key, value in asdict(spec).items():
        if key in {"name", "kind", "origin", "variant"} or (value == getattr(blank, key) and key != "source"):
            continue
        out[key] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _write(path: Path, text: str) -> None:
    with convert.atomic(path) as staging:
        staging.write_text(text, "utf-8")


def _card(made: Made, spec: WeightSpec) -> str:
    """The model card, Markdown: what is known, and what is not said to be unknown."""
    counts = "\n".join(f"| {name} | {real} | {fake} |" for name, (real, fake) in made.counts.items())
    sources = "\n".join(f"| {name or 'not named'} | {real} | {fake} |" for name, (real, fake) in made.sources.items())
    results = "\n".join(
        f"| {group} | {name} | {metric} |" for group, by in made.metrics.items() for name, metric in by.items()
    )
    if made.fit is None:
        calibrated = "Not calibrated: scores rank images, and their probabilities are not ones."
    else:
        low, high = made.fit.believable
        calibrated = (
            f"Platt scaling on {made.fit.real} photographs and {made.fit.generated} generated images, cut off by "
            f"photograph. A probability is vouched for between {low:.3f} and {high:.3f}; expected calibration error "
            f"{made.fit.error:.3f} on the same slice, which it was fitted on."
        )
    notes = "".join(f"\n{note}\n" for note in made.notes)
    return f"""# {spec.name}

{spec.summary}. Written by `zoo train {spec.method}` and meant to be completed by whoever publishes the weights.
{notes}
## Training data

{made.data}, sha256 of the list of files `{made.data_sha256}`.

| slice | real | generated |
|---|---|---|
{counts}

| source | real | generated |
|---|---|---|
{sources}

Recipe `{made.recipe}` with all its values: `{RECORD_FILE}`. Seed {made.seed}; {made.steps[0]} steps, of which the
weights after step {made.steps[1]} are kept; {made.seconds / 60:.0f} minutes on {made.machine}; the end: {made.why}.

## Results

On the validation slice, which chose among the steps: expect less on data of another origin.

| images | metric | value, 95 % interval |
|---|---|---|
{results}

{calibrated}

## Limits and known shortcuts

Not measured here: other generators than those of the training data, re-encoding, resizing, local edits beyond the
kinds listed above. `zoo eval` measures them.

## Licence

{spec.licence or "Not stated. The licences of the training data apply to what may be done with the weights."}
"""

"""Taking in weights that the user brings: `import_file`, the work of `zoo weights import`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from detector_zoo import convert, weights
from detector_zoo.detector import Weights
from detector_zoo.errors import UnknownDetectorError, WeightsError
from detector_zoo.info import DetectorInfo
from detector_zoo.plugins import catalogue
from detector_zoo.registry import SCHEMA_VERSION, WeightSpec, load_file, lookup, registry, resolve, zoo_home
from detector_zoo.weight_specs import parse
from detector_zoo.weights_store import converted_path, lock, write_record

__all__ = ["import_file"]

_INHERITED = ("config", "preprocessing", "variants", "backbone")
_EMBEDDED = (*_INHERITED, "summary", "licence", "trained_on", "threshold", "calibration", "reproduced")
"""What a trainer may say of its weights in the file's metadata; where they are and what they hash to is not his."""


def import_file(name: str, file: Path, *, like: str | None = None, replace: bool = False) -> WeightSpec:
    """Take in a file that the user brings: verify it, try it on the network, convert it, keep it.

    A name that a catalogue knows must match the catalogue's hash, where it has one. Any other tag becomes the user's
    own and is recorded in ``<zoo home>/registry.yaml``; its configuration is what the file's metadata say, else
    that of ``like``.

    Args:
        name: ``method.tag``, or ``backbone.name`` of a known backbone.
        file: safetensors, or a ``.pth`` that holds tensors only.
        like: Weights whose configuration the user's own share; by default the method's default ones or, where the file
            does not fit those and they are the zoo's own, the first others.
        replace: Replace what was imported under the same tag of the user's own before.

    Raises:
        UnknownDetectorError: If no installed plugin provides the method.
        WeightsError: If the file is not the one that the catalogue means, is not weights, or does not fit the
            network; nothing is kept then.
    """
    method = name.partition(".")[0]
    info = catalogue().detectors.get(method)
    if method == "backbone":
        lookup(name)
    elif info is None:
        resolve(method)
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    own = zoo_home() / "registry.yaml"
    known = registry().specs.get(name)
    if known is not None and known.origin == str(own) and replace:
        known = None
    models = [like] if like else _models(info)
    entries = [None] if known else [_own_entry(name, file, model) for model in models]
    specs = [known or parse(name, entry, own) for entry in entries]
    sha256 = _check(specs[0], file, own)
    with lock(name):
        path = converted_path(name)
        with convert.atomic(path) as staging:
            if convert.is_safetensors(file):
                shutil.copyfile(file, staging)
            else:
                convert.write(convert.read_tensors(file), staging)
            fits = _first_that_fits(info, specs, staging)
        write_record(specs[fits], path, sha256, convert.md5_of(file))
    if (entry := entries[fits]) is not None:
        _add_own(own, name, entry)
    return registry().specs[name]


def _models(info: DetectorInfo | None) -> list[str | None]:
    """Whose configuration a file may share: of the default weights, and of the first that are not the zoo's own."""
    if info is None or not info.default_tag:
        return [None]
    default = f"{info.name}.{info.default_tag}"
    specs = [spec for name, spec in registry().specs.items() if name.partition(".")[0] == info.name]
    others = [spec.name for spec in specs if not _embedded(spec)]
    return [default, *others[:1]] if _embedded(lookup(default)) else [default]


def _embedded(spec: WeightSpec) -> bool:
    return (spec.source or "").startswith("package:")


def _own_entry(name: str, file: Path, like: str | None) -> dict[str, Any]:
    """The entry of the user's own catalogue for a tag that no other has."""
    entry: dict[str, Any] = {"summary": f"imported from {file.name}"}
    model = (resolve(like)[1] if "@" in like else lookup(like)) if like else None
    if model is not None:
        entry |= {key: getattr(model, key) for key in _INHERITED if getattr(model, key)}
    embedded = convert.embedded_spec(file)
    if unknown := sorted(set(embedded) - set(_EMBEDDED)):
        raise WeightsError(f"{file}: metadata {convert.SPEC_METADATA}: unknown key {unknown[0]!r}")
    return (
        entry
        | embedded
        | {
            "source": "file:",
            "sha256": convert.sha256_of(file),
            "bytes": file.stat().st_size,
            "format": "safetensors" if convert.is_safetensors(file) else "pth",
            "why": "brought by the user",
            "how_to_get": f"it was imported from {file.name}",
        }
    )


def _check(spec: WeightSpec, file: Path, own: Path) -> str:
    try:
        return convert.check(spec, file)
    except WeightsError as error:
        if spec.origin == str(own):
            hint = f"another file was imported as {spec.name} before: choose another tag, or add --replace"
        else:
            hint = f"this is not the file that {spec.name} means: import it under a tag of your own"
        raise WeightsError(str(error), hint=hint) from error


def _first_that_fits(info: DetectorInfo | None, specs: Sequence[WeightSpec], staging: Path) -> int:
    """Which spec's network the file fits; where none, the last one's reason is told, the published one's."""
    for index, spec in enumerate(specs[:-1]):
        try:
            _try(info, spec, staging)
        except WeightsError:
            continue
        return index
    _try(info, specs[-1], staging)
    return len(specs) - 1


def _try(info: DetectorInfo | None, spec: WeightSpec, staging: Path) -> None:
    """Build the network, to see that the file has its keys and shapes; a backbone has none before its heads do."""
    tensors = weights.read(staging)
    if info is None:
        return
    from detector_zoo.loading import import_target

    target = import_target(info)
    if not hasattr(target, "from_weights"):
        raise UnknownDetectorError(f"{info.name} works without weights")
    weights.instantiate(target, Weights(spec, tensors, weights.read_backbone(spec)))


def _add_own(own: Path, name: str, entry: dict[str, Any]) -> None:
    with lock("registry"):
        entries: dict[str, Any] = {}
        if own.exists():
            load_file(own)  # raises rather than overwrite what it cannot read
            entries = yaml.safe_load(own.read_text("utf-8"))["weights"] or {}
        document = {"schema_version": SCHEMA_VERSION, "weights": entries | {name: entry}}
        with convert.atomic(own) as staging:
            staging.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), "utf-8")
    registry.cache_clear()

"""What a repository on the Hub says of its weights, distrusted: small files of a stranger to a `WeightSpec`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from detector_zoo import hub_labels, strict_yaml
from detector_zoo.catalogue_files import SPEC_FILE, WEIGHTS_FILE
from detector_zoo.convert import one_line
from detector_zoo.errors import UnknownDetectorError, WeightsError
from detector_zoo.info import DetectorInfo
from detector_zoo.plain import plain
from detector_zoo.plugins import catalogue
from detector_zoo.weight_specs import WeightSpec, load_file

__all__ = ["CARD_LIMIT", "FILES", "LARGEST", "MISSING", "front_matter", "of_model", "of_pushed"]

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
FILES: Mapping[str, Mapping[str, int]] = {
    "hub": {SPEC_FILE: 256_000},
    "hf": {CONFIG_FILE: 2_000_000, PROCESSOR_FILE: 100_000},
}
"""By scheme, the files that are read beside the weights, and how many bytes each may have."""
CARD_LIMIT = 1_000_000
MISSING: Mapping[str, str] = {
    "hub": f"what `zoo push` uploads has {SPEC_FILE}; an image classifier of transformers is hf:org/model",
    "hf": "an image classifier of transformers has config.json, preprocessor_config.json and model.safetensors",
}
"""What to say where one of them is not there."""
LARGEST = 20 * 10**9
"""Bytes that weights of a stranger may have."""
_DEPTH = 20
_NUMBER = 2**40
_SIZE = 2**20
"""The largest whole number in a configuration: of channels, pixels, layers."""
_LAYERS = 1000
_COUNTS = re.compile(r"layers|blocks|depths?|stages")
_ELSEWHERE = re.compile(
    r"auto_map|quantization|fusion_config|kernel_config|use_kernel|adapter|trust_remote|transformers_weights|pretrained_backbone"
)
"""Parts of the keys by which a configuration of transformers would have code or files fetched from elsewhere."""
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,60}[A-Za-z0-9])?", re.ASCII)


def of_pushed(
    repo: str, commit: str, files: Mapping[str, Path], card: Callable[[], str]
) -> tuple[DetectorInfo, WeightSpec]:
    """The weights of an installed method that `zoo push` uploaded.

    Args:
        repo: On the Hub.
        commit: Of it.
        files: With the spec.
        card: Gives the model card, for the hint where the method is not installed.

    Raises:
        UnknownDetectorError: No installed plugin provides the method.
        WeightsError: The spec is not what it should be.
    """
    where = f"hub:{repo}@{commit[:12]}: {SPEC_FILE}"
    path = files[SPEC_FILE]
    _bounded(strict_yaml.parse(path.read_bytes(), where, aliases=False), where)
    try:
        specs = load_file(path)
    except WeightsError as error:
        raise WeightsError(plain(str(error).replace(str(path), where), 500), hint=error.hint) from error
    if len(specs) != 1:
        raise WeightsError(f"{where}: expected one set of weights, got {len(specs)}")
    (spec,) = specs.values()
    _bounded({"config": spec.config, "preprocessing": spec.preprocessing}, where, _SIZE)
    if spec.source != "file:":
        raise WeightsError(f"{where}: source is {spec.source!r}, expected file: (the weights beside the spec)")
    if spec.sha256 is None or spec.bytes is None or spec.format != "safetensors":
        raise WeightsError(f"{where}: expected sha256, bytes and the format safetensors")
    if spec.bytes > LARGEST:
        raise WeightsError(f"{where}: {spec.bytes} bytes of weights, at most {LARGEST} are read")
    info = catalogue().detectors.get(spec.method)
    if info is None:
        raise UnknownDetectorError(
            f"hub:{repo} holds weights of {spec.method!r}, which no installed plugin provides",
            hint=_package(card()) or "zoo plugins shows what is installed",
        )
    return info, replace(
        spec,
        name=f"{spec.method}.hub:{repo}@{commit}",
        source=f"hub:{repo}/{WEIGHTS_FILE}",
        revision=commit,
        variants={},
        verified=False,
        why=f"published by {repo.partition('/')[0]} on the Hub, not verified by this project",
        how_to_get="",
        origin=f"hub:{repo}@{commit}",
    )


def of_model(repo: str, commit: str, files: Mapping[str, Path], labels: str) -> tuple[DetectorInfo, WeightSpec]:
    """An image classifier of transformers.

    Args:
        repo: On the Hub.
        commit: Of it.
        files: With its two configurations.
        labels: As `hub_labels.given` reads them; "" infers them.

    Raises:
        UnknownDetectorError: The labels cannot be told, or are not of this model.
        WeightsError: It is no such model, or wants something executed.
    """
    where = f"hf:{repo}"
    config = _json(files[CONFIG_FILE], f"{where}: {CONFIG_FILE}")
    processor = _json(files[PROCESSOR_FILE], f"{where}: {PROCESSOR_FILE}")
    if not isinstance(config.get("model_type"), str):
        raise WeightsError(f"{where}: {CONFIG_FILE} names no model_type: not a model of transformers")
    if config.get("problem_type") not in (None, "single_label_classification"):
        raise WeightsError(f"{where}: a classifier whose labels exclude each other is needed")
    names = _names(config, where)
    chosen = hub_labels.given(labels, names, where) if labels else hub_labels.infer(names, where)
    info = DetectorInfo(
        name="hf",
        summary="an image classifier of the Hub, through transformers",
        load="detector_zoo.hub_models:HubClassifier",
        capabilities=frozenset({"explain"}),
    )
    spec = WeightSpec(
        name=f"hf.{repo}@{commit}#{chosen.canonical(names)}",
        summary=f"{plain(str(config['model_type']), 40)} with {len(names)} labels; resized by its own processor, which "
        "launders what lies in the pixels",
        source=f"hub:{repo}/{MODEL_FILE}",
        revision=commit,
        config={
            "model": config,
            "names": names,
            "generated": chosen.generated,
            "real": chosen.real,
            "inferred": chosen.inferred,
        },
        preprocessing={"exif_orientation": "apply", "processor": processor},
        why="a stranger's classifier, not verified by this project",
        trained_on="unknown",
        origin=f"hf:{repo}@{commit}",
    )
    return info, spec


def front_matter(card: str) -> dict[str, Any]:
    """The YAML at the head of a model card; empty where there is none, or none that can be read."""
    found = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|\Z)", card, re.DOTALL)
    if found is None:
        return {}
    try:
        document = strict_yaml.parse(found[1].encode(), "card", aliases=False)
    except WeightsError:
        return {}
    return document if isinstance(document, dict) else {}


def _package(card: str) -> str | None:
    """A hint that names the package by which the card says that the method is provided."""
    own = front_matter(card).get("detector_zoo")
    package = own.get("package") if isinstance(own, dict) else None
    if not isinstance(package, str) or not _PACKAGE.fullmatch(package):
        return None
    return f"its card names the package {package}: if you trust whoever wrote it, pip install {package}"


def _bounded(value: Any, where: str, largest: int = _NUMBER, depth: int = 0) -> None:
    """Refuse what no configuration needs, and what could exhaust memory or time: huge numbers, other types."""
    if depth > _DEPTH:
        raise WeightsError(f"{where}: nested too deeply")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _bounded(key, where, largest, depth + 1)
            counts = isinstance(key, str) and largest == _SIZE and _COUNTS.search(key)
            _bounded(item, where, _LAYERS if counts else largest, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _bounded(item, where, largest, depth + 1)
    elif isinstance(value, int) and abs(value) > largest:
        raise WeightsError(f"{where}: a number larger than {largest}")
    elif not isinstance(value, str | int | float | None):
        raise WeightsError(f"{where}: {type(value).__name__} is not read")


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where}: {one_line(error)}") from error
    _bounded(document, where, _SIZE)
    if not isinstance(document, dict):
        raise WeightsError(f"{where}: expected an object")
    _refuse_code(document, where)
    return document


def _refuse_code(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if item and _ELSEWHERE.search(key):
                raise WeightsError(
                    f"{where}: {plain(key, 60)} asks for code or files from elsewhere, which is never fetched",
                    hint="only models that transformers itself contains are read",
                )
            _refuse_code(item, where)
    elif isinstance(value, list):
        for item in value:
            _refuse_code(item, where)


def _names(config: Mapping[str, Any], where: str) -> dict[int, str]:
    """The labels by output."""
    raw = config.get("id2label")
    try:
        names = {int(key): value for key, value in raw.items()} if isinstance(raw, Mapping) else {}
    except ValueError as error:
        raise WeightsError(f"{where}: {CONFIG_FILE}: id2label does not number the labels: {one_line(error)}") from error
    if sorted(names) != list(range(len(names))) or not all(isinstance(v, str) and v.strip() for v in names.values()):
        raise WeightsError(f"{where}: {CONFIG_FILE}: id2label does not number the labels from 0")
    if len(names) < 2:
        raise WeightsError(f"{where}: {CONFIG_FILE}: id2label names fewer than two labels")
    if len({name.casefold() for name in names.values()}) < len(names):
        raise WeightsError(f"{where}: {CONFIG_FILE}: two labels of one name")
    return {index: plain(names[index], 200) for index in sorted(names)}

"""`WeightSpec`, and the YAML schema that it is read from.

Every key is checked, because a misspelt one would otherwise be a silent default: a hash that nobody compares, a
threshold of 0. Reading a catalogue imports neither torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from detector_zoo import catalogue_files
from detector_zoo.errors import WeightsError
from detector_zoo.spec_forms import LOWER, SOURCES, WORD, is_hex, is_name, loopback

__all__ = ["SCHEMA_VERSION", "Calibration", "Result", "WeightSpec", "load_file", "loopback", "parse", "suggest"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How a raw score becomes log-odds: ``scale * raw + offset`` (Platt scaling).

    Attributes:
        scale: Log-odds per unit of the raw score.
        offset: In log-odds.
        fitted_on: The data that scale and offset were fitted on.
        inconclusive: Half-width, in log-odds, of the band around the threshold where no class is named.
    """

    scale: float
    offset: float
    fitted_on: str
    inconclusive: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A measured figure: as the authors reported it, or as a command of this repository reproduces it.

    Attributes:
        data: What it was measured on.
        metric: AUROC, AP, ...
        value: As a fraction, not in percent.
        interval: 95 % confidence interval.
        count: Images, e.g. "370 real, 61 generated".
        command: What prints it; empty for the authors' own figures.
        source: Where the figure is published; empty for ours.
    """

    data: str
    metric: str
    value: float
    interval: tuple[float, float] | None = None
    count: str = ""
    command: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpec:
    """One file of weights: where it is, how to know it, what it was trained on and what it measured.

    Attributes:
        name: ``method.tag``, or ``backbone.name`` for a public network that heads are put on.
        summary: One line.
        kind: ``detector`` or ``backbone``.
        source: ``package:module/path``, ``hub:org/repo/path``, ``url:https://...``, ``file:`` (the user brings
            it), or None where nobody ever published a file.
        revision: Commit of the Hub repository. A branch name pins nothing: it is accepted only with a hash.
        sha256: Of the file as published; ``md5`` where the publisher gives only that.
        sha256_prefix: The first digits (16 or more) of the sha256, where no more of it is known.
        bytes: Size of the file as published.
        format: ``safetensors``, or ``pth`` (opened with ``weights_only=True`` and converted once).
        backbone: Name of the spec of the network that these weights are a head on.
        config: Arguments of the architecture.
        preprocessing: Constants of the input transform, ``exif_orientation`` among them.
        variants: By name, constants in which another way to prepare images for the same weights differs:
            ``method.tag@variant``.
        variant: Which of them this spec stands for, "" for none.
        threshold: In log-odds.
        calibration: None for scores that rank but are not log-odds.
        verified: Whether this project has had the file in its hands, hashed it and scored with it.
        why: If not verified or not to be had: the reason.
        how_to_get: What a user has to do where no command can do it.
        licence: SPDX where there is one.
        trained_on: Data.
        reported: The authors' figures.
        reproduced: Ours.
        origin: The catalogue that the spec was read from.
    """

    name: str
    summary: str = ""
    kind: Literal["detector", "backbone"] = "detector"
    source: str | None = None
    revision: str | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    md5: str | None = None
    bytes: int | None = None
    format: Literal["safetensors", "pth"] = "safetensors"
    backbone: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    variant: str = ""
    threshold: float = 0.0
    calibration: Calibration | None = None
    verified: bool = False
    why: str = ""
    how_to_get: str = ""
    licence: str = ""
    trained_on: str = ""
    reported: tuple[Result, ...] = ()
    reproduced: tuple[Result, ...] = ()
    origin: str = ""

    @property
    def method(self) -> str:
        """The part of the name before the first dot."""
        return self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        """The part of the name after the first dot."""
        return self.name.partition(".")[2]

    def with_variant(self, variant: str) -> WeightSpec:
        """These weights under another preprocessing.

        Thresholds and calibrations were fitted on scores of the first one and do not carry over.

        Raises:
            KeyError: There is no such variant.
        """
        constants = {**self.preprocessing, **self.variants[variant]}
        return replace(self, variant=variant, preprocessing=constants, threshold=0.0, calibration=None)

    @property
    def scheme(self) -> str:
        """``package``, ``hub``, ``url``, ``file``, or "" where nothing was published."""
        return (self.source or "").partition(":")[0]

    @property
    def place(self) -> str:
        """What follows the scheme in ``source``."""
        return (self.source or "").partition(":")[2]

    @property
    def hashed(self) -> bool:
        """Whether anything is known that the file's hash can be checked against."""
        return bool(self.sha256 or self.sha256_prefix or self.md5)

    @property
    def verifiable(self) -> bool:
        """Whether the right file could be told from another: by a hash, or by a commit of a Hub repository."""
        return self.hashed or self.pinned or self.scheme not in {"hub", "url"}

    @property
    def pinned(self) -> bool:
        """Whether ``revision`` is a commit, not a branch that may move."""
        return is_hex(self.revision or "", 40, 40)


def load_file(path: Path, cache: Path | None = None) -> dict[str, WeightSpec]:
    """Read one catalogue.

    Args:
        path: A YAML file of ``schema_version`` and ``weights``, a mapping of names to the fields of `WeightSpec`.
        cache: See `catalogue_files.read`.

    Raises:
        WeightsError: If it cannot be read, has another schema, or holds anything that is not as it should be; the
            message names file, weights and key.
    """
    document = catalogue_files.read(path, cache)
    if not isinstance(document, dict) or type(document.get("schema_version")) is not int:
        raise WeightsError(f"{path}: schema_version is missing: not a catalogue of weights")
    if document["schema_version"] != SCHEMA_VERSION:
        hint = "update detector-zoo" if document["schema_version"] > SCHEMA_VERSION else None
        version = document["schema_version"]
        raise WeightsError(f"{path}: schema_version {version}, this zoo reads {SCHEMA_VERSION}", hint=hint)
    if unknown := sorted(set(document) - {"schema_version", "weights"}, key=str):
        raise WeightsError(f"{path}: unknown key {unknown[0]!r:.100}")
    weights = document.get("weights") or {}
    if not isinstance(weights, dict):
        raise WeightsError(f"{path}: weights: expected a mapping, got {weights!r:.200}")
    return {name: parse(name, raw, path) for name, raw in weights.items()}


def parse(name: Any, raw: Any, path: Path) -> WeightSpec:
    """Make a `WeightSpec` of an entry of a catalogue.

    Args:
        name: ``method.tag``.
        raw: What YAML made of the entry.
        path: The catalogue, for messages.

    Raises:
        WeightsError: If anything is not as it should be.
    """
    where = f"{path}: {name!s:.100}"
    if not isinstance(name, str) or not is_name(name):
        raise WeightsError(f"{where}: a name has the form method.tag, of lower-case letters, digits and underscores")
    kind = "backbone" if name.startswith("backbone.") else "detector"
    spec: WeightSpec = _build(WeightSpec, raw, _SPEC, where, {"name": name, "kind": kind, "origin": str(path)})
    if isinstance(raw, dict) and "source" not in raw:
        raise WeightsError(f"{where}: source is missing (null where nobody published a file)")
    if not spec.why and (spec.source is None or not spec.verified):
        raise WeightsError(f"{where}: why is missing: say why nobody can have it, or why it is not verified")
    if spec.verified and spec.scheme in {"hub", "url"} and not spec.hashed:
        raise WeightsError(f"{where}: verified without a hash")
    return spec


def suggest(name: str, known: Iterable[str], prefix: str = "") -> str | None:
    """A hint that names what was probably meant, each with ``prefix`` before it, or None."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=3)
    return f"did you mean {', '.join(prefix + match for match in close)}?" if close else None


_Reader = Callable[[Any, str], Any]


def _build(cls: type[Any], raw: Any, readers: Mapping[str, _Reader], where: str, given: Mapping[str, Any]) -> Any:
    """Make a dataclass of a mapping; a field without a default is a required key."""
    if not isinstance(raw, dict):
        raise _expected("a mapping", raw, where)
    for key in raw:
        if key not in readers:
            raise WeightsError(f"{where}: unknown key {key!r:.100}", hint=suggest(f"{key!s:.100}", readers))
    for item in fields(cls):
        if item.name not in raw and item.name not in given and item.default is item.default_factory is MISSING:
            raise WeightsError(f"{where}: {item.name} is missing")
    return cls(**given, **{key: readers[key](value, f"{where}: {key}") for key, value in raw.items()})


def _expected(what: str, value: Any, where: str) -> WeightsError:
    return WeightsError(f"{where}: expected {what}, got {value!r:.200}")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _expected("text (quote it if it looks like a number)", value, where)
    return " ".join(value.split())


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _expected("a number", value, where)
    return float(value)


def _finite(value: Any, where: str) -> float:
    number = _number(value, where)
    if not math.isfinite(number):  # a threshold of nan would call every image real
        raise _expected("a finite number", value, where)
    return number


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _expected("true or false", value, where)
    return value


def _size(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise _expected("a number of bytes", value, where)
    return value


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _expected("a mapping with text for keys", value, where)
    return value


def _variants(value: Any, where: str) -> dict[str, dict[str, Any]]:
    named = _mapping(value, where)
    for name in named:
        if not (name and LOWER.issuperset(name)):
            raise _expected("names of lower-case letters, digits and underscores", name, where)
    return {name: _mapping(constants, f"{where}: {name}") for name, constants in named.items()}


def _matching(valid: Callable[[str], bool], what: str) -> _Reader:
    def read(value: Any, where: str) -> str:
        if not isinstance(value, str) or not valid(value):
            raise _expected(what, value, where)
        return value

    return read


def _source(value: Any, where: str) -> str:
    scheme, colon, place = value.partition(":") if isinstance(value, str) else ("", "", "")
    valid = SOURCES.get(scheme) if colon else None
    if valid is None or not valid(place):
        forms = "package:module/path, hub:org/repo/path, url:https://..., file: or null"
        raise _expected(f"{forms}, with no path that leaves its place", value, where)
    if scheme == "url" and not (place.startswith("https:") or loopback(place)):
        raise _expected("an https address", value, where)
    return str(value)


def _interval(value: Any, where: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise _expected("two numbers", value, where)
    return _number(value[0], where), _number(value[1], where)


def _calibration(value: Any, where: str) -> Calibration:
    calibration: Calibration = _build(Calibration, value, _CALIBRATION, where, {})
    return calibration


def _results(value: Any, where: str) -> tuple[Result, ...]:
    if not isinstance(value, list):
        raise _expected("a list", value, where)
    return tuple(_build(Result, item, _RESULT, f"{where}[{index}]", {}) for index, item in enumerate(value))


def _optional(read: _Reader) -> _Reader:
    return lambda value, where: None if value is None else read(value, where)


_CALIBRATION: Mapping[str, _Reader] = {
    "scale": _finite,
    "offset": _finite,
    "fitted_on": _text,
    "inconclusive": _finite,
}
_RESULT: Mapping[str, _Reader] = {
    **dict.fromkeys(("data", "metric", "count", "command", "source"), _text),
    "value": _number,
    "interval": _optional(_interval),
}
_SPEC: Mapping[str, _Reader] = {
    **dict.fromkeys(("summary", "why", "how_to_get", "licence", "trained_on"), _text),
    "source": _optional(_source),
    "revision": _optional(_matching(lambda v: bool(v) and (WORD | {"/"}).issuperset(v), "a commit or a branch")),
    "sha256": _optional(_matching(lambda v: is_hex(v, 64, 64), "64 hexadecimal digits in quotes")),
    "sha256_prefix": _optional(_matching(lambda v: is_hex(v, 16, 63), "16 to 63 hexadecimal digits in quotes")),
    "md5": _optional(_matching(lambda v: is_hex(v, 32, 32), "32 hexadecimal digits in quotes")),
    "bytes": _optional(_size),
    "format": _matching(lambda v: v in {"safetensors", "pth"}, "safetensors or pth"),
    "backbone": _optional(_matching(lambda v: v.startswith("backbone.") and is_name(v), "backbone.name")),
    "config": _mapping,
    "preprocessing": _mapping,
    "variants": _variants,
    "threshold": _finite,
    "calibration": _optional(_calibration),
    "verified": _flag,
    "reported": _results,
    "reproduced": _results,
}

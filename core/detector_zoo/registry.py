"""The catalogue of weights: registry.yaml files to `WeightSpec`s.

The first-party catalogue is registry.yaml at the root of the repository (inside the package in a wheel); a
plugin from elsewhere names a file of the same schema in its `DetectorInfo.registry`; weights that the user
imported are recorded in a third, in the zoo's home. The core merges the three. Reading them imports neither
torch nor numpy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from detector_zoo.errors import UnknownDetectorError, WeightsError
from detector_zoo.info import DetectorInfo
from detector_zoo.plugins import catalogue
from detector_zoo.weight_specs import SCHEMA_VERSION, Calibration, Result, WeightSpec, load_file, suggest

__all__ = [
    "SCHEMA_VERSION",
    "Calibration",
    "Registry",
    "Result",
    "WeightSpec",
    "is_reference",
    "load_file",
    "lookup",
    "registry",
    "resolve",
    "specs_of",
    "zoo_home",
]


@dataclass(frozen=True, slots=True)
class Registry:
    """All catalogues merged.

    Attributes:
        specs: By name.
        problems: One line for each catalogue that could not be read and each name that was taken already.
    """

    specs: Mapping[str, WeightSpec]
    problems: tuple[str, ...] = ()


def zoo_home() -> Path:
    """Where the zoo keeps converted weights and the user's own catalogue; not created by this call."""
    if home := os.environ.get("DETECTOR_ZOO_HOME"):
        return Path(home).expanduser()
    cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache_home) if cache_home else Path.home() / ".cache") / "detector_zoo"


@cache
def registry() -> Registry:
    """Merge the first-party catalogue, those of plugins and the user's own; ``registry.cache_clear()`` forgets.

    A catalogue that cannot be read, and a name that an earlier one has taken, are problems of the result: they
    cost their own entries, not the command that happened to look.
    """
    specs: dict[str, WeightSpec] = {}
    problems: list[str] = []
    for path in _catalogues():
        try:
            found = load_file(path, zoo_home() / "catalogues")
        except WeightsError as error:
            problems.append(str(error))
            continue
        for name, spec in found.items():
            if name in specs:
                problems.append(f"{name} of {path} is left out: {specs[name].origin} has weights of that name")
            else:
                specs[name] = spec
    return Registry(specs, tuple(problems))


def is_reference(name: str) -> bool:
    """Whether a name is a reference to the Hub, and not one of a catalogue, which never has a slash."""
    return "/" in name or name.startswith(("hub:", "hf:"))


def specs_of(method: str) -> list[WeightSpec]:
    """The known weights of a method, by name; also of a method that no installed plugin provides."""
    return [spec for name, spec in sorted(registry().specs.items()) if spec.method == method]


def resolve(name: str) -> tuple[DetectorInfo, WeightSpec | None]:
    """Find a detector and its weights.

    Args:
        name: ``method``, which stands for its default weights, or ``method.tag``; ``@variant`` after either names
            another of the weights' preprocessings. Or a reference to the Hub, see `detector_zoo.hub_refs`.

    Returns:
        The detector and its weights; None for a detector that needs none.

    Raises:
        UnknownDetectorError: If no installed plugin provides the method, no weights of that tag are known, or they
            have no such variant.
        WeightsError: If a reference cannot be followed, or not to what it should be.
    """
    if is_reference(name):
        from detector_zoo import hub_refs  # here, because `zoo list` needs none of it

        return hub_refs.resolve(name)
    full, at, variant = name.partition("@")
    method, dot, tag = full.partition(".")
    info = catalogue().detectors.get(method)
    if info is None:
        raise _unknown_method(method)
    if not dot:
        if info.default_tag is None and at:
            raise UnknownDetectorError(f"{method} works without weights and has no variants")
        if info.default_tag is None:
            return info, None
        tag = info.default_tag
    spec = registry().specs.get(f"{method}.{tag}")
    if spec is None:
        raise _unknown_weights(f"{method}.{tag}")
    if not at:
        return info, spec
    if variant not in spec.variants:
        known = ", ".join(f"{spec.name}@{known}" for known in spec.variants) or "none"
        raise UnknownDetectorError(f"{spec.name} has no variant {variant!r}", hint=f"known: {known}")
    return info, spec.with_variant(variant)


def lookup(name: str) -> WeightSpec:
    """Find weights, those of a backbone or of a method without an installed plugin included.

    Args:
        name: ``method.tag``, or ``method`` for the default weights of an installed detector, or a reference to the Hub.

    Raises:
        UnknownDetectorError: If there are none of that name.
        WeightsError: If a reference cannot be followed, or not to what it should be.
    """
    if is_reference(name):
        from detector_zoo import hub_refs

        return hub_refs.resolve(name)[1]
    info = catalogue().detectors.get(name)
    if info is not None and info.default_tag is None and not specs_of(name):
        raise UnknownDetectorError(f"{name} works without weights")
    full = f"{name}.{info.default_tag}" if info is not None and info.default_tag else name
    spec = registry().specs.get(full)
    if spec is None:
        raise _unknown_weights(full)
    return spec


def _catalogues() -> list[Path]:
    """The files to merge, in order of precedence."""
    installed = Path(__file__).with_name("registry.yaml")
    # An editable install has no copy of the catalogue in the package: it runs on the checkout's own.
    paths = [installed if installed.is_file() else Path(__file__).parents[2] / "registry.yaml"]
    # In the order in which plugins were loaded: first-party ones before strangers.
    paths += dict.fromkeys(info.registry for info in catalogue().detectors.values() if info.registry)
    own = zoo_home() / "registry.yaml"
    return paths + ([own] if own.exists() else [])


def _unknown_method(name: str) -> UnknownDetectorError:
    known = catalogue()
    for plugin in known.broken():
        if plugin.name == name:
            return UnknownDetectorError(
                f"detector {name!r} is not available, its plugin failed to load: {plugin.status}", hint="zoo plugins"
            )
    if specs_of(name):
        return UnknownDetectorError(
            f"no installed plugin provides the detector {name!r}, of which weights are known",
            hint="zoo plugins shows what is installed",
        )
    if os.environ.get("DETECTOR_ZOO_PLUGINS") is not None:
        hint = "DETECTOR_ZOO_PLUGINS is set and restricts which plugins are loaded"
    else:
        hint = suggest(name, known.detectors) or "zoo list shows the detectors"
    return UnknownDetectorError(f"unknown detector {name!r}", hint=hint)


def _unknown_weights(name: str) -> UnknownDetectorError:
    known = registry()
    method, _, tag = name.partition(".")
    same = specs_of(method)
    info = catalogue().detectors.get(method)
    if same:
        hint = suggest(tag, [spec.tag for spec in same], f"{method}.")
        hint = hint or f"known: {', '.join(spec.name for spec in same)}"
    elif info is not None:
        # The catalogue that has the name may be one that could not be read, most likely the plugin's own.
        problems = sorted(known.problems, key=lambda line: not line.startswith(f"{info.registry}:"))
        hint = next(iter(problems), "zoo weights list shows all")
    else:
        hint = suggest(name, known.specs) or "zoo weights list shows all"
    return UnknownDetectorError(f"unknown weights {name!r}", hint=hint)

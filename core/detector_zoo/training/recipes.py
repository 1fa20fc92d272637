"""Recipes: YAML files beside a plugin's module, read into dataclasses without a key that nobody knows.

A recipe holds every number that weights depend on besides the data. ``paper`` is the published one and the default;
``lite`` trains on two CPU cores. A file given by the user may name one of them under ``base`` and change a few keys.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from detector_zoo import strict_yaml
from detector_zoo.errors import WeightsError, ZooError
from detector_zoo.info import DetectorInfo
from detector_zoo.weight_specs import suggest

__all__ = ["RecipeError", "build", "folder_of", "load", "names"]

T = TypeVar("T")
BASE = "base"


class RecipeError(ZooError):
    """A recipe has a key that nobody knows, or a value of another kind."""

    exit_code = 2


def folder_of(info: DetectorInfo) -> Path:
    """``recipes/`` beside the module that a detector's class is in.

    Raises:
        RecipeError: There is none.
    """
    module = import_module(info.load.partition(":")[0])
    folder = Path(module.__file__ or "").parent / "recipes"
    if not names(folder):
        raise RecipeError(f"{info.name} has no recipe in {folder}")
    return folder


def names(folder: Path) -> list[str]:
    """The recipes in a plugin's folder, by name."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load(
    folder: Path, recipe: str | None = None, config: Path | None = None, overrides: Sequence[str] = ()
) -> tuple[str, dict[str, Any]]:
    """Read a recipe and change it.

    Args:
        folder: Of the plugin's recipes.
        recipe: Name of one of them; by default what ``config`` has under ``base``, else ``paper``.
        config: The user's own file, laid over the recipe: mappings are merged, everything else is replaced.
        overrides: ``key=value`` or ``outer.inner=value``, laid over both; the value is YAML.

    Returns:
        The recipe's name, and its keys and values, not checked yet (see `build`).

    Raises:
        RecipeError: There is no such recipe, a file is not a mapping, or an override is malformed.
    """
    own = _read(config) if config else {}
    base = own.pop(BASE, None)
    name = recipe or base or "paper"
    known = names(folder)
    if name not in known:
        hint = suggest(str(name), known) or (f"known: {', '.join(known)}" if known else None)
        raise RecipeError(f"no recipe {name!r} in {folder}", hint=hint)
    values = merge(_read(folder / f"{name}.yaml"), own)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{override!r} is not key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"{override!r}: {' '.join(str(error).split())}") from error
        for part in reversed(key.split(".")):
            value = {part: value}
        values = merge(values, value)
    return str(name), values


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another; mappings inside are merged, everything else is replaced."""
    out = dict(under)
    for key, value in over.items():
        mine = out.get(key)
        out[key] = merge(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return out


def build(cls: type[T], raw: Any, where: str) -> T:
    """Make a dataclass of a mapping, and of the mappings inside it.

    Args:
        cls: A dataclass whose fields are numbers, texts, booleans, literals, tuples, mappings, dataclasses, or
            one of these or None.
        raw: What YAML made of it.
        where: Named in messages.

    Raises:
        RecipeError: A key is unknown or missing, or a value is of another kind.
    """
    if not isinstance(raw, Mapping):
        raise _expected("a mapping", raw, where)
    assert is_dataclass(cls)  # noqa: S101 - a mistake of the program, not of the recipe
    known = {item.name: item for item in fields(cls) if item.init}
    for key in raw:
        if key not in known:
            hint = suggest(str(key), known) or f"known: {', '.join(known)}"
            raise RecipeError(f"{where}: unknown key {key!r}", hint=hint)
    for key, item in known.items():
        if key not in raw and item.default is item.default_factory is MISSING:
            raise RecipeError(f"{where}: {key} is missing")
    hints = typing.get_type_hints(cls)
    given = {key: _value(hints[key], value, f"{where}: {key}") for key, value in raw.items()}
    try:
        built: T = cls(**given)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error
    return built


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in {Union, types.UnionType}:
        return _union(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            hint = suggest(str(value), [str(a) for a in arguments])
            raise _expected(f"one of {', '.join(map(str, arguments))}", value, where, hint)
        return value
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is not None:  # Mapping[str, X]
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _expected("a mapping", value, where)
        return {key: _value(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if is_dataclass(kind):
        return build(typing.cast("type[Any]", kind), value, where)
    return _scalar(kind, value, where)


def _union(arguments: Sequence[Any], value: Any, where: str) -> Any:
    """None, or the first alternative that takes the value; the complaint is the first one's."""
    alternatives = [kind for kind in arguments if kind is not type(None)]
    if value is None and len(alternatives) < len(arguments):
        return None
    first: RecipeError | None = None
    for kind in alternatives:
        try:
            return _value(kind, value, where)
        except RecipeError as error:
            first = first or error
    raise first or _expected("nothing", value, where)


def _tuple(arguments: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _expected("a list", value, where)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise _expected(f"{len(arguments)} values", value, where)
    pairs = zip(arguments, value, strict=True)
    return tuple(_value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        # YAML 1.1 takes 1e-4 for text: it wants a dot in it.
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, kind) and (kind is not int or not isinstance(value, bool)):
        return value
    what = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}[kind]
    raise _expected(what, value, where)


def _expected(what: str, value: Any, where: str, hint: str | None = None) -> RecipeError:
    return RecipeError(f"{where}: expected {what}, got {value!r}", hint=hint)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = strict_yaml.read(path)
    except WeightsError as error:
        raise RecipeError(str(error)) from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected a mapping of keys to values")
    return content

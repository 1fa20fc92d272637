"""Nothing that a user or an author of a plugin can reach goes without a word in the docs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import click
import pytest

from detector_zoo import errors, hookspecs, weight_specs
from detector_zoo.cli import main
from detector_zoo.cli.new import FILES
from detector_zoo.info import CAPABILITIES, DetectorInfo, Paper
from detector_zoo.plugins import _HOOKS
from detector_zoo.testing import pytest_plugin
from detector_zoo.testing.properties import PROPERTIES

DOCS = Path(__file__).resolve().parents[1] / "docs"
PLUGINS = DOCS.joinpath("plugins.md").read_text("utf-8")
CLI = DOCS.joinpath("cli.md").read_text("utf-8")


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PLUGINS, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def rows(text: str) -> dict[str, str]:
    """What the tables say of each name in code in a first column."""
    found = re.findall(r"^\| (`[^|]*`) \| (.*) \|$", text, re.MULTILINE)
    return {name: said for names, said in found for name in re.findall(r"`([^`]+)`", names)}


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, (*path, name))


def raised() -> dict[str, type[errors.ZooError]]:
    """`ZooError` and all that the core derives from it, wherever it does."""
    core = Path(errors.__file__).parent
    found = {}
    for path in core.rglob("*.py"):
        for name, base in re.findall(r"^class (\w+)\((\w*Error|Exception)\)", path.read_text("utf-8"), re.MULTILINE):
            if base != "Exception" or name == "ZooError":
                module = ".".join(path.relative_to(core.parent).with_suffix("").parts)
                found[name] = getattr(import_module(module), name)
    return {name: kind for name, kind in found.items() if issubclass(kind, errors.ZooError)}


COMMANDS = dict(commands(main, ("zoo",)))


def test_every_hook_is_documented() -> None:
    specs = {name for name in vars(hookspecs) if name.startswith("register_")}
    assert set(rows(section("Hooks"))) == specs == set(_HOOKS)


def test_every_exception_is_documented() -> None:
    table = rows(section("Exceptions"))
    assert set(table) == set(raised())
    for name, kind in raised().items():
        assert table[name].endswith(f"| {kind.exit_code}")
        assert kind.__doc__
    assert set(errors.__all__) == {name for name, kind in raised().items() if kind.__module__ == errors.__name__}
    assert [name for name in errors.__all__ if name not in (errors.__doc__ or "")] == []


def test_every_key_of_the_registry_is_documented() -> None:
    text = section("The catalogue of weights")
    spec, rest = text.split("Keys of `calibration`")
    calibration, result = rest.split("Keys of a figure")
    assert set(rows(spec)) == set(weight_specs._SPEC)
    assert set(rows(calibration)) == set(weight_specs._CALIBRATION)
    assert set(rows(result)) == set(weight_specs._RESULT)
    assert f"schema_version: {weight_specs.SCHEMA_VERSION}" in text
    attributes = weight_specs.WeightSpec.__doc__ or ""
    assert [key for key in weight_specs._SPEC if f"{key}:" not in attributes and f"``{key}``" not in attributes] == []


def test_every_field_of_a_detector_is_documented() -> None:
    table = rows(section("DetectorInfo"))
    assert set(table) == {field.name for field in fields(DetectorInfo)}
    assert [name for name in CAPABILITIES if f"`{name}`" not in table["capabilities"]] == []
    assert [field.name for field in fields(Paper) if f"`{field.name}`" not in table["paper"]] == []


def test_every_property_and_fixture_is_documented() -> None:
    text = section("Conformance")
    assert set(rows(text)) == set(PROPERTIES)
    fixtures = {name for name in vars(pytest_plugin) if name.startswith("zoo_")}
    assert fixtures
    assert [name for name in fixtures if f"`{name}`" not in text] == []


def test_every_file_that_new_writes_is_read_by_somebody() -> None:
    scaffold = Path(hookspecs.__file__).parent / "scaffold"
    assert {path.name for path in scaffold.iterdir()} == set(FILES.values())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_option_is_documented(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help
    heading = re.search(rf"^#+ {' '.join(path)}\n(.*?)(?=^#+ |\Z)", CLI, re.MULTILINE | re.DOTALL)
    assert heading, "make docs"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name
            for name in parameter.opts:
                assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", heading[1]), f"{name}: make docs"

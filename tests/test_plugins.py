"""Discovery: lazy, guarded, restricted on request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from detector_zoo import DetectorInfo, hookimpl, plugins
from detector_zoo.cli import main
from detector_zoo.detector import PROTOCOLS
from detector_zoo.entry_points import entry_points
from detector_zoo.hookspecs import hookspec
from detector_zoo.info import CAPABILITIES, Paper
from detector_zoo.loading import import_target

from conftest import FakePlugins

HEAVY = ("torch", "timm", "transformers", "open_clip", "torchvision", "numpy", "rich", "huggingface_hub", "pyarrow")


def module_that(register_detectors: object) -> ModuleType:
    module = ModuleType("fake")
    module.register_detectors = register_detectors  # type: ignore[attr-defined]
    return module


def registering(*items: object) -> ModuleType:
    @hookimpl
    def register_detectors(register):  # type: ignore[no-untyped-def]
        for item in items:
            register(item)

    return module_that(register_detectors)


def info(name: str, **changes: object) -> DetectorInfo:
    return DetectorInfo(**{"name": name, "summary": "A fake", "load": "fake:Fake", **changes})  # type: ignore[arg-type]


def row(name: str) -> plugins.Plugin:
    return next(plugin for plugin in plugins.catalogue().plugins if plugin.name == name)


def hook_raises() -> ModuleType:
    @hookimpl
    def register_detectors(register):  # type: ignore[no-untyped-def]
        register(info("half_registered"))
        raise RuntimeError("boom\nin two lines")

    return module_that(register_detectors)


BROKEN = {
    "raises at import": (RuntimeError("no luck"), "RuntimeError: no luck"),
    "lacks a dependency": (ModuleNotFoundError("No module named 'cv3'"), "ModuleNotFoundError: No module named 'cv3'"),
    "exits at import": (SystemExit(3), "SystemExit: 3"),
    "raises in the hook": (hook_raises(), "RuntimeError: boom in two lines"),
    "registers a string": (registering("x"), "PluginError: register_detectors takes a DetectorInfo, got str"),
    "bad name": (registering(info("No Good")), "PluginError: detectors name 'No Good' is not of the form"),
    "bad target": (registering(info("fine", load="nowhere")), 'PluginError: fine: load must be "module:Class"'),
    "unknown capability": (
        registering(info("fine", capabilities={"fly"})),
        "PluginError: fine: unknown capabilities fly",
    ),
    "takes our name": (
        registering(info("dummy")),
        "PluginError: detector 'dummy' of zoo-fake is taken: detector-zoo registers it already",
    ),
    "takes its own name": (registering(info("twin"), info("twin")), "is taken: zoo-fake registers it already"),
    "no hook": (ModuleType("empty"), "PluginError: implements no hook of register_detectors"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_a_row_and_nothing_more(case: str, fake_plugins: FakePlugins) -> None:
    module, reason = BROKEN[case]
    fake_plugins.add("bad", module)
    assert reason in row("bad").status
    assert row("bad").detectors == ()
    assert "dummy" in plugins.catalogue().detectors
    assert "half_registered" not in plugins.catalogue().detectors
    assert plugins.catalogue().owners["detectors", "dummy"].distribution == "detector-zoo"

    listed = CliRunner().invoke(main, ["list"])
    assert (listed.exit_code, listed.stderr) == (0, "")
    table = CliRunner().invoke(main, ["plugins"])
    assert table.exit_code == 0
    assert "zoo-fake 1.0" in table.stdout
    assert "Warning: plugin bad (zoo-fake): " in CliRunner().invoke(main, ["-v", "list"]).stderr


def naming(hook: str, *names: object) -> ModuleType:
    """Registers names by one of the other two hooks, and goes on whatever is said."""
    module = ModuleType("fake")

    @hookimpl(specname=hook)
    def register(register):  # type: ignore[no-untyped-def]
        for name in names:
            with suppress(Exception):
                register(name, "module:target")

    setattr(module, hook, register)
    return module


@pytest.mark.parametrize("hook", ["register_datasets", "register_perturbations"])
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["../x"], "name '../x' is not of the form"),
        (["a/b"], "name 'a/b' is not of the form"),
        (["\x1b[2J"], "is not of the form"),
        (["x\n"], "is not of the form"),
        (["n" * 51], "or longer than 50"),
        (["n" * 10**6], "or longer than 50"),
        ([None], "name None is not of the form"),
        (["good", "No"], "name 'No' is not of the form"),
        (["twin", "twin"], "is taken: zoo-fake registers it already"),
        ([f"n{i}" for i in range(100_000)], "registers more than 1000 items"),
    ],
    ids=range(10),
)
def test_names_of_data_sets_and_perturbations(
    hook: str, names: list[object], reason: str, fake_plugins: FakePlugins
) -> None:
    fake_plugins.add("bad", naming(hook, *names))
    assert reason in row("bad").status
    assert len(row("bad").status) < 400
    found = plugins.catalogue()
    assert found.datasets == found.perturbations == {}
    shown = CliRunner().invoke(main, ["plugins"]).stdout
    assert all(line.isprintable() and len(line) < 400 for line in shown.splitlines())


def test_what_the_core_brings_cannot_be_taken(fake_plugins: FakePlugins) -> None:
    from detector_zoo.evaluation import adapters, perturbations

    for kind, register in (
        ("datasets", adapters.register_datasets),
        ("perturbations", perturbations.register_perturbations),
    ):
        ours: dict[str, str] = {}
        register(register=ours.__setitem__)
        assert plugins.TAKEN[kind] == set(ours)
    fake_plugins.add("bad", naming("register_datasets", "folders"), distribution="zoo-thief")
    fake_plugins.add("worse", registering(info("all")))
    assert "dataset 'folders' of zoo-thief is taken: it means something to the zoo itself" in row("bad").status
    assert "detector 'all' of zoo-fake is taken" in row("worse").status


def test_a_plugin_that_catches_the_refusal_registers_nothing(fake_plugins: FakePlugins) -> None:
    @hookimpl
    def register_detectors(register):  # type: ignore[no-untyped-def]
        for item in (info("good"), info("Bad"), info("better")):
            with suppress(Exception):
                register(item)

    fake_plugins.add("bad", module_that(register_detectors))
    assert "detectors name 'Bad' is not of the form" in row("bad").status
    assert not {"good", "better"} & set(plugins.catalogue().detectors)


def test_the_name_of_an_entry_point_cannot_be_taken(fake_plugins: FakePlugins, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_plugins.add("mdmf", AssertionError("was loaded"), distribution="zoo-thief")
    monkeypatch.setenv("DETECTOR_ZOO_PLUGINS", "mdmf")
    plugins.catalogue.cache_clear()
    ours, theirs = plugins.catalogue().plugins
    assert (ours.distribution, ours.status) == ("detector-zoo", "ok")
    assert theirs.status == "PluginError: entry point 'mdmf' of zoo-thief is taken: detector-zoo has it"


@pytest.mark.parametrize("change", [{"title": 3}, {"year": "2026"}, {"bibtex": None}, {"url": b"x"}])
def test_a_paper_has_to_be_one(change: dict[str, object], fake_plugins: FakePlugins) -> None:
    paper = Paper(**{"title": "T", "authors": "A B", "year": 2026, "url": "https://x", **change})  # type: ignore[arg-type]
    fake_plugins.add("bad", registering(info("fine", paper=paper)))
    assert f"fine: paper: {next(iter(change))} must be" in row("bad").status


def test_many_detectors_are_shown_in_part(fake_plugins: FakePlugins) -> None:
    fake_plugins.add("many", registering(*(info(f"n{i}") for i in range(20))), distribution="z" * 500)
    shown = CliRunner().invoke(main, ["plugins"]).stdout
    assert "n0, n1, n2, n3, n4 and 15 more" in shown
    assert "z" * 81 not in shown


def test_a_hook_of_an_unknown_name_is_reported(fake_plugins: FakePlugins) -> None:
    module = registering(info("fine"))
    module.register_teapots = hookimpl(lambda register: None)  # type: ignore[attr-defined]
    fake_plugins.add("bad", module)
    assert "register_teapots" in row("bad").status


def test_two_strangers_with_one_name(fake_plugins: FakePlugins) -> None:
    fake_plugins.add("one", registering(info("clash")), distribution="zoo-a")
    fake_plugins.add("two", registering(info("clash")), distribution="zoo-b")
    assert row("one").status == "ok"
    assert row("two").status == "PluginError: detector 'clash' of zoo-b is taken: zoo-a registers it already"


def test_asking_for_a_broken_plugins_detector_says_why(fake_plugins: FakePlugins) -> None:
    fake_plugins.add("bad", RuntimeError("no luck"))
    result = CliRunner().invoke(main, ["score", "-d", "bad", "x.png"])
    assert result.exit_code == 2
    assert "RuntimeError: no luck" in result.stderr


def test_a_good_plugin_reaches_list_and_load(fake_plugins: FakePlugins) -> None:
    fake_plugins.add("good", registering(info("good", load="detector_zoo_dummy.detector:Dummy")), version="2.5")
    assert (row("good").status, row("good").version) == ("ok", "2.5")
    listed = json.loads(CliRunner().invoke(main, ["list", "--json"]).stdout)
    assert "good" in [fact["name"] for fact in listed]
    from detector_zoo import load

    assert load("good").name == "good"


def test_plugins_json(fake_plugins: FakePlugins) -> None:
    fake_plugins.add("bad", RuntimeError("no luck"))
    rows = json.loads(CliRunner().invoke(main, ["plugins", "--json"]).stdout)["plugins"]
    bad = next(r for r in rows if r["name"] == "bad")
    assert set(bad) == {"name", "distribution", "version", "hooks", "detectors", "status"}
    ours = next(r for r in rows if r["name"] == "dummy")
    assert ours["hooks"] == ["register_detectors"]
    assert ours["detectors"] == ["dummy"]


@pytest.mark.parametrize(("allowed", "expected"), [("", set()), ("dummy", {"dummy"}), ("dummy, nothing", {"dummy"})])
def test_safe_mode(
    allowed: str, expected: set[str], monkeypatch: pytest.MonkeyPatch, fake_plugins: FakePlugins
) -> None:
    monkeypatch.setenv("DETECTOR_ZOO_PLUGINS", allowed)
    fake_plugins.add("bad", RuntimeError("must not be loaded"))
    assert {plugin.name for plugin in plugins.catalogue().plugins} == expected


@pytest.mark.parametrize("group", ["detector_zoo", "console_scripts", "pytest11", "no_such_group"])
def test_entry_points_are_those_that_the_standard_library_finds(group: str) -> None:
    theirs = {(p.name, p.value.split(" ")[0], p.dist.name, p.dist.version) for p in metadata.entry_points(group=group)}
    assert set(entry_points(group)) == theirs


def test_entry_points_of_odd_distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, version in (("first", "2"), ("second", "1")):
        folder = tmp_path / place / f"Odd.Name-{version}.dist-info"
        folder.mkdir(parents=True)
        folder.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: Odd.Name\nVersion: {version}\n\nName: no\n"
        )
        folder.joinpath("entry_points.txt").write_text(
            f"[other]\nx = y\n[zoo_test]\n# a comment\nname{version} = os:path [extra]\n\n[more]\nz = z\n"
        )
    legacy = tmp_path / "second" / "old_style.egg-info"
    legacy.mkdir()
    legacy.joinpath("PKG-INFO").write_text("Name: old-style\nVersion: 0.1\n")
    legacy.joinpath("entry_points.txt").write_text("[zoo_test]\nold=os\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "none"), str(tmp_path / "second")])
    found = entry_points("zoo_test")
    assert found == [("name2", "os:path", "Odd.Name", "2"), ("old", "os", "old-style", "0.1")]
    assert found[0].load() is os.path
    assert found[1].load() is os


def test_capabilities_are_what_the_class_implements() -> None:
    assert set(CAPABILITIES) == set(PROTOCOLS)
    methods = {"localize": "heatmap", "explain": "evidence", "train": "fit"}
    for detector in plugins.list_detectors():
        target = import_target(detector)
        assert {name for name in CAPABILITIES if hasattr(target, methods[name])} == set(detector.capabilities)


def test_every_hookspec_is_documented_and_takes_a_register_callback() -> None:
    from inspect import signature

    from detector_zoo import hookspecs

    specs = [f for name, f in vars(hookspecs).items() if name.startswith("register_")]
    assert 1 <= len(specs) <= 6
    for spec in specs:
        assert spec.__doc__
        assert list(signature(spec).parameters) == ["register"]
    assert hookspec.project_name == "detector_zoo"


@pytest.mark.parametrize(
    "code",
    [
        "import detector_zoo",
        "import detector_zoo.cli as c; c.main(['list'], standalone_mode=False)",
        "import detector_zoo.cli as c; c.main(['list', '--json'], standalone_mode=False)",
        "import detector_zoo.cli as c; c.main(['plugins'], standalone_mode=False)",
        "import detector_zoo.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass",
        "import detector_zoo.cli as c\ntry: c.main(['score', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    script = f"{code}\nimport sys\nprint('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_the_packages_public_names_resolve() -> None:
    import detector_zoo

    assert dir(detector_zoo) == sorted(detector_zoo.__all__)
    for name in detector_zoo.__all__:
        assert getattr(detector_zoo, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        detector_zoo.no_such_name  # noqa: B018

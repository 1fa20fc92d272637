"""The catalogue: what registry.yaml files may say, how they merge, and how names are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from detector_zoo import registry
from detector_zoo.errors import UnknownDetectorError, WeightsError
from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo

ROOT = Path(registry.__file__).parents[2]
ENTRY = {"summary": "s", "source": "hub:org/repo/model.safetensors", "sha256": "0" * 64, "why": "not at hand"}


def catalogue(path: Path, weights: dict[str, Any], version: Any = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"schema_version": version, "weights": weights}), "utf-8")
    return path


def plugin(name: str, path: Path | None = None, default_tag: str | None = "base") -> ModuleType:
    module = ModuleType(name)

    @hookimpl
    def register_detectors(register: Any) -> None:
        register(DetectorInfo(name=name, summary=name, load=f"{name}:X", default_tag=default_tag, registry=path))

    vars(module)["register_detectors"] = register_detectors
    return module


def test_every_field_is_read(tmp_path: Path) -> None:
    path = catalogue(
        tmp_path / "r.yaml",
        {
            "tiny.a": {
                **ENTRY,
                "revision": "0" * 40,
                "md5": "0" * 32,
                "bytes": 12,
                "format": "pth",
                "backbone": "backbone.b",
                "config": {"width": 2},
                "preprocessing": {"crop": 224},
                "threshold": 0.5,
                "calibration": {"scale": 2, "offset": -1, "fitted_on": "d"},
                "licence": "MIT",
                "trained_on": "a\n  b",
                "reported": [{"data": "d", "metric": "AP", "value": 0.5, "interval": [0.4, 0.6]}],
            },
            "backbone.b": ENTRY,
        },
    )
    specs = registry.load_file(path)
    spec = specs["tiny.a"]
    assert (spec.method, spec.tag, spec.kind, spec.origin) == ("tiny", "a", "detector", str(path))
    assert (spec.scheme, spec.place) == ("hub", "org/repo/model.safetensors")
    assert spec.calibration == registry.Calibration(scale=2.0, offset=-1.0, fitted_on="d")
    assert spec.reported == (registry.Result(data="d", metric="AP", value=0.5, interval=(0.4, 0.6)),)
    assert spec.config == {"width": 2}
    assert spec.trained_on == "a b"
    assert spec.pinned
    assert spec.hashed
    assert specs["backbone.b"].kind == "backbone"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sha265": "0" * 64}, "unknown key 'sha265'"),
        ({"sha256": "abc"}, "sha256: expected 64 hexadecimal digits"),
        ({"sha256": 12}, "sha256: expected 64 hexadecimal digits"),
        ({"md5": "0" * 31}, "md5: expected 32"),
        ({"bytes": "12"}, "bytes: expected a number of bytes, got '12'"),
        ({"bytes": True}, "bytes: expected a number of bytes"),
        ({"threshold": "high"}, "threshold: expected a number, got 'high'"),
        ({"verified": "no"}, "verified: expected true or false"),
        ({"summary": 3}, "summary: expected text"),
        ({"format": "pt"}, "format: expected safetensors or pth"),
        ({"config": [1]}, "config: expected a mapping"),
        ({"backbone": "b"}, "backbone: expected backbone.name"),
        ({"calibration": {"scale": 1, "offset": 0}}, "calibration: fitted_on is missing"),
        ({"calibration": {"scale": 1, "offset": 0, "fitted_on": "", "x": 1}}, "calibration: unknown key 'x'"),
        ({"reported": {"AP": 1}}, "reported: expected a list"),
        ({"reported": [{"data": "d", "metric": "AP"}]}, "reported[0]: value is missing"),
        ({"reported": [{"data": "d", "metric": "AP", "value": 1, "interval": [1]}]}, "interval: expected two numbers"),
        ({"why": ""}, "why is missing"),
        ({"verified": True, "sha256": None}, "verified without a hash"),
        ({"source": "ftp://x"}, "source: expected package:"),
        ({"source": "url:http://example.org/x"}, "source: expected an https address"),
        ({"source": "hub:model.safetensors"}, "source: expected package:"),
        ({"source": "hub:org/repo/../other"}, "source: expected package:"),
        ({"source": "file:/etc/passwd"}, "source: expected package:"),
        ({"source": "package:pkg"}, "source: expected package:"),
        ({"source": "package:pkg/../other/x"}, "source: expected package:"),
        ({"source": "package:pkg/a/.."}, "source: expected package:"),
        ({"source": "package:pkg//etc/passwd"}, "source: expected package:"),
        ({"source": "package:/etc/passwd"}, "source: expected package:"),
        ({"source": "package:pkg/a\\..\\b"}, "source: expected package:"),
        ({"source": "package:..pkg/a"}, "source: expected package:"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = catalogue(tmp_path / "r.yaml", {"tiny.a": ENTRY | change})
    with pytest.raises(WeightsError) as caught:
        registry.load_file(path)
    assert f"{path}: tiny.a: " in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_source_has_to_be_given_even_if_null(tmp_path: Path) -> None:
    entry = {key: value for key, value in ENTRY.items() if key != "source"}
    with pytest.raises(WeightsError, match=r"tiny\.a: source is missing"):
        registry.load_file(catalogue(tmp_path / "r.yaml", {"tiny.a": entry}))


@pytest.mark.parametrize("name", ["tiny", "tiny.", ".a", "Tiny.a", "tiny.a.b", "tiny/../x.a", "tiny.a b", 3])
def test_names_of_another_form(tmp_path: Path, name: Any) -> None:
    with pytest.raises(WeightsError, match=r"has the form method\.tag"):
        registry.load_file(catalogue(tmp_path / "r.yaml", {name: ENTRY}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schema_version: 2", "schema_version 2, this zoo reads 1"),
        ("schema_version: '1'", "schema_version is missing"),
        ("weights: {}", "schema_version is missing"),
        ("[1]", "not a catalogue"),
        ("", "not a catalogue"),
        ("schema_version: 1\nweight: {}", "unknown key 'weight'"),
        ("schema_version: 1\nweights: [a]", "weights: expected a mapping"),
        ("schema_version: 1\nweights: {a.b: 3}", "a.b: expected a mapping, got 3"),
        (
            "schema_version: 1\nweights: {a.b: {why: x, source: null}, a.b: {why: y, source: null}}",
            "a.b is given twice",
        ),
        ("a: [", "line "),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("\x00", "not allowed"),
    ],
)
def test_files_that_are_no_catalogue(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(WeightsError) as caught:
        registry.load_file(path)
    assert str(caught.value).startswith(str(path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def doubling(last: str) -> str:
    """Forty lines that describe 2^40 nodes."""
    lines = [f"a{i}: &a{i} {last.format(i - 1) if i else '{x: 1}'}" for i in range(40)]
    return "schema_version: 1\nweights: {a.b: {source: null, why: x, config: {" + ", ".join(lines) + "}}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (doubling("[*a{0}, *a{0}]"), "nested too deeply, or too long"),
        (doubling("{{<<: [*a{0}, *a{0}]}}"), "nested too deeply, or too long"),
        ("[" * 100_000, "nested too deeply"),
        ("a: " + "{a: " * 100_000, "nested too deeply"),
        ("- x\n" * 200_000, "too long"),
        ("&a [*a]", "alias a names nothing that is complete"),
        ("[*a]", "alias a names nothing"),
        ("schema_version: 1\nweights: {a.b: {source: null, why: x, config: &c {a: *c}}}", "alias c names nothing"),
        ("a: " + "9" * 5000, "of that length"),
        ("a: 1" + ":59" * 200_000, "of that length"),
        ("a: 2020-13-45", "month must be in 1..12"),
        (f"schema_version: 1\nweights: {{? {'a' * 10**5} : {{source: null, why: x}}}}", "has the form method.tag"),
        (f"schema_version: 1\nweights: {{a.{'b' * 300}: {{source: null, why: x}}}}", "has the form method.tag"),
        (f"schema_version: 1\nweights: {{a.b: {{source: null, why: x, {'k' * 1000}: 1}}}}", "unknown key 'kkk"),
        (f"schema_version: 1\nweights: {{a.b: {{source: {'s' * 10**5}, why: x}}}}", "expected package:"),
        ("schema_version: 1\nweights: {a.b: {source: null, why: x, threshold: .nan}}", "expected a finite number"),
        ("schema_version: 1\nweights: {a.b: {source: null, why: x, threshold: -.inf}}", "expected a finite number"),
    ],
)
@pytest.mark.timeout(60)
def test_files_that_mean_harm_are_one_short_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(WeightsError, match=r"r\.yaml: ") as caught:
        registry.load_file(path, tmp_path / "cache")
    assert expected in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 500
    assert str(caught.value).isprintable()


def test_files_that_never_end(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").touch()
    os.truncate(tmp_path / "large.yaml", 10**10)
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("large", "pipe"):
        with pytest.raises(WeightsError, match="no file, or larger than"):
            registry.load_file(tmp_path / f"{name}.yaml")


def test_repeated_parts_may_be_given_once(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "schema_version: 1\nweights:\n"
        "  a.b: {source: null, why: &w because, config: &c {x: 1}}\n"
        "  a.c: {source: null, why: *w, config: {<<: *c, y: 2}}\n"
    )
    specs = registry.load_file(path)
    assert (specs["a.c"].why, specs["a.c"].config) == ("because", {"x": 1, "y": 2})


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No such file"):
        registry.load_file(tmp_path / "none.yaml")


def test_merges_plugins_and_the_users_own(fake_plugins: Any, own_home: Path, tmp_path: Path) -> None:
    theirs = catalogue(tmp_path / "theirs.yaml", {"tiny.base": ENTRY, "mdmf.dinov2_l14": ENTRY})
    catalogue(own_home / "registry.yaml", {"tiny.mine": ENTRY, "tiny.base": ENTRY})
    fake_plugins.add("tiny", plugin("tiny", theirs))
    found = registry.registry()
    assert found.specs["tiny.base"].origin == str(theirs)
    assert found.specs["tiny.mine"].origin == str(own_home / "registry.yaml")
    assert found.specs["mdmf.dinov2_l14"].origin == str(ROOT / "registry.yaml")
    assert len(found.problems) == 2
    assert found.problems[0].startswith(f"mdmf.dinov2_l14 of {theirs} is left out: {ROOT / 'registry.yaml'}")
    assert str(theirs) in found.problems[1]
    assert str(own_home) in found.problems[1]
    assert [spec.name for spec in registry.specs_of("tiny")] == ["tiny.base", "tiny.mine"]


def test_a_broken_catalogue_is_a_problem_and_no_more(fake_plugins: Any, own_home: Path, tmp_path: Path) -> None:
    broken = catalogue(tmp_path / "broken.yaml", {"tiny.base": {}})
    catalogue(own_home / "registry.yaml", {}, version=99)
    fake_plugins.add("tiny", plugin("tiny", broken))
    fake_plugins.add("other", plugin("other", tmp_path / "none.yaml"))
    found = registry.registry()
    assert len(found.problems) == 3
    assert "mdmf.dinov2_l14" in found.specs
    with pytest.raises(UnknownDetectorError) as caught:
        registry.resolve("tiny")
    assert caught.value.hint is not None
    assert str(broken) in caught.value.hint


def test_two_detectors_of_one_plugin_share_a_catalogue(fake_plugins: Any, tmp_path: Path) -> None:
    path = catalogue(tmp_path / "r.yaml", {"tiny.base": ENTRY})
    fake_plugins.add("tiny", plugin("tiny", path))
    fake_plugins.add("teeny", plugin("teeny", path))
    assert registry.registry().problems == ()


def test_resolve(fake_plugins: Any, tmp_path: Path) -> None:
    path = catalogue(tmp_path / "r.yaml", {"tiny.base": ENTRY, "tiny.large": ENTRY, "absent.base": ENTRY})
    fake_plugins.add("tiny", plugin("tiny", path))
    fake_plugins.add("plain", plugin("plain", default_tag=None))
    fake_plugins.add("ruined", ImportError("no module named ruin"))
    info, spec = registry.resolve("tiny")
    assert (info.name, spec and spec.name) == ("tiny", "tiny.base")
    assert registry.resolve("tiny.large")[1] == registry.lookup("tiny.large")
    assert registry.lookup("tiny").name == "tiny.base"
    assert registry.resolve("plain")[1] is None

    for name, message, hint in (
        ("tiny.larg", "unknown weights 'tiny.larg'", "did you mean tiny.large?"),
        ("tiny.zzz", "unknown weights 'tiny.zzz'", "known: tiny.base, tiny.large"),
        ("tinny", "unknown detector 'tinny'", "did you mean tiny?"),
        ("zzz", "unknown detector 'zzz'", "zoo list"),
        ("ruined", "failed to load: ImportError: no module named ruin", "zoo plugins"),
        ("ruined.tag", "failed to load: ImportError: no module named ruin", "zoo plugins"),
        ("absent", "no installed plugin provides the detector 'absent'", "zoo plugins"),
        ("backbone.dinov2_vit_l14", "no installed plugin provides", "zoo plugins"),
    ):
        with pytest.raises(UnknownDetectorError, match=message.replace("'", ".")) as caught:
            registry.resolve(name)
        assert hint in (caught.value.hint or "")
        assert caught.value.exit_code == 2
    with pytest.raises(UnknownDetectorError, match="plain works without weights"):
        registry.lookup("plain")
    with pytest.raises(UnknownDetectorError, match="unknown weights"):
        registry.lookup("nobody.knows")


def test_the_safe_mode_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch, fake_plugins: Any) -> None:
    monkeypatch.setenv("DETECTOR_ZOO_PLUGINS", "")
    fake_plugins.add("tiny", plugin("tiny"))
    with pytest.raises(UnknownDetectorError) as caught:
        registry.resolve("tiny")
    assert "DETECTOR_ZOO_PLUGINS" in (caught.value.hint or "")


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTOR_ZOO_HOME", "/a")
    assert registry.zoo_home() == Path("/a")
    monkeypatch.delenv("DETECTOR_ZOO_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert registry.zoo_home() == Path("/b/detector_zoo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert registry.zoo_home() == Path("/c/.cache/detector_zoo")


def test_the_first_party_catalogue_is_honest() -> None:
    specs = registry.load_file(ROOT / "registry.yaml")
    expected = {
        "cnnspot.blur_jpg_0_5",
        "cnnspot.blur_jpg_0_1",
        "ufd_clip.official",
        "backbone.clip_vit_l14_openai",
        "corvi.latent",
        "corvi.clipdet",
        "stay_positive.rajan",
        "stay_positive.corvi_plus",
        "stay_positive.rajan_plus",
        "patch_shuffle.official",
        *(f"mdmf.dinov2_{size}14" for size in "sblg"),
        *(f"backbone.dinov2_vit_{size}14" for size in "sblg"),
        *(f"inpx.{network}" for network in ("resnet50", "efficientnet_b0", "vit_b16", "clip_vit_b32")),
    }
    assert expected <= set(specs)
    for spec in specs.values():
        assert spec.summary, spec.name
        assert spec.backbone is None or spec.backbone in specs, spec.name
        assert spec.licence or spec.source is None, spec.name
        assert spec.verified or spec.why, spec.name
        if spec.scheme == "file" or not spec.verifiable:
            assert spec.how_to_get, spec.name
        for result in (*spec.reported, *spec.reproduced):
            assert 0 <= result.value <= 1, spec.name
            assert result.source or result.command, spec.name


def test_reading_the_catalogue_loads_nothing_heavy() -> None:
    code = (
        "import sys; from detector_zoo import registry, weights\n"
        "[weights.state(spec) for spec in registry.registry().specs.values()]\n"
        "print(sorted({'torch', 'numpy', 'rich', 'huggingface_hub', 'safetensors', 'ssl'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

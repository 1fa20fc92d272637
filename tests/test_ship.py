"""tools/ship.py: a run's weights into a plugin, and their entry into the catalogue without touching the rest."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from detector_zoo.detector import Weights
from detector_zoo.errors import WeightsError
from detector_zoo.networks import small
from detector_zoo.training import artifact
from detector_zoo.training.positions import fit_positions
from detector_zoo.weight_specs import Calibration, Result, WeightSpec, load_file
from detector_zoo_corvi import Corvi
from training_toys import toy_set

from conftest import photo

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("ship", ROOT / "tools" / "ship.py")
assert _spec is not None
assert _spec.loader is not None
ship: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ship)

CATALOGUE = """# A comment at the top.
schema_version: 1

weights:
  # ---------------------------------------- Corvi
  corvi.other:
    source: null
    config: &network {conv1_stride: 1}
    why: nobody has it

  # ---------------------------------------- the rest
  cnnspot.last:
    source: null  # a comment
    config: *network
    why: nobody has it
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of corvi.lite on toys, with a network of a few channels."""
    torch.set_num_threads(1)
    toys = toy_set(tmp_path_factory.mktemp("toys"), 16)
    values = {
        "summary": "toys",
        "licence": "Apache-2.0",
        "network": {"architecture": "resnet_narrow", "stem": 4, "widths": [4], "blocks": [1], "strides": [2]},
        "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "exif_orientation": "ignore"},
        "pretrained": False,
        "augmentation": [{"random_crop": {"size": 32}}],
        "batch": 4,
        "sides": [40, 48],
        "slices": {"validation": 0.25, "calibration": 0.25},
        "optimiser": {"name": "adamw", "lr": 0.002},
        "schedule": {"steps": 2, "every": 2},
    }
    made = toys.job(tmp_path_factory.mktemp("run"), "corvi")
    return fit_positions(replace(made, name="corvi.lite", recipe="lite", values=values), Corvi)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small repository."""
    (tmp_path / "registry.yaml").write_text(CATALOGUE)
    plugin = tmp_path / "plugins" / "detector_zoo_corvi"
    plugin.mkdir(parents=True)
    shutil.copy(ROOT / "plugins" / "detector_zoo_corvi" / "__init__.py", plugin)
    (tmp_path / "examples").mkdir()
    for seed in range(2):
        photo(60, 50, seed).save(tmp_path / "examples" / f"{seed}.jpg")
    return tmp_path


def test_a_run_is_shipped(trained: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ship.main([str(trained), "--root", str(root), "--trained-on", "toys " * 40]) == 0
    made, spec = artifact.load_folder(trained), load_file(root / "registry.yaml")["corvi.lite"]
    file = root / "plugins" / "detector_zoo_corvi" / "weights" / "lite.safetensors"
    assert spec.source == "package:detector_zoo_corvi/weights/lite.safetensors"
    assert file.read_bytes() == (trained / artifact.WEIGHTS_FILE).read_bytes()
    assert spec.verified
    assert spec.trained_on == ("toys " * 40).strip()
    for field in ("sha256", "bytes", "config", "preprocessing", "calibration", "threshold", "licence", "summary"):
        assert getattr(spec, field) == getattr(made.spec, field)
    assert f"of {ship.LITE_BYTES:,} bytes" in capsys.readouterr().out
    assert small.build(spec.config).fc.in_features == 4
    assert 'default_tag="lite"' in (file.parents[1] / "__init__.py").read_text()
    # Twice is once.
    text = (root / "registry.yaml").read_text()
    ship.main([str(trained), "--root", str(root), "--trained-on", "toys " * 40])
    assert (root / "registry.yaml").read_text() == text


def test_nothing_else_in_the_catalogue_changes(trained: Path, root: Path) -> None:
    ship.main([str(trained), "--root", str(root)])
    text = (root / "registry.yaml").read_text()
    start, end = text.index("  corvi.lite:"), text.index("  corvi.other:")
    assert text[:start] + text[end:] == CATALOGUE
    block = ship.with_entry(text, "corvi.lite", "  corvi.lite:\n    source: null\n    why: another\n")
    assert block == CATALOGUE.replace(
        "  corvi.other:", "  corvi.lite:\n    source: null\n    why: another\n\n  corvi.other:"
    )
    # The last one, and one of a method that has none yet.
    last = ship.with_entry(CATALOGUE, "cnnspot.last", "  cnnspot.last:\n    source: null\n")
    assert last == CATALOGUE[: CATALOGUE.index("  cnnspot.last")] + "  cnnspot.last:\n    source: null\n"
    assert ship.with_entry(CATALOGUE, "new.x", "  new.x:\n") == CATALOGUE + "\n  new.x:\n"


def test_results_are_of_the_file_they_were_measured_with(trained: Path, root: Path) -> None:
    ship.main([str(trained), "--root", str(root)])
    catalogue = root / "registry.yaml"
    result = "    reproduced:\n      - {data: x, metric: AUROC, value: 0.5, interval: [0.4, 0.6], command: make y}\n"
    catalogue.write_text(catalogue.read_text().replace("\n\n  corvi.other", f"\n{result}\n  corvi.other"))
    (kept,) = load_file(catalogue)["corvi.lite"].reproduced
    assert kept.interval == (0.4, 0.6)
    ship.main([str(trained), "--root", str(root), "--summary", "new"])
    assert load_file(catalogue)["corvi.lite"].reproduced == (kept,)
    text = catalogue.read_text().replace(artifact.load_folder(trained).spec.sha256 or "", "0" * 64)
    catalogue.write_text(text)
    ship.main([str(trained), "--root", str(root)])
    assert load_file(catalogue)["corvi.lite"].reproduced == ()


def test_what_does_not_do_changes_nothing(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    weights = broken / artifact.WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert ship.main([str(broken), "--root", str(root)]) == 1
    assert "damaged, or another file" in capsys.readouterr().err
    # Two anchors of an entry that is replaced would be lost.
    lost = CATALOGUE.replace("corvi.other", "corvi.lite")
    (root / "registry.yaml").write_text(lost)
    assert ship.main([str(trained), "--root", str(root)]) == 1
    assert (root / "registry.yaml").read_text() == lost
    assert not (root / "plugins" / "detector_zoo_corvi" / "weights" / "lite.safetensors").exists()


def test_an_entry_reads_as_what_was_written(tmp_path: Path) -> None:
    spec = WeightSpec(
        name="x.y",
        summary="colons: and # hashes, 'quotes'",
        source="package:x/y.safetensors",
        sha256="1" * 64,
        bytes=3,
        backbone="backbone.z",
        config={"widths": [1, 2], "inner": {"a": None, "b": "no"}},
        preprocessing={"mean": [0.5, 1e-7]},
        threshold=-0.25,
        calibration=Calibration(scale=1.5, offset=-2e-6, fitted_on="a: b", inconclusive=0.5),
        verified=True,
        licence="Apache-2.0",
        trained_on="long, with – dashes: and more " * 9,
        reproduced=(Result(data="d", metric="AP", value=1.0, interval=(0.0, 1.0), count="1 real, 2 generated"),),
    )
    path = tmp_path / "r.yaml"
    path.write_text("schema_version: 1\nweights:\n" + ship.entry(spec))
    expected = replace(spec, origin=str(path), trained_on=spec.trained_on.strip())
    assert load_file(path)["x.y"] == expected
    assert max(map(len, ship.entry(spec).splitlines())) <= 200
    assert yaml.safe_load(path.read_text())["weights"]["x.y"]["sha256"] == "1" * 64


def test_a_plugin_without_a_default_is_refused(tmp_path: Path) -> None:
    module = tmp_path / "__init__.py"
    module.write_text("default_tag=None")
    with pytest.raises(WeightsError, match="expected one default_tag, found 0"):
        ship.make_default(module, "lite")


def test_weights_that_tell_nothing_are_refused(trained: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(weights: Weights) -> Corvi:
        tensors = {key: torch.zeros_like(value) for key, value in weights.tensors.items()}
        return Corvi.__dict__["from_weights"].__func__(Corvi, replace(weights, tensors=tensors))

    monkeypatch.setattr(Corvi, "from_weights", flat, raising=False)
    assert ship.main([str(trained), "--root", str(root)]) == 1
    assert (root / "registry.yaml").read_text() == CATALOGUE

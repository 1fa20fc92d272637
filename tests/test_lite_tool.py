"""tools/lite.py: what each method's lite weights are trained on, and whether new ones measure like the shipped."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from detector_zoo import registry
from detector_zoo.cli import main
from detector_zoo.errors import DatasetError
from detector_zoo.training import artifact, recipes
from training_toys import toy_set

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("lite_tool", ROOT / "tools" / "lite.py")
assert _spec is not None
assert _spec.loader is not None
lite: Any = importlib.util.module_from_spec(_spec)
sys.modules["lite_tool"] = lite  # dataclasses look their module up
_spec.loader.exec_module(lite)

PLUGINS = ROOT / "plugins"


def test_every_entry_is_of_a_recipe_and_changes_keys_that_it_has() -> None:
    text = lite.SETTINGS.read_text()
    for name in yaml.safe_load(text):
        method, _, recipe = name.partition(".")
        found = lite.setting(f"{method}.{recipe or 'lite'}", text)
        _, values = recipes.load(PLUGINS / f"detector_zoo_{method}" / "recipes", recipe or "lite")
        for change in found.set:
            keys = change.partition("=")[0].split(".")
            assert keys[0] in values, f"{name}: {change}"
        assert set(found.brought) <= set(registry.registry().specs)
    assert lite.setting("cnnspot.lite", text) == lite.Setting()


@pytest.mark.parametrize("entry", ["{data: [elsewhere]}", "{date: [pairs]}"])
def test_a_misspelt_entry_is_refused(entry: str) -> None:
    with pytest.raises(DatasetError, match=r"corvi.lite in lite.yaml: '(elsewhere|date)' is unknown"):
        lite.setting("corvi.lite", f"corvi: {entry}")


def test_the_commands_are_ones_that_zoo_has() -> None:
    chosen = lite.Setting(("pairs", "edits"), ("mix.pairs=0.5",), {"backbone.x": "x.safetensors"})
    places = {"data": Path("d"), "made": Path("m"), "out": Path("o/corvi.lite")}
    brought, train = lite.commands("corvi.lite", chosen, **places)
    assert brought == ["weights", "import", "backbone.x", "m/x.safetensors"]
    assert " ".join(train) == (
        "train corvi --recipe lite --out o/corvi.lite --data d --data m/recon-train --data m/edits-train "
        "--precision fp32 --set mix.pairs=0.5"
    )
    for command in (brought, train):
        assert CliRunner().invoke(main, [*command[:2], "--help"]).exit_code == 0
        options = CliRunner().invoke(main, [*command[:2], "--help"]).output
        assert all(part in options for part in command if part.startswith("--"))
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"$(OUT)/{folder}" in makefile for folder in lite.MADE.values())


def test_new_weights_are_compared_with_the_shipped_ones(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plugin of our own is trained on a small set for real, and measured on its other split."""
    torch.set_num_threads(1)
    data, made = tmp_path / "data", tmp_path / "made"
    rows = ["path,label,split,generator,kind,source,group"]
    for index, sample in enumerate(toy_set(data, 24).samples):
        split = "train" if index < 32 else "val"
        rows.append(f"{sample.path.name},{sample.label},{split},board,{sample.kind},camera,{sample.group}")
    (data / "manifest.csv").write_text("\n".join(rows) + "\n")
    changes = {
        "pretrained": "false",
        "mix": "{generated: 0.5}",
        "network": "{architecture: resnet_narrow, stem: 4, widths: [4], blocks: [1], strides: [2]}",
        "augmentation": "[random_crop: {size: 32}]",
        "sides": "[40, 48]",
        "slices": "{validation: 0.25, calibration: 0.25}",
        "schedule": "{steps: 2, every: 2}",
        "batch": "4",
        "dropout": "0",
    }
    settings = tmp_path / "lite.yaml"
    settings.write_text(
        yaml.safe_dump(
            {"corvi": {"set": ["network=null", "mix=null", *(f"{key}={value}" for key, value in changes.items())]}}
        )
    )
    monkeypatch.setattr(lite, "SETTINGS", settings)
    command = ["corvi", "--data", str(data), "--made", str(made), "--out", str(tmp_path / "runs")]
    monkeypatch.setattr(lite, "shipped", _shipped((0.0, 1.0)))
    assert lite.main(command) == 0
    first, auroc, *_, last = capsys.readouterr().out.splitlines()
    assert first == "corvi.lite on the val split, formats equalised"
    assert auroc.startswith(("  AUROC 0.", "  AUROC 1."))
    assert last.endswith("[0.000, 1.000]; the new weights are inside the interval")
    assert artifact.load_folder(tmp_path / "runs" / "corvi.lite").spec.config["widths"] == [4]
    record = json.loads((tmp_path / "runs" / "corvi.lite" / artifact.RECORD_FILE).read_text())
    assert record["data"]["asked_for"] == "data, split train"
    monkeypatch.setattr(lite, "shipped", _shipped((1.5, 2.0)))
    monkeypatch.setattr(lite, "commands", lambda *a, **k: [])  # it is trained
    assert lite.main(command) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("the new weights are OUTSIDE the interval")


def _shipped(interval: tuple[float, float]) -> Any:
    result = lite.Result(data="x", metric="AUROC", value=0.5, interval=interval)
    return lambda name: result


def test_a_figure_is_of_the_split_and_has_an_interval() -> None:
    assert lite.shipped("mdmf.lite").interval is not None
    with pytest.raises(DatasetError, match=r"mdmf.nothing: registry.yaml has no AUROC on the val split"):
        lite.shipped("mdmf.nothing")
    spec = registry.registry().specs["mdmf.lite"]
    others = tuple(r for r in spec.reproduced if r.data != lite.MEASURED)
    assert others
    known = {"mdmf.lite": replace(spec, reproduced=others)}
    patch = pytest.MonkeyPatch()
    patch.setattr(lite, "registry", lambda: registry.Registry(known))
    with patch.context(), pytest.raises(DatasetError):
        lite.shipped("mdmf.lite")
    patch.undo()

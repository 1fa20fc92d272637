"""The folder of weights: what was trained is what is loaded, and nothing else is."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from detector_zoo import plugins, registry
from detector_zoo.cli import main
from detector_zoo.detector import Trainable
from detector_zoo.errors import WeightsError
from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo
from detector_zoo.loading import import_target
from detector_zoo.training import artifact, calibration, recipes
from training_toys import RECIPE, Toy, ToySet, toy_set

from conftest import FakePlugins, photo

SHORT = {**RECIPE, "schedule": {"steps": 8, "every": 4}}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToySet:
    torch.set_num_threads(1)
    return toy_set(tmp_path_factory.mktemp("toys"), 30)


@pytest.fixture(scope="module")
def trained(toys: ToySet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Toy.fit(toys.job(tmp_path_factory.mktemp("run"), values=SHORT))


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained folder's files, to spoil."""
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def installed(fake_plugins: FakePlugins, tmp_path: Path) -> Iterator[Path]:
    """The toy as a plugin, with its recipes beside its module; yields their folder."""
    home = tmp_path / "plugin" / "zoo_toy_plugin"
    (home / "recipes").mkdir(parents=True)
    (home / "__init__.py").write_text("")
    (home / "model.py").write_text("from training_toys import Toy\n")
    (home / "recipes" / "paper.yaml").write_text(yaml.safe_dump(RECIPE))
    (home / "recipes" / "lite.yaml").write_text(yaml.safe_dump(SHORT))
    sys.path.insert(0, str(home.parent))

    @hookimpl
    def register_detectors(register: Any) -> None:
        for name, can in (("toy", {"train"}), ("rigid", set())):
            load = "zoo_toy_plugin.model:Toy"
            register(DetectorInfo(name=name, summary="a toy", load=load, capabilities=frozenset(can)))

    module = types.ModuleType("toy")
    module.register_detectors = register_detectors  # type: ignore[attr-defined]
    fake_plugins.add("toy", module)
    yield home / "recipes"
    sys.path.remove(str(home.parent))
    for name in [name for name in sys.modules if name.startswith("zoo_toy_plugin")]:
        del sys.modules[name]


def zoo(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def manifest(toys: ToySet, folder: Path) -> Path:
    """The toys as a folder with a manifest."""
    lines = ["path,label,split,generator,kind,source,group"]
    for sample in toys.samples:
        (folder / sample.path.name).write_bytes(sample.path.read_bytes())
        row = (sample.path.name, sample.label, "train", sample.generator, sample.kind, sample.source, sample.group)
        lines.append(",".join(row))
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def test_the_folder_holds_what_was_trained(trained: Path, toys: ToySet) -> None:
    found = artifact.load_folder(trained)
    spec = found.spec
    assert (spec.name, spec.config, spec.scheme) == ("toy.lite", {"width": 6}, "file")
    assert {v.dtype for v in found.tensors.values() if v.is_floating_point()} == {torch.float16}
    assert spec.calibration is not None
    assert "photographs that the network did not learn from" in spec.calibration.fitted_on
    record = json.loads((trained / "training.json").read_text())
    assert record["recipe"]["values"] == SHORT
    slices = record["data"]["slices"]
    assert sum(part["real"] + part["generated"] for part in slices.values()) == len(toys.samples)
    assert record["calibration"]["believable"][0] > 0
    assert spec.reproduced[0].metric == "AUROC"
    assert spec.reproduced[0].value == pytest.approx(record["metrics"]["all"]["AUROC"]["value"], abs=1e-4)


def test_the_validated_detector_is_the_loaded_one(trained: Path, toys: ToySet, installed: Path) -> None:
    from detector_zoo.training.course import Examined
    from detector_zoo.training.splits import cut, select

    part = cut(select(toys.samples), RECIPE["slices"])["validation"]
    loaded = artifact.load_detector(trained, device="cpu")
    raw = Examined(part, equalise=True, orientation="ignore").raw(loaded.detector)  # type: ignore[arg-type]
    from detector_zoo.evaluation.metrics import auroc

    record = json.loads((trained / "training.json").read_text())
    assert auroc([s.generated for s in part], raw) == pytest.approx(record["metrics"]["all"]["AUROC"]["value"])
    assert loaded.name == "toy.lite"
    assert loaded.weights_sha256 == loaded.spec.sha256  # type: ignore[union-attr]


def test_the_card_has_the_headings_that_every_card_has(trained: Path) -> None:
    card = (trained / "CARD.md").read_text()
    for heading in ("## Training data", "## Results", "## Limits and known shortcuts", "## Licence"):
        assert f"\n{heading}\n" in card
    assert "| camera 0 | 15 | 15 |" in card


def test_changed_weights_are_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="sha256"):
        artifact.load_folder(folder)
    path.write_bytes(content[:-3])
    with pytest.raises(WeightsError, match="truncated"):
        artifact.load_folder(folder)
    path.unlink()
    with pytest.raises(WeightsError, match=r"no weights\.safetensors"):
        artifact.load_folder(folder)


def test_no_path_leaves_the_folder(folder: Path, trained: Path) -> None:
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to(trained / "weights.safetensors")
    with pytest.raises(WeightsError, match="leads out of its folder"):
        artifact.load_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": None}, "expected a sha256"),
        ({"format": "pth"}, "expected a sha256 and the format safetensors"),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_a_spec_that_cannot_be_verified_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    path = folder / "weights.yaml"
    document = yaml.safe_load(path.read_text())
    document["weights"]["toy.lite"] |= change
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(WeightsError, match=message):
        artifact.load_folder(folder)
    document["weights"]["toy.other"] = document["weights"]["toy.lite"]
    document["weights"]["toy.lite"].pop("colour", None)
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(WeightsError, match="expected one set of weights, got 2"):
        artifact.load_folder(folder)


def test_weights_of_another_method_are_refused(trained: Path, installed: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds weights of toy, not of rigid"):
        artifact.load_detector(trained, method="rigid")


def test_half_keeps_what_float16_cannot_hold() -> None:
    given = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1e6]), "c": torch.tensor([3])}
    kept = artifact.half(given)
    assert [kept[key].dtype for key in "abc"] == [torch.float16, torch.float32, torch.int64]
    with pytest.raises(WeightsError, match="'a' is not finite"):
        artifact.half({"a": torch.tensor([float("nan")])})


def test_a_class_can_be_trained_without_weights(installed: Path) -> None:
    info = artifact.info_of("toy")
    assert isinstance(import_target(info), Trainable)
    assert recipes.folder_of(info) == installed


def test_train_then_calibrate_on_the_command_line(toys: ToySet, installed: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    command = ["train", "toy.mine", "--data", manifest(toys, data), "--recipe", "lite", "--out", run, "--device", "cpu"]
    done = zoo(*command, "--workers", 0, "--set", "batch=6")
    assert done.exit_code == 0, done.output
    assert "toy.mine: step" in done.stderr
    assert done.stdout.strip() == str(run)
    assert json.loads((run / "training.json").read_text())["recipe"]["values"]["batch"] == 6

    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(19):
        photo(40, 40, 100 + index).save(photos / f"{index}.png")
    (photos / "copy.png").write_bytes((photos / "0.png").read_bytes())
    file = tmp_path / "my.json"
    options = ["calibrate", "-d", "toy", "--weights", run, "--real", photos, "--device", "cpu", "-o", file]
    done = zoo(*options, "--fpr", 0.05)
    assert done.exit_code == 0, done.output
    loaded = artifact.load_detector(run, device="cpu")
    found = calibration.read(file, detector="toy.mine", weights_sha256=loaded.weights_sha256)
    assert found.n == 19
    scores = loaded.score([Image.open(path) for path in photos.glob("[0-9]*.png")])
    assert found.threshold == pytest.approx(float(np.max(scores)), abs=1e-4)
    told = calibration.applied(file, loaded).predict([photos / "0.png"])[0]
    assert told.threshold == found.threshold
    assert told.label == "real"
    score = ["score", "-d", "toy", "--weights", run, "--device", "cpu", "--format", "json", photos / "0.png"]
    done = zoo(*score, "--calibration", file)
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    assert (row["detector"], row["weights"], row["label"]) == ("toy", "mine", "real")
    assert row["threshold"] == found.threshold
    assert json.loads(zoo(*score).stdout)["threshold"] == loaded.threshold
    evaluated = ["eval", "-d", "toy", "--weights", run, "--data", data, "--device", "cpu", "--resamples", 100]
    done = zoo(*evaluated, "--predictions", tmp_path / "rows.jsonl", "--format", "json")
    assert done.exit_code == 0, done.output
    assert [one["weights_sha256"] for one in json.loads(done.stdout)["detectors"]] == [loaded.weights_sha256]
    for wrong, message in (
        (["score", "-d", "all", "--weights", run, photos], "are for one detector"),
        (["eval", "-d", "all", "--weights", run, "--data", data], "is for one detector"),
        (["score", "-d", "dummy", "-d", "toy", "--calibration", file, photos], "are for one detector"),
        ([*score, "--calibration", file, "--threshold", "0"], "leave --threshold out"),
    ):
        done = zoo(*wrong)
        assert done.exit_code == 2, done.output
        assert message in done.stderr
    done = zoo("score", "-d", "mdmf", "--weights", run, photos)
    assert done.exit_code == 1
    assert "holds weights of toy, not of mdmf" in done.stderr
    done = zoo("score", "-d", "dummy", "--calibration", file, photos)
    assert done.exit_code != 0
    done = zoo(*options, "--fpr", 0.01)
    assert done.exit_code == 1
    assert "it takes at least 99" in done.stderr


def test_what_is_wrong_on_the_command_line_is_one_line(toys: ToySet, installed: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = manifest(toys, tmp_path / "data")
    for arguments, status, message in (
        (["rigid"], 2, "rigid cannot be trained"),
        (["toi"], 2, "unknown detector 'toi'"),
        (["toy", "--recipe", "light"], 2, "did you mean lite?"),
        (["toy", "--set", "bach=3"], 2, "unknown key 'bach'"),
        (["toy", "--split", "test"], 1, "no image of split 'test'"),
    ):
        done = zoo("train", *arguments, "--data", data, "--out", tmp_path / "run")
        assert done.exit_code == status, done.output
        assert message in done.stderr
        assert "Traceback" not in done.output


def test_every_method_that_says_so_has_recipes_and_a_class_that_trains() -> None:
    plugins.catalogue.cache_clear()
    registry.registry.cache_clear()
    infos = [info for info in plugins.list_detectors() if "train" in info.capabilities]
    for info in infos:
        assert isinstance(import_target(info), Trainable)
        assert {"paper", "lite"} <= set(recipes.names(recipes.folder_of(info)))

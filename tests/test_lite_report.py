"""`make lite-report`: figures, the fusion's slice, pictures cut alike, and cards that say what the report says."""

from __future__ import annotations

import csv
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from detector_zoo import predictions, scoring, weight_specs
from detector_zoo.errors import DatasetError
from detector_zoo.evaluation import datasets, fusion
from detector_zoo.evaluation.equalise import equalise_file
from detector_zoo.evaluation.metrics import auroc
from detector_zoo.evaluation.perturbations import parse
from detector_zoo.evaluation.samples import Sample
from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo
from detector_zoo.training import recipes
from detector_zoo.training.artifact import load_detector
from training_toys import RECIPE, Toy, ToySet, toy_set

from conftest import FakePlugins, photo

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks.lite_report import cards, figures, pictures, slices  # noqa: E402
from benchmarks.lite_report.__main__ import keep_cards, main  # noqa: E402
from benchmarks.lite_report.measuring import BROUGHT  # noqa: E402

COLUMNS = ("path", "label", "split", "generator", "kind", "source", "group", "original", "mask")


def write_manifest(root: Path, rows: list[dict[str, str]]) -> Path:
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return root


def toys(root: Path, split: str, groups: int, start: int = 0) -> list[dict[str, str]]:
    """Smooth pictures from the ``start``-th on, and each again with a fine chequerboard, as rows of a manifest."""
    rows = []
    for sample in toy_set(root / split, groups).samples[2 * start :]:
        row = {"path": f"{split}/{sample.path.name}", "label": sample.label, "split": split, "kind": sample.kind}
        row |= {"generator": sample.generator, "source": sample.source, "group": sample.group}
        rows.append(row)
    return rows


@pytest.fixture
def toy(fake_plugins: FakePlugins) -> Iterator[None]:
    @hookimpl
    def register_detectors(register: Any) -> None:
        info = {"name": "toy", "summary": "a toy", "load": "training_toys:Toy"}
        register(DetectorInfo(**info, capabilities=frozenset({"train"})))

    module = types.ModuleType("toy")
    module.register_detectors = register_detectors  # type: ignore[attr-defined]
    fake_plugins.add("toy", module)
    torch.set_num_threads(1)
    return


@pytest.fixture
def sets(toy: None, tmp_path: Path) -> Path:
    """A set with both splits, local edits and splices of four photographs, and a run that learnt from the first."""
    data = tmp_path / "data"
    write_manifest(data, [*toys(data, "train", 24), *toys(data, "val", 32, 24)])
    edits = tmp_path / "edits"
    for kind in ("original", "mask", "edit-latent-exchange", "splice"):
        (edits / kind).mkdir(parents=True)
    rows = []
    for index in range(4):
        image, other = np.array(photo(120, 112, index)), np.array(photo(120, 112, 50 + index))
        mask = np.zeros((112, 120), bool)
        mask[30:80, 30:90] = True
        Image.fromarray(image).save(edits / "original" / f"{index}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(edits / "mask" / f"{index}.png")
        known = {"split": "val", "source": "camera", "group": f"edited {index}"}
        rows.append({"path": f"original/{index}.png", "label": "real", "kind": "photo", **known})
        for kind, label, inside in (("edit-latent-exchange", "generated", 255), ("splice", "real", other)):
            edited = np.where(mask[..., None], inside, image).astype(np.uint8)
            Image.fromarray(edited).save(edits / kind / f"{index}.png")
            made = {"original": f"original/{index}.png", "mask": f"mask/{index}.png", **known}
            rows.append({"path": f"{kind}/{index}.png", "label": label, "kind": kind, **made})
    write_manifest(edits, rows)
    samples = datasets.read(data, split="train")
    values = {**RECIPE, "schedule": {"steps": 8, "every": 4}}
    Toy.fit(ToySet(samples).job(tmp_path / "runs" / "toy", values=values, data="data, split train"))
    return tmp_path


def measured(sets: Path, *more: str) -> tuple[int, Path]:
    command = ["--data", sets / "data", "--edits", sets / "edits", "--train", sets / "data", "--runs", sets / "runs"]
    command += ["--detector", "toy", "--detector", "dummy", "--resamples", "60", "--out", sets / "out", *more]
    return main([str(word) for word in command]), sets / "out"


def test_the_report_says_what_the_detectors_say(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out = measured(sets)
    assert status == 0
    report = json.loads((out / "lite-report.json").read_text())
    assert str(sets) not in (out / "lite-report.json").read_text()
    by_name = {one["name"]: one for one in report["detectors"]}
    assert list(by_name) == ["toy.lite", "dummy", cards.FUSION]
    entry = by_name["toy.lite"]

    # Against the detector itself, picture by picture.
    detector = load_detector(sets / "runs" / "toy", device="cpu")
    samples = datasets.read(sets / "data", split="val")
    labels = [s.generated for s in samples]
    equalised = [equalise_file(s.path) for s in samples]
    plain = detector.score(equalised)
    assert entry["conditions"]["none"]["all"]["auroc"][0] == pytest.approx(auroc(labels, plain), abs=1e-4)
    for spec in ("jpeg:75", "blur:1"):
        (perturbation,) = parse([spec])
        after = detector.score([perturbation(i, s.sha256) for i, s in zip(equalised, samples, strict=True)])
        assert entry["conditions"][spec]["all"]["auroc"][0] == pytest.approx(auroc(labels, after), abs=1e-4)
    assert entry["conditions"]["none"]["board"]["generated"] == 8

    # What it learnt from is out of the fusion's slice, which the record and the rule give.
    record = json.loads((sets / "runs" / "toy" / "training.json").read_text())
    kept_out = [record["data"]["slices"][name] for name in ("validation", "calibration")]
    assert report["slice"]["sets"]["data"] == [sum(k[label] for k in kept_out) for label in ("real", "generated")]
    assert entry["training"]["slices"] == record["data"]["slices"]
    fitted = fusion.read(out / "lite-report.json")
    assert fitted.detectors == ("toy.lite", "dummy")
    assert fitted.weights_sha256[0] == detector.weights_sha256
    other = np.array([row.log_odds for row in predictions.read(out / "val-none.parquet") if row.detector == "dummy"])
    fused = fitted.log_odds(np.stack([plain, other], 1))
    assert by_name[cards.FUSION]["conditions"]["none"]["all"]["auroc"][0] == pytest.approx(
        auroc(labels, fused), abs=1e-3
    )

    # The dummy sees bright pixels: it finds white edits, and its map lies on them; splices are a control apart.
    found = by_name["dummy"]["edits"]
    assert set(found) == {"edit-latent-exchange", "local edits", "splice", "local edits against splices"}
    assert found["local edits"]["in_order"][0] == 1
    assert (found["splice"]["images"], found["splice"]["photographs"]) == (4, 4)
    maps = by_name["dummy"]["localization"]
    assert set(maps) == {"edit-latent-exchange", "local edits", "splice"}
    assert maps["local edits"]["energy"][0] > maps["local edits"]["area"][0] + 0.1
    assert maps["local edits"]["miou"][0] > maps["splice"]["miou"][0]
    assert "localization" not in entry

    # A second run scores nothing again and says the same.
    def refuse(*_: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(scoring._Pipeline, "decode", refuse)
    before = report
    assert measured(sets)[0] == 0
    again = json.loads((out / "lite-report.json").read_text())
    assert (out / "lite-report.md").read_text() == cards.page(again)
    before["git"] = again["git"]
    for one in [*before["detectors"], *again["detectors"]]:
        one.pop("images_per_second", None)
    assert again == before

    # What is to be pasted into the catalogue is what the catalogue takes.
    pasted = yaml.safe_load((out / "registry.yaml").read_text())
    spec = weight_specs.parse("toy.lite", {"source": "file:", "why": "w", **pasted["toy.lite"]}, out)
    assert spec.reproduced[0].metric == "AUROC"
    assert spec.reproduced[0].interval == tuple(round(x, 3) for x in entry["conditions"]["none"]["all"]["auroc"][1:])


def test_a_run_on_other_data_is_refused(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sets / "data" / "train" / "0_real.png").write_bytes((sets / "edits" / "splice" / "0.png").read_bytes())
    assert measured(sets)[0] == 1
    assert "are not the ones that it was trained on" in capsys.readouterr().err


def sample(name: str, **changes: Any) -> Sample:
    return replace(Sample(path=Path(name), label="real", sha256=f"{name:0<64}"), **changes)


def test_nothing_made_of_a_photograph_that_was_learnt_from_is_held_out(tmp_path: Path) -> None:
    main_set = [sample("a"), sample("b")]
    made = [sample("c", group=f"{'a':0<64}"), sample("d", group=f"{'b':0<64}", label="generated")]
    found = slices.held_out({"data": main_set, "made": made}, [{main_set[0].sha256}])
    assert {name: [s.path.name for s in v] for name, v in found.items()} == {"data": ["b"], "made": ["d"]}
    with pytest.raises(DatasetError, match=r"x\.lite: no training\.json tells"):
        slices.taught("x.lite", None, {})


def test_a_photographs_pictures_and_masks_are_cut_alike(tmp_path: Path) -> None:
    pixels = np.zeros((420, 440, 3), np.uint8)
    pixels[200:300, 150:330] = 255
    for name, array in (("one", pixels), ("mask", pixels)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    mask = tmp_path / "mask.png"
    both = [sample(n, path=tmp_path / "one.png", sha256=n * 64, group="g", mask=mask) for n in "ab"]
    first, second = pictures.aligned(both, tmp_path / "out")
    assert first.path.read_bytes() == second.path.read_bytes()
    with Image.open(first.path) as image, Image.open(first.mask or "") as area:
        assert image.size == area.size != (440, 420)
        differ = (np.asarray(image.convert("L")) > 127) != (np.asarray(area) > 127)
        assert 0 < np.mean(np.asarray(area) > 127) < 1
        assert differ.mean() < 0.01
    (elsewhere,) = pictures.aligned([replace(both[0], group="h", sha256="c" * 64)], tmp_path / "out")
    assert elsewhere.path.read_bytes() != first.path.read_bytes()


def test_sets_and_classes_count_alike() -> None:
    made = [sample(n, label="generated") for n in "cdef"]
    weight = figures.importance({"one": [sample("a"), sample("b"), made[0]], "two": [sample("g"), *made]})
    assert weight.tolist() == [0.5, 0.5, 1, 1, 0.25, 0.25, 0.25, 0.25]


REPORT: dict[str, Any] = {
    "resamples": 60,
    "data": {"split": "val"},
    "detectors": [
        {
            "name": "toy.lite",
            "errors": 0,
            "conditions": {"none": {"all": {"real": 2, "generated": 3, "few": True, "auroc": [0.75, 0.5, 0.875]}}},
            "fails": ["all"],
            "bytes": 1_500_000,
            "images_per_second": 12.3,
            "timed_on": "pictures",
            "training": {
                "seconds": 120,
                "machine": "cpu",
                "recipe": "lite",
                "data": "toys, split train",
                "data_sha256": "0" * 64,
                "slices": {"fit": {"real": 4, "generated": 5}},
                "steps": {"done": 40, "kept": 20},
            },
            "trained_on": "toys",
            "curve": {"loss": [[10, 0.7], [40, 0.25]], "auroc": [[s, 0.5 + s / 100] for s in range(5, 41, 5)]},
        }
    ],
    "fusion": None,
}


def test_a_card_that_differs_from_the_report_is_found_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card, other, file = tmp_path / "CARD.md", tmp_path / "OTHER.md", tmp_path / "lite-report.json"
    card.write_text("# Toy\n\n## Results\nThe authors'.\n\n## Licence\nFree.\n")
    other.write_text(f"# Other\n\n## Results\n{cards.START}\nold\n{cards.END}\nOurs.\n")
    monkeypatch.setattr(cards, "cards", lambda: {"toy": card, "other": other})
    file.write_text(json.dumps(REPORT))
    assert keep_cards(file, check=True) == 1
    assert "CARD.md differs from lite-report.json" in capsys.readouterr().err
    assert keep_cards(file, check=False) == 0
    assert keep_cards(file, check=True) == 0
    assert "| equalised | 0.750 [0.500, 0.875] | - | - | - |" in card.read_text()
    assert "1.50 MB; 12.3 images a second" in card.read_text()
    assert "collections) 0.550 after 5 steps, 0.650 after 15 steps, 0.700 after 20 steps" in card.read_text()
    assert "0.900 after 40 steps; the loss on what is learnt went from 0.7 to 0.25." in card.read_text()
    picture = (tmp_path / cards.CURVES).read_text()
    assert picture.startswith("<?xml")
    assert "Date" not in picture
    assert cards.CURVES in (tmp_path / "lite-report.md").read_text()
    assert card.read_text().startswith("# Toy\n\n## Results\n")
    assert card.read_text().endswith("## Licence\nFree.\n")
    assert other.read_text() == "# Other\n\n## Results\n\nOurs.\n"
    card.write_text(card.read_text().replace("0.750", "0.950"))
    assert keep_cards(file, check=True) == 1


def test_the_cards_say_what_the_committed_report_says() -> None:
    path = ROOT / "docs" / "lite-report.json"
    report = json.loads(path.read_text()) if path.exists() else None
    wanted = cards.written(report, cards.cards())
    assert len(wanted) >= 7
    if report is not None:
        wanted[path.with_suffix(".md")] = cards.page(report)
    assert [card for card, text in wanted.items() if card.read_text("utf-8") != text] == []


def test_the_recipes_are_those_that_the_measured_weights_came_of() -> None:
    """So that `make lite` trains what is shipped, and not what was tried after it."""
    report = json.loads((ROOT / "docs" / "lite-report.json").read_text())
    told = {one["name"]: one["training"] for one in report["detectors"] if one.get("training")}
    assert len(told) == 7
    for name, training in told.items():
        folder = ROOT / "plugins" / f"detector_zoo_{name.partition('.')[0]}" / "recipes"
        _, values = recipes.load(folder, training["recipe"])
        assert {key: value for key, value in values.items() if key not in BROUGHT} == training["recipe_values"], name

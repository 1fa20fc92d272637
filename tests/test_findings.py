"""The tests of the papers' claims: arms that are equal, images that no network learnt from, a page that is current."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detector_zoo.evaluation.bootstrap import Resampling
from detector_zoo.evaluation.intervals import Metric
from detector_zoo.evaluation.samples import Sample
from detector_zoo.preprocessing import Preprocessing
from detector_zoo.training import recipes
from detector_zoo.training.artifact import info_of
from detector_zoo.training.augment import Augmentation
from detector_zoo_patch_shuffle.model import PatchShuffle
from detector_zoo_patch_shuffle.network import PatchNetwork

from conftest import photo

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("path", "label", "split", "generator", "kind", "source", "group", "original", "mask")


def module(name: str) -> ModuleType:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"benchmarks.findings.{name}")


bench, figures, render, command = (module(name) for name in ("bench", "figures", "render", "__main__"))


def written(folder: Path, split: str, photographs: int, kinds: tuple[str, ...], side: int = 112) -> Path:
    """A set of photographs, ``group`` 16 zeros and a number, each with what was made of it."""
    folder.mkdir(parents=True)
    mask = np.zeros((side, side), np.uint8)
    mask[20:80, 20:80] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    rows = []
    for index in range(photographs):
        real = photo(side, side, index)
        group = f"{index:016x}" + "0" * 48
        real.save(folder / f"{index}.png")
        known = {"split": split, "source": "camera", "group": group}
        rows.append({**known, "path": f"{index}.png", "label": "real", "kind": "photo"})
        for number, kind in enumerate(kinds):
            noise = np.random.default_rng((index, number)).integers(-20, 20, (side, side, 3))
            pixels = np.clip(np.asarray(real, np.int16) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}-{kind}.png")
            masked = {"mask": "mask.png"} if kind.startswith("edit") else {}
            made = {"label": "generated", "kind": kind, "generator": "g", "original": f"{index}.png", **masked}
            rows.append({**known, **made, "path": f"{index}-{kind}.png"})
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp("made")
    kinds = ("edit-latent", "edit-latent-exchange", "edit-upscale", "edit-upscale-exchange")
    written(made / "recon-train", "train", 60, ("recon",))
    for split in ("train", "val"):
        written(made / f"edits-{split}", split, 30 if split == "train" else 14, kinds)
    written(made / "recon-val", "val", 10, ("recon",))
    written(made / "data", "val", 10, ("t2i",))
    with (made / "contents.csv").open("w") as stream:
        stream.write("sha256,content\n")
        stream.writelines(f"{index:016x},{('thing', 'place')[index % 2]}\n" for index in range(60))
    return made


@pytest.fixture
def kept(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(bench, "CONTENTS", sets / "contents.csv")
    return bench.Bench(data=sets / "data", made=sets, out=tmp_path, resamples=50, limit=None, say=lambda _: None)


def faked(monkeypatch: pytest.MonkeyPatch, score: Any) -> list[tuple[str, dict[str, Any], list[Sample]]]:
    """Trainings that are only noted, and scores by ``score(training's name, sample)``."""
    trained: list[tuple[str, dict[str, Any], list[Sample]]] = []
    samples: dict[str, Sample] = {}
    before = bench.Bench.samples

    def read(self: Any, name: str, split: str) -> list[Sample]:
        found: list[Sample] = before(self, name, split)
        samples.update({s.sha256: s for s in found})
        return found

    def train(self: Any, name: str, method: str, own: list[Sample], recipe: Any, **_: Any) -> str:
        trained.append((name, recipe, list(own)))
        return name

    def scores(self: Any, detector: str, how: str, items: list[tuple[str, Any]]) -> Any:
        return np.array([score(detector, how, samples[key]) for key, _ in items], np.float64)

    monkeypatch.setattr(bench.Bench, "samples", read)
    monkeypatch.setattr(bench.Bench, "train", train)
    monkeypatch.setattr(bench.Bench, "scores", scores)
    return trained


def test_page_is_what_the_record_says() -> None:
    record = json.loads((ROOT / "docs" / "findings.json").read_text("utf-8"))
    assert render.page(record) == (ROOT / "docs" / "findings.md").read_text("utf-8"), (
        "python -m benchmarks.findings --page"
    )
    for claim in record["claims"].values():
        for tested in claim["tests"]:
            assert tested["verdict"] == figures.verdict(Metric(*tested["difference"]))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 0.2, "holds"), (-0.2, -0.01, "reversed"), (-0.1, 0.1, "not shown"), (0.0, 0.1, "not shown")],
)
def test_verdict(low: float, high: float, expected: str) -> None:
    assert figures.verdict(Metric((low + high) / 2, low, high)) == expected


def test_undefined_difference_is_not_shown() -> None:
    assert figures.verdict(Metric(float("nan"), float("nan"), float("nan"))) == "not shown"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=12))
def test_no_threshold_is_better(drawn: list[tuple[bool, int]]) -> None:
    labels, scores = (np.array(column) for column in zip(*drawn, strict=True))
    if labels.all() or not labels.any():
        return
    scores = scores.astype(float)

    def balanced(cut: float) -> float:
        return float(((scores > cut)[labels].mean() + (scores <= cut)[~labels].mean()) / 2)

    chosen = figures.best_threshold(labels, scores)
    assert balanced(chosen) == pytest.approx(max(balanced(cut) for cut in np.arange(-4, 4, 0.5)))
    assert chosen not in scores
    once = figures.accuracy(labels, scores, chosen, np.ones(len(labels), bool)).of(np.ones((1, len(labels))))
    assert once[0] == pytest.approx(balanced(chosen))


def test_figures_average_seeds_and_leave_out_what_has_no_score() -> None:
    labels = np.array([False, False, True, True])
    right, wrong = np.array([0.0, 1, 2, 3]), np.array([3.0, 2, np.nan, 0])
    once = np.ones((1, 4))
    assert figures.over(labels, [right]).of(once)[0] == 1
    assert figures.over(labels, [right, wrong]).of(once)[0] == 0.5
    assert figures.over(labels, [wrong], labels | np.array([True, False, False, False])).of(once)[0] == 0
    gap = figures.over(labels, [right]) - figures.over(labels, [wrong])
    assert Resampling(labels, resamples=50).intervals(gap)[0].value == 1


def test_aligned_cuts_all_of_a_photograph_alike(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        photo(400, 420, 1).save(path)
    one, same, other = (
        np.asarray(bench.aligned(Sample(path=path, label="real", group=group))())
        for path, group in ((paths[0], "x"), (paths[1], "x"), (paths[0], "y"))
    )
    assert np.array_equal(one, same)
    assert one.shape != other.shape or not np.array_equal(one, other)


def test_contents_are_told_once_and_by_known_words() -> None:
    with bench.CONTENTS.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert max(Counter(row["sha256"] for row in rows).values()) == 1
    assert all(len(row["sha256"]) == 16 and int(row["sha256"], 16) >= 0 for row in rows)
    assert {row["content"] for row in rows} == {"people", "place", "thing", "none"}


def test_unshuffled_network_keeps_its_patches_in_their_slots() -> None:
    scenes = module("b_scenes")
    torch.manual_seed(0)
    network = PatchNetwork(patch=32, depth=1, width=4, slots=9).eval()
    network.classifier.weight.data *= 100
    detector = PatchShuffle(network, Preprocessing.of("toy", scenes.RECIPE["preprocessing"]))
    batch = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    turned = torch.cat([batch[..., 32:], batch[..., :32]], -1)
    loaded = scenes.LoadedDetector(info=info_of("patch_shuffle"), spec=None, detector=detector)
    rows = scenes.row_by_row(loaded).detector
    with torch.no_grad():
        assert torch.allclose(detector.logits(batch), detector.logits(turned), atol=1e-5)
        assert not torch.allclose(rows.logits(batch), rows.logits(turned), atol=1e-2)
        assert torch.allclose(rows.logits(batch), network(batch.float() / 255), atol=1e-5)


def test_claim_goes_on_where_it_was(
    kept: Any, sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module("b_scenes").RECIPE, "batch", 4)
    monkeypatch.setitem(module("b_scenes").RECIPE, "slices", {"validation": 0.25, "calibration": 0.25})
    words = ["--data", str(sets / "data"), "--made", str(sets), "--out", str(tmp_path / "out"), "--claim", "b"]
    words += ["--docs", str(tmp_path / "docs"), "--steps", "1", "--resamples", "50"]
    assert command.main(words) == 0
    first = capsys.readouterr().out
    assert first.count("training b-") == 4
    record = (tmp_path / "docs" / "findings.json").read_text()
    assert command.main(words) == 0
    assert "training" not in capsys.readouterr().out
    assert (tmp_path / "docs" / "findings.json").read_text() == record
    found = json.loads(record)["claims"]["b"]
    assert [run["steps"] for run in found["trainings"]] == [1] * 4
    assert command.main([*words, "--check"]) == 0
    (tmp_path / "docs" / "findings.md").write_text("0.99")
    assert command.main([*words, "--check"]) == 1
    assert command.main([*words, "--page"]) == command.main([*words, "--check"]) == 0


def test_data_that_are_not_there_fail_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--made", str(tmp_path), "--out", str(tmp_path), "--docs", str(tmp_path / "docs"), "--claim", "d"]
    assert command.main(words) == 1
    assert capsys.readouterr().err.startswith("(d): ")
    assert not (tmp_path / "docs").exists()


def test_scenes_are_tested_on_what_was_not_learnt(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = module("b_scenes")
    monkeypatch.setattr(scenes, "row_by_row", lambda name: name)
    seen: dict[str, set[str]] = {}

    def score(name: str, how: str, sample: Sample) -> float:
        seen.setdefault(name, set()).add(sample.group)
        place = int(sample.group[:16], 16) % 2 == 1
        known = place == ("place" in name) or "unshuffled" not in name
        return float(sample.generated) if known else 0.0

    trained = faked(monkeypatch, score)
    found = scenes.run(kept)
    assert [name for name, *_ in trained] == [
        f"b-{kind}-{arm}" for kind in ("thing", "place") for arm in ("shuffled", "unshuffled")
    ]
    for name, recipe, own in trained:
        assert not {s.group for s in own} & seen[name]
        assert {int(s.group[:16], 16) % 2 for s in own} == {int("place" in name)}
        assert recipe["shuffle"] == ("unshuffled" not in name)
    one, other = ({s.sha256 for s in own} for _, _, own in trained[:2])
    assert one == other
    assert [tested["difference"][0] for tested in found["tests"]] == [0.5, 0.5]
    assert {tested["verdict"] for tested in found["tests"]} == {"holds"}


def test_transfer_compares_equal_arms(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = module("d_transfer")

    def score(name: str, how: str, sample: Sample) -> float:
        blind = name == "d-inpainted" and sample.kind.endswith("-exchange")
        return float(sample.generated and not blind)

    def located(_: Any, name: str, samples: list[Sample]) -> dict[str, Any]:
        value = 0.9 if name == "d-exchanged" else 0.5
        return {key: np.full(len(samples), value) for key in ("auroc", "iou", "energy", "area")}

    trained = faked(monkeypatch, score)
    monkeypatch.setattr(transfer, "_localized", located)
    found = transfer.run(kept)
    (_, one, own), (_, other, same) = trained
    assert own == same
    assert not any(s.kind == "splice" for s in own)
    kinds = {s.kind for s in own if s.generated}
    drawn = [kinds - set(recipe["mix"]["kinds"]) for recipe in (one, other)]
    assert drawn == [{"edit-latent", "edit-upscale"}, {"edit-latent-exchange", "edit-upscale-exchange"}]
    assert {**one, "mix": None} == {**other, "mix": None}
    detection = {tuple(row[:2]): row[2:] for row in found["tables"][0]["rows"]}
    assert detection["inpainted", "exchanged"][0][0] == 0.5
    assert detection["inpainted", "inpainted"][1][0] == detection["exchanged", "inpainted"][1][0] == 1
    assert {tested["verdict"] for tested in found["tests"]} == {"holds"}
    fitted = found["counts"]["thresholds fitted on"]
    assert fitted["inpainted"] == fitted["exchanged"] == 2 * fitted["real"] > 0


def test_maps_are_compared_with_masks_once(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = module("d_transfer")
    monkeypatch.setattr(transfer, "MAPPED", 2)
    asked = []

    class Mapper:
        name, weights_sha256 = "mapper", "0" * 64

        def map_of(self, image: Image.Image) -> Any:
            asked.append(image.size)
            heat = np.zeros((image.height, image.width), np.float32)
            heat[20:80, 20:80] = 1
            return heat

    samples = kept.samples("edits", "val")
    found = transfer._localized(kept, Mapper(), samples)
    mapped = np.array([s.generated and s in bench.first(samples, 2) for s in samples])
    assert mapped.sum() == 8
    for name, value in (("auroc", 1), ("iou", 1), ("energy", 1)):
        assert np.array_equal(np.isfinite(found[name]), mapped)
        assert (found[name][mapped] == value).all()
    assert len(asked) == 8
    transfer._localized(kept, Mapper(), samples)
    assert len(asked) == 8


@pytest.mark.parametrize(
    ("claim", "recipe"),
    [
        ("b_scenes", "detector_zoo_patch_shuffle.training:Recipe"),
        ("d_transfer", "detector_zoo_inpx.training:Recipe"),
        ("e_codec", "detector_zoo.training.positions:PositionRecipe"),
    ],
)
def test_recipes_can_be_read(claim: str, recipe: str) -> None:
    place, _, name = recipe.partition(":")
    own = {**module(claim).RECIPE, "schedule": {"steps": 1}}
    built = recipes.build(getattr(importlib.import_module(place), name), own, claim)
    assert built.batch == own["batch"]
    assert Augmentation.of(built.augmentation)


def test_codec_share(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = module("e_codec")

    def score(name: str, how: str, sample: Sample) -> float:
        number = int(sample.group[:16], 16)
        if name == "e-as-stored" and how == "whole":
            return float(sample.generated) if number % 2 else 0.5
        return float(sample.generated)

    faked(monkeypatch, score)
    monkeypatch.setattr(
        bench.Bench, "samples", lambda self, name, split, read=bench.Bench.samples: read(self, name, "val")
    )
    found = codec.run(kept)
    rows = {row[0]: row[1:] for row in found["tables"][0]["rows"]}
    assert rows["equalised"][2][0] == 0
    assert rows["as stored"][0][0] == 1
    lost = rows["as stored"][2][0]
    assert found["tables"][1]["rows"][0][1][0] == pytest.approx(2 * lost, abs=1e-3)
    assert found["tests"][0]["difference"][0] == lost > 0


def test_inversion_turns_a_head_that_follows_content(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inversion = module("c_inversion")
    for name, value in (("STEPS", 15), ("SEEDS", (0,)), ("BANK", 32)):
        monkeypatch.setattr(inversion, name, value)

    def tokens(_: Any, __: Any, samples: list[Sample], *___: Any) -> list[torch.Tensor]:
        shown = torch.tensor([float(c == "thing") for c in bench.content_of(samples)])
        rng = torch.Generator().manual_seed(0)
        return [6 * s + torch.randn(9, 5, generator=rng) for s in shown]

    monkeypatch.setattr(inversion, "_tokens", tokens)
    monkeypatch.setattr(inversion, "_people", inversion._scenes)
    monkeypatch.setattr(
        bench.Bench, "load", lambda *_: module("b_scenes").LoadedDetector(info_of("patch_shuffle"), None, object())
    )
    found = inversion.run(kept)
    rows = {row[2]: row[3:] for row in found["tables"][0]["rows"]}
    assert rows["global"][0][0] > 0.9
    assert rows["global"][1][0] < 0.1
    verdicts = [tested["verdict"] for tested in found["tests"] if "0.5" in tested["what"]]
    assert verdicts
    assert set(verdicts) <= {"reversed", "not shown"}


def test_stay_positive_is_compared_by_the_share_that_is_generated(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stay = module("a_stay_positive")
    faked(monkeypatch, lambda name, how, sample: float(sample.generated and name.name == "stay_positive.x"))

    class Named:
        weights_sha256 = "0" * 64

        def __init__(self, name: str) -> None:
            self.name = name

    monkeypatch.setattr(bench.Bench, "load", lambda self, place: Named(f"{place.partition('.')[0]}.x"))
    found = stay.run(kept)
    share = 60 * 60 / 112**2
    partly = found["tables"][1]["rows"]
    assert 0.15 < share < 0.3
    assert [row[0] for row in partly] == [
        "15% to 30% generated",
        "edit-latent-exchange",
        "edit-upscale-exchange",
        "all",
    ]
    assert partly[0][1] == partly[-1][1] == 28
    assert [tested["verdict"] for tested in found["tests"]] == ["holds"] * 8

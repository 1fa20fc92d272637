"""How MDMF learns: `zoo train mdmf` from images to a detector, with networks small enough for a test."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny_clip
from detector_zoo.cli import main
from detector_zoo.errors import DatasetError, WeightsError
from detector_zoo.evaluation.metrics import auroc
from detector_zoo.evaluation.samples import Sample
from detector_zoo.registry import registry
from detector_zoo.training import artifact, pretrained, recipes, splits
from detector_zoo.training.augment import Augmentation, Picture
from detector_zoo.training.course import Examined
from detector_zoo.training.recipes import RecipeError, build
from detector_zoo.weights_import import import_file
from detector_zoo_mdmf import pairs, report, views
from detector_zoo_mdmf.embedder import ConvEmbedder, VitEmbedder
from detector_zoo_mdmf.recipe import Recipe
from detector_zoo_mdmf.signatures import Draws, banked, candidates
from detector_zoo_mdmf.training import fit
from training_toys import ToySet, toy_set

from conftest import photo

FOLDER = Path(views.__file__).parent / "recipes"
NORMAL: dict[str, Any] = {"exif_orientation": "ignore", "mean": [0.5] * 3, "std": [0.25] * 3}
SHORT: dict[str, Any] = {
    "network": {
        "embedder": {"kind": "distilled", "stages": 3, "outputs": 8},
        "head": {"hidden": [8], "dim": 4, "bank": 24},
    },
    "preprocessing": NORMAL | {"tile": 48, "grid": 2},
    "teacher_model": tiny_clip.NAME,
    "block": 2,
    "ridge": 10,
    "versions": 1,
    "launder": 48,
    "batch": 8,
    "tokens": 4,
    "kept_out": "slices",
    "slices": {"validation": 0.25, "calibration": 0.25},
    "optimiser": {"name": "adamw", "lr": 0.01, "clip": 1.0},
    "schedule": {"steps": 6, "every": 2, "rate": "cosine"},
}

TUNING: dict[str, Any] = {
    "batch": 4,
    "optimiser": {"name": "adamw", "lr": 0.01, "clip": 1.0},
    "schedule": {"steps": 4, "every": 2, "rate": "cosine", "monitor": "loss"},
}


def zoo(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> ToySet:
    torch.set_num_threads(1)
    return toy_set(tmp_path_factory.mktemp("toys"), 16)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    tiny_clip.register(folder / "configs")
    save_file(tiny_clip.published(tiny_clip.theirs()), folder / "clip.safetensors")
    return folder / "clip.safetensors"


@pytest.fixture(autouse=True)
def trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded numbers in the place of ImageNet's, more layers than any recipe asks for."""
    state = tiny_clip.seeded(ConvEmbedder(4))
    monkeypatch.setattr(pretrained, "efficientnet_lite0", lambda: state)


@pytest.fixture
def job(toys: ToySet, teacher: Path, tmp_path: Path) -> Callable[..., Any]:
    def make(out: str = "run", **changes: Any) -> Any:
        made = toys.job(tmp_path / out, "mdmf")
        return replace(made, values=recipes.merge({**SHORT, "teacher": str(teacher)}, changes))

    return make


def of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = of(one), of(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ["lite", "paper", "tuned"])
def test_recipes_can_be_read(name: str) -> None:
    _, values = recipes.load(FOLDER, name)
    recipe = build(Recipe, values, name)
    assert recipe.summary
    assert recipe.equalise
    if recipe.launder is None:
        image = Augmentation.of(recipe.augmentation)(Picture(photo(460, 470)), (0,)).image
        assert image.size == (recipe.preprocessing["tile"],) * 2


def test_lite_is_the_recipe_of_the_shipped_weights() -> None:
    spec = registry().specs["mdmf.lite"]
    recipe = build(Recipe, recipes.load(FOLDER, "lite")[1], "lite")
    assert recipe.network == spec.config
    assert recipe.preprocessing == spec.preprocessing
    paper, large = recipes.load(FOLDER, "paper")[1], registry().specs["mdmf.dinov2_l14"]
    assert (paper["network"], paper["preprocessing"]) == (large.config, large.preprocessing)
    assert paper["backbone"] == large.backbone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": None}, "a distilled embedder has a teacher"),
        ({"backbone": "backbone.x"}, "a distilled embedder has a teacher"),
        ({"kept": 4}, "learns from whole tiles"),
        ({"trunk": TUNING | {"batch": 0}}, "batch is at least 1"),
        ({"trunk": TUNING | {"schedule": {"steps": 3, "monitor": "auroc"}}}, "monitor is loss"),
        (
            {"trunk": TUNING, "teacher": None, "network": {"embedder": {"kind": "conv"}}},
            "only a distilled embedder has a trunk to tune",
        ),
        ({"augmentation": [{"flip": {}}]}, "launder stands in the place"),
        ({"mix": {"pairs": 0.5}}, "knows no pairs"),
        ({"batch": 7}, "as many real as generated"),
        ({"schedule": {"average": 0.9}}, "the last step is kept"),
        ({"network": {"more": 1}}, "network is embedder and head"),
        ({"bank_rule": "herd"}, "expected one of random, kmeans, herding"),
        ({"network": {"embedder": {"stagez": 3}}}, "network or preprocessing: .*'stagez'"),
        ({"preprocessing": {"tiles": 3}}, "network or preprocessing: .*'tiles'"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(job: Callable[..., Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        fit(job(**change))


def test_from_a_manifest_to_scores_on_the_command_line(toys: ToySet, teacher: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    lines = ["path,label,split,kind,source,group"]
    for s in toys.samples:
        (data / s.path.name).write_bytes(s.path.read_bytes())
        lines.append(f"{s.path.name},{s.label},train,{s.kind},{s.source},{s.group}")
    (data / "manifest.csv").write_text("\n".join(lines) + "\n")
    config = tmp_path / "short.yaml"
    config.write_text(yaml.safe_dump({"base": "lite", **SHORT}))
    command = ["train", "mdmf.mine", "--data", data, "--config", config, "--set", f"teacher={teacher}", "--out", run]
    done = zoo(*command, "--device", "cpu", "--set", "reference=true")
    assert done.exit_code == 0, done.output
    assert "mdmf.mine: step 6 of 6 kept, AUROC on the validation slice" in done.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_auroc" in row] == [2, 4, 6]
    assert all(np.isfinite([row["val_loss"], row["val_accuracy"]]).all() for row in rows if "val_auroc" in row)
    assert (run / "curve.png").is_file()
    card = (run / "CARD.md").read_text()
    assert "of the variance of the teacher's tokens" in card
    assert "Signatures of the teacher's own tokens, learnt alike, have AUROC" in card
    assert "by source of the generated images: camera 0" in card
    scored = zoo("score", "-d", "mdmf", "--weights", run, "--device", "cpu", "--format", "json", data / "0_real.png")
    assert scored.exit_code == 0, scored.output
    row = json.loads(scored.stdout)
    assert (row["weights"], row["error"]) == ("mine", "")
    assert np.isfinite(row["log_odds"])


def test_the_measured_detector_is_the_loaded_one_and_it_has_learnt(job: Callable[..., Any], toys: ToySet) -> None:
    made = job(schedule={"steps": 60, "every": 60}, batch=32)
    fit(made)
    part = splits.cut(made.samples, SHORT["slices"])["validation"]
    loaded = artifact.load_detector(made.out, device="cpu")
    raw = Examined(part, equalise=True, orientation="ignore").raw(loaded.detector)  # type: ignore[arg-type]
    record = json.loads((made.out / "training.json").read_text())
    found = auroc([s.generated for s in part], raw)
    assert found == pytest.approx(record["metrics"]["all"]["AUROC"]["value"])
    assert found > 0.6  # of a dozen pictures: 0.5 would be chance
    single = {key for key, value in of(made.out).items() if value.dtype == torch.float32}
    assert {"head.log_bandwidth", "head.bank_term", "embedder.mean", "embedder.std"} < single
    assert "head.bank" not in single


@pytest.mark.parametrize("change", [{"bank_rule": "random"}, {"bank_rule": "herding"}, {"trunk": TUNING}])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    job: Callable[..., Any], change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = job("whole", **change), job("broken", **change)
    fit(whole)
    fit(replace(broken, limit_minutes=1e-9))
    record = json.loads((broken.out / "training.json").read_text())
    assert record["steps"] == {"done": 1, "kept": 1}
    assert "minutes are over" in record["ended"]
    assert not same(whole.out, broken.out)

    def never(*_: object) -> dict[str, Tensor]:
        raise AssertionError("features are computed once")

    monkeypatch.setattr(views, "_made", never)
    fit(broken)
    assert same(whole.out, broken.out)
    # And once more, with nothing left to do.
    fit(whole)
    assert same(whole.out, broken.out)


def test_a_tuned_trunk_tells_more_of_the_teacher_and_is_what_is_shipped(job: Callable[..., Any]) -> None:
    frozen = job("frozen", versions=2)
    slower = recipes.merge(TUNING, {"schedule": {"steps": 80}, "optimiser": {"lr": 1e-3}})
    tuned = job("tuned", versions=2, trunk=slower)
    fit(frozen)
    fit(tuned)
    start = pretrained.efficientnet_lite0()
    for run, kept in ((frozen, True), (tuned, False)):
        tensors = {k.removeprefix("embedder.trunk."): v for k, v in of(run.out).items() if ".trunk." in k}
        same_as_before = [torch.equal(v, start[k].half()) for k, v in tensors.items() if v.dim() == 4]
        assert same_as_before
        assert all(same_as_before) if kept else not any(same_as_before)

    def told(run: Any) -> float:
        found = re.search(r"map explains ([0-9.]+) of the variance", (run.out / "CARD.md").read_text())
        assert found
        return float(found[1])

    assert told(tuned) > told(frozen) + 0.02
    rows = [json.loads(line) for line in (tuned.out / "trunk" / "metrics.jsonl").read_text().splitlines()]
    left = [row["val_loss"] for row in rows if "val_loss" in row]
    assert f"{1 - left[-1]:.3f} of the (weighted) variance" in (tuned.out / "CARD.md").read_text()


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_tokens_without_a_teacher(job: Callable[..., Any], own_home: Path, tmp_path: Path, kind: str) -> None:
    embedder: dict[str, Any] = {"kind": "conv", "stages": 3, "patch": 16}
    changes: dict[str, Any] = {"teacher": None, "launder": None, "kept": 5, "augmentation": [{"flip": {"p": 0.5}}]}
    if kind == "vit":
        embedder = {"kind": "vit", "name": "test_vit", "img_size": 48}
        (own_home / "registry.yaml").write_text(
            json.dumps({"schema_version": 1, "weights": {"backbone.tiny": {"source": "file:", "why": "a test"}}})
        )
        registry.cache_clear()
        save_file(tiny_clip.seeded(VitEmbedder("test_vit", img_size=48).vit), tmp_path / "vit.safetensors")
        import_file("backbone.tiny", tmp_path / "vit.safetensors")
        changes["backbone"] = "backbone.tiny"
    made = job(**changes)
    network = {"embedder": embedder, "head": SHORT["network"]["head"]}
    made = replace(made, values={**made.values, "network": network})
    fit(made)
    tensors = of(made.out)
    assert bool([key for key in tensors if key.startswith("embedder.")]) is (kind == "conv")
    cached = [load_file(path) for path in (made.out / "features").iterdir()]
    assert {value.shape[1:] for part in cached for value in part.values()} == {(1, 5)}
    detector = artifact.load_detector(made.out, device="cpu")
    assert detector.spec is not None
    assert detector.spec.backbone == changes.get("backbone")
    assert np.isfinite(detector.score([photo(72, 64)])).all()


def test_what_is_kept_out_stays_together() -> None:
    recipe = build(Recipe, {**SHORT, "teacher": "x", "kept_out": "seventh"}, "r")
    photos = [f"{n:08x}".ljust(64, "a") for n in range(28)]
    samples = [Sample(path=Path("x"), label="real", sha256=sha) for sha in photos]
    made = [
        Sample(path=Path("y"), label="generated", kind="recon", sha256=sha[:8] + "b" * 56, group=sha) for sha in photos
    ]
    slices = recipe.cut([*samples, *made])
    assert slices["calibration"] is slices["validation"]
    assert sorted({s.group or s.sha256 for s in slices["validation"]}) == photos[::7]
    assert len(slices["validation"]) == 8
    # Another set beside it, made from the same photographs, moves none of them.
    more = [replace(s, sha256="0" * 8 + s.sha256[8:20] + s.group[:44]) for s in made]
    assert {s.sha256 for s in recipe.cut([*samples, *made, *more])["validation"]} >= {
        s.sha256 for s in slices["validation"]
    }
    named = [replace(s, group=f"photo {index}") for index, s in enumerate([*samples, *made])]
    assert len(recipe.cut(named)["validation"]) + len(recipe.cut(named)["fit"]) == 56
    with pytest.raises(DatasetError, match=r"kept_out seventh: the fit slice \(24 of 28 images\) lacks a class"):
        recipe.cut(samples)


def test_the_selection_slice_keeps_sources_out() -> None:
    recipe = build(Recipe, {**SHORT, "teacher": "x", "kept_out": "selection"}, "r")
    known = [
        ("real", "openimages-200", "", True),
        ("real", "coco-200", "", False),
        ("generated", "sr-esrgan", "", True),
        ("generated", "sr-bsrgan", "", False),
        ("generated", "comfyui-examples", "FLUX.1-dev", False),
        ("generated", "comfyui-examples", "FLUX.2", False),
    ]
    samples: list[Sample] = [
        Sample(path=Path("x"), label=label, source=source, generator=generator, sha256=f"{n:064x}")  # type: ignore[arg-type]
        for n, (label, source, generator, _) in enumerate(known)
    ]
    kept = recipe.cut(samples)["validation"]
    assert [s in kept for s in samples[:4]] == [out for *_, out in known[:4]]
    assert (samples[4] in kept) == (samples[5] in kept), "a family is on one side"


def test_draws_take_sources_alike_and_classes_apart() -> None:
    recipe = build(Recipe, {**SHORT, "teacher": "x", "by_source": True, "mix": {"balance": 0}, "batch": 200}, "r")
    names = [("real", "a", "")] * 9 + [("real", "b", "")] + [("generated", "c", str(n)) for n in range(9)]
    names.append(("generated", "d", ""))
    samples = [
        Sample(path=Path("x"), label=label, source=source, generator=generator)  # type: ignore[arg-type]
        for label, source, generator in names
    ]
    tokens = [[torch.full((6, 2), float(n))] for n in range(len(samples))]
    draws = Draws(recipe, samples, tokens, seed=3)
    batch = draws(5)
    assert batch.inputs.shape == (200 * 4, 2)
    assert batch.labels.tolist() == [0.0] * 400 + [1.0] * 400
    real, generated = batch.inputs[:, 0].chunk(2)
    assert real.max() == 9
    assert generated.min() >= 10
    for part, single in ((real, 9), (generated, 19)):
        assert 0.35 < (part == single).float().mean() < 0.65
    assert torch.equal(draws(5).inputs, batch.inputs)
    assert not torch.equal(draws(6).inputs, batch.inputs)
    nothing = replace(recipe, mix=replace(recipe.mix, kinds={"": 0.0}))
    with pytest.raises(DatasetError, match="no generated image"):
        Draws(nothing, samples, tokens, seed=0)


def test_a_bank_needs_enough_patches(job: Callable[..., Any]) -> None:
    with pytest.raises(DatasetError, match="a bank of 5000 patches wants more photographs"):
        fit(job(network={"head": {"bank": 5000}}))
    many = candidates([torch.randn(20, 3) for _ in range(5)], 10)
    assert many.shape == (50, 3)


def test_a_banked_head_is_a_copy_as_it_will_be_shipped() -> None:
    from detector_zoo_mdmf.mmd import SignatureHead

    torch.manual_seed(0)
    head = SignatureHead(3, [4], 2, 16)
    made = banked(head, torch.randn(60, 3), "kmeans", half=True)
    assert head.bank.abs().sum() == 0
    for value in (made.bank, made.phi[0].weight):
        assert torch.equal(value, value.half().float())
    assert made.bank_term > 0


def test_a_teacher_that_is_no_file_is_looked_up(job: Callable[..., Any]) -> None:
    with pytest.raises(WeightsError, match=r"backbone\.clip_vit_b16_dequantised: no command can fetch it"):
        fit(job(teacher="backbone.clip_vit_b16_dequantised"))


# --- the report


def test_the_report_measures_a_folder(job: Callable[..., Any], tmp_path: Path) -> None:
    made = job()
    fit(made)
    data = tmp_path / "val"
    data.mkdir()
    lines = ["path,label,split,source"]
    for index, s in enumerate(made.samples[:8]):
        name = f"{index}{s.path.suffix}"
        (data / name).write_bytes(s.path.read_bytes())
        lines.append(f"{name},{s.label},val,{s.source}")
    (data / "manifest.csv").write_text("\n".join(lines) + "\n")
    report.main(["--data", str(data), "--weights", str(made.out), "--out", str(tmp_path / "report")])
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    (section,) = (name for name in found if name.startswith("Equalised val: "))
    assert 0 <= found[section]["AUROC"]["value"] <= 1
    assert found["Shortcuts: AUROC of"]["file format alone, before equalising"]["value"] == 0.5
    assert set(found["Robustness: AUROC after"]) == set(report.ROBUSTNESS)


def test_pairs_differ_only_in_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled:
        def __call__(self, pixels: np.ndarray, network: str) -> np.ndarray:
            return pixels.repeat(2, 0).repeat(2, 1)

    monkeypatch.setattr(pairs, "Upscaler", Doubled)
    autoencoder = pairs.TinyAutoencoder()
    state = tiny_clip.seeded(autoencoder)
    for part in ("encoder", "decoder"):
        own = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(part)}
        torch.save(own, tmp_path / f"taef2_{part}.pth")
    rows = []
    for index in range(2):
        path = tmp_path / f"{index}.png"
        photo(200, 208, index).save(path)
        rows.append(Sample(path=path, label="real", sha256=f"{index:064x}"))
    made = pairs.make_pairs(rows, tmp_path, tmp_path / "pairs")
    assert [(pair.row, pair.reduced) for pair in made] == [
        (r.sha256, reduced) for r in rows for reduced in (False, True)
    ]

    def pixels(pair: pairs.Pair, name: str) -> np.ndarray:
        with Image.open(pair.folder / f"{name}.png") as image:
            return np.asarray(image)

    for pair in made:
        original, mask = pixels(pair, "original"), pixels(pair, "mask") > 0
        for kind in pairs.KINDS:
            assert pixels(pair, kind).shape == original.shape
            assert not np.array_equal(pixels(pair, kind), original)
            one, other = pairs.equalised_pair(pair, kind)
            assert one.size == other.size
        assert np.array_equal(pixels(pair, "edit")[~mask], original[~mask])
    before = (made[0].folder / "recon.png").stat().st_mtime_ns
    pairs.make_pairs(rows, tmp_path, tmp_path / "pairs")
    assert (made[0].folder / "recon.png").stat().st_mtime_ns == before

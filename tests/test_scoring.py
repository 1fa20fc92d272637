"""The pipeline: one decode an image, the same score however it is run, errors as rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import detector_zoo
from detector_zoo import DetectorInfo, TorchDetector, hookimpl, images, load, scoring
from detector_zoo.loading import LoadedDetector, select
from detector_zoo.predictions import Journal, Prediction, read
from detector_zoo.scoring import Options, run

from conftest import FakePlugins, encoded, photo


class Network(TorchDetector):
    """A small convolutional network with fixed random weights, on images of any size."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, stride=2)
        ).eval()
        self.batches: list[int] = []

    def transform(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(batch))
        return self.network(batch).mean(dim=(1, 2, 3)) * 30


class Touchy:
    """Fails on dark images in the way that it is told to."""

    how = "raise"

    def score(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        means = np.array([np.asarray(picture).mean() for picture in pictures], np.float32)
        if (means < 20).any():
            if self.how == "raise":
                raise RuntimeError("too\ndark")
            if self.how == "shape":
                return np.zeros((len(pictures), 2))
            means[means < 20] = np.nan
        return means - 128


def loaded(detector: Any, name: str) -> LoadedDetector:
    return LoadedDetector(info=DetectorInfo(name=name, summary="", load="x:X"), spec=None, detector=detector)


def rows_of(paths: Sequence[Path], detectors: Sequence[LoadedDetector], **options: Any) -> list[Prediction]:
    return [row for rows in run(map(str, paths), detectors, Options(**options)) for row in rows]


def test_rows_come_in_the_order_of_paths_and_detectors(pictures: Path) -> None:
    paths = sorted(pictures.iterdir())
    rows = rows_of(paths, [loaded(Network(), "net"), load("dummy")], batch_size=4)
    assert [(Path(row.path), row.detector) for row in rows] == [(p, d) for p in paths for d in ("net", "dummy")]
    assert all(row.error == "" and row.label in {"real", "generated"} for row in rows)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("memory", [1, 2**30])
def test_a_score_depends_on_the_image_alone(pictures: Path, workers: int, batch_size: int, memory: int) -> None:
    paths = sorted(pictures.iterdir())
    network = loaded(Network(), "net")
    expected = {str(path): network.score([path])[0] for path in paths}
    random.Random(batch_size).shuffle(paths)
    rows = rows_of(paths, [network], workers=workers, batch_size=batch_size, memory=memory)
    assert [row.path for row in rows] == [str(path) for path in paths]
    for row in rows:
        assert row.log_odds == pytest.approx(expected[row.path], abs=1e-4)


def test_images_of_one_shape_share_a_forward_pass(pictures: Path) -> None:
    network = Network()
    rows_of(sorted(pictures.iterdir()), [loaded(network, "net")], batch_size=3)
    assert sorted(network.batches) == [3, 3, 3, 3]


def test_path_bytes_array_and_picture_score_alike(tmp_path: Path) -> None:
    picture = photo()
    path = tmp_path / "p.png"
    picture.save(path)
    for detector in (loaded(Network(), "net"), load("dummy")):
        scores = detector.score([path, str(path), path.read_bytes(), np.asarray(picture), picture])
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, scores[0], atol=1e-6)
        assert detector.predict([path])[0].log_odds == pytest.approx(scores[0], abs=1e-6)


def test_each_file_is_decoded_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    original = images.decode

    def counting(*args: Any, **kwargs: Any) -> images.DecodedImage:
        decoded.append(kwargs["name"])
        return original(*args, **kwargs)

    monkeypatch.setattr(scoring.images, "decode", counting)
    rows_of(sorted(pictures.iterdir()), [loaded(Network(), "net"), load("dummy"), loaded(Touchy(), "touchy")])
    assert sorted(decoded) == sorted(map(str, pictures.iterdir()))


def test_a_bad_file_is_a_row_and_the_others_are_scored(pictures: Path) -> None:
    (pictures / "05.png").write_bytes(b"")
    paths = [*sorted(pictures.iterdir()), pictures / "missing.png"]
    rows = rows_of(paths, [loaded(Network(), "net"), load("dummy")])
    bad = {Path(row.path).name for row in rows if row.error}
    assert bad == {"05.png", "missing.png"}
    assert all((row.log_odds is None) == bool(row.error) for row in rows)
    assert len(rows) == 2 * len(paths)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("raise", "touchy failed: RuntimeError: too dark"),
        ("shape", "touchy returned shape (1, 2) for 1 images"),
        ("nan", "touchy returned a score that is not a finite number"),
    ],
)
def test_a_detector_that_fails_on_one_image_keeps_the_others(tmp_path: Path, how: str, cause: str) -> None:
    for i in range(5):
        Image.new("RGB", (8, 8), (0,) * 3 if i == 2 else (90 + i,) * 3).save(tmp_path / f"{i}.png")
    touchy = Touchy()
    touchy.how = how
    rows = rows_of(sorted(tmp_path.iterdir()), [loaded(touchy, "touchy"), load("dummy")], batch_size=16)
    assert [row.error for row in rows if row.detector == "touchy"] == ["", "", cause, "", ""]
    assert not any(row.error for row in rows if row.detector == "dummy")


def test_a_transform_that_fails_is_a_row(pictures: Path) -> None:
    class Broken(Network):
        def transform(self, image: Image.Image) -> torch.Tensor:
            raise ValueError("no such size")

    rows = rows_of(sorted(pictures.iterdir())[:2], [loaded(Broken(), "broken")])
    assert [row.error for row in rows] == ["broken failed: ValueError: no such size"] * 2


def test_a_bug_of_ours_is_not_swallowed(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: object, **kwargs: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(scoring.images, "decode", explode)
    for workers in (0, 2):
        with pytest.raises(AssertionError, match="a bug"):
            rows_of(sorted(pictures.iterdir()), [load("dummy")], workers=workers)


@pytest.mark.parametrize("rule", ["mean", "soft-or"])
def test_fusion_adds_a_row(pictures: Path, rule: str) -> None:
    (pictures / "bad.png").write_bytes(b"no")
    detectors = [loaded(Network(), "net"), load("dummy")]
    rows = list(run(map(str, sorted(pictures.iterdir())), detectors, Options(fuse=rule)))
    for net, dummy, fused in rows:
        assert fused.detector == f"fuse-{rule}"
        assert fused.weights == "net+dummy"
        if net.error:
            assert fused.error == net.error
            continue
        assert net.probability is not None
        assert dummy.probability is not None
        if rule == "mean":
            assert fused.log_odds == pytest.approx((net.log_odds + dummy.log_odds) / 2)
        else:
            assert fused.probability == pytest.approx(1 - (1 - net.probability) * (1 - dummy.probability), abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(-700, 700), min_size=1, max_size=5))
def test_soft_or_is_finite_and_never_below_any_part(log_odds: list[float]) -> None:
    from detector_zoo.fusion import soft_or

    fused = soft_or(log_odds)
    assert np.isfinite(fused)
    assert fused >= max(log_odds) - 1e-9 * abs(max(log_odds)) - 1e-9


def test_threshold_and_band(pictures: Path) -> None:
    path = sorted(pictures.iterdir())[0]
    plain = load("dummy").predict([path])[0]
    assert load("dummy", threshold=plain.log_odds - 0.1).predict([path])[0].label == "generated"
    assert load("dummy", threshold=plain.log_odds + 0.1).predict([path])[0].label == "real"
    banded = replace(load("dummy"), inconclusive=abs(plain.log_odds) + 0.1)
    assert banded.predict([path])[0].label == "inconclusive"


def test_python_iterator(pictures: Path) -> None:
    rows = list(detector_zoo.score(sorted(pictures.iterdir()), detectors=["dummy"]))
    assert len(rows) == 12
    assert {row.detector for row in rows} == {"dummy"}


def test_heatmaps_are_written_once_and_named_safely(tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    source = tmp_path / "..odd name \n.png"
    photo(40, 30).save(source)
    twin = tmp_path / "sub"
    twin.mkdir()
    photo(40, 30, seed=1).save(twin / source.name)
    rows_of([source, twin / source.name], [load("dummy")], heatmaps=folder)
    maps = sorted(folder.iterdir())
    assert len(maps) == 2
    assert all(path.name.startswith("odd_name_.") and path.name.endswith(".dummy.png") for path in maps)
    with Image.open(maps[0]) as picture:
        assert picture.size == (40, 30)
    before = [path.stat().st_mtime_ns for path in maps]
    rows_of([source], [load("dummy")], heatmaps=folder)
    assert [path.stat().st_mtime_ns for path in sorted(folder.iterdir())] == before


def test_the_overlay_points_at_the_evidence() -> None:
    from detector_zoo.heatmaps import overlay

    heat = np.zeros((30, 40), np.float32)
    heat[5:15, 20:30] = 1
    picture = np.asarray(overlay(Image.new("RGB", (40, 30), (120, 120, 120)), heat), int)
    redness = picture[..., 0] - picture[..., 2]
    assert redness[5:15, 20:30].min() > 80
    assert redness[20:, :15].max() == 0


def test_exif_orientation_follows_the_weights(tmp_path: Path) -> None:
    from detector_zoo.registry import WeightSpec

    picture = photo(40, 30)
    exif = picture.getexif()
    exif[0x0112] = 6
    (tmp_path / "turned.png").write_bytes(encoded(picture, "PNG", exif=exif))
    decoded = images.decode(tmp_path / "turned.png")
    for policy, size in (("apply", (30, 40)), ("ignore", (40, 30))):
        spec = WeightSpec(name="net.x", preprocessing={"exif_orientation": policy})
        seen = replace(loaded(load("dummy").detector, "dummy"), spec=spec).prepare(decoded)
        assert seen.size == size


def test_resume_takes_rows_from_the_journal_and_judges_them_anew(pictures: Path, tmp_path: Path) -> None:
    network = Network()
    paths = sorted(pictures.iterdir())
    output = tmp_path / "out.jsonl"
    with Journal(output) as journal:
        first = [r for rows in run(map(str, paths[:7]), [loaded(network, "net")], Options(), journal) for r in rows]
    seen = sum(network.batches)
    strict = replace(loaded(network, "net"), threshold=50.0)
    with Journal(output) as journal:
        again = [r for rows in run(map(str, paths), [strict], Options(), journal) for r in rows]
        journal.finish()
    assert sum(network.batches) - seen == len(paths) - 7
    assert [r.log_odds for r in again[:7]] == [r.log_odds for r in first]
    assert {r.label for r in again} == {"real"}
    assert [row.path for row in read(output)] == [str(path) for path in paths]


def test_the_same_content_under_two_names_is_two_rows_and_one_score(tmp_path: Path) -> None:
    data = encoded(photo())
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(data)
    network = Network()
    output = tmp_path / "out.jsonl"
    for name in "ab":
        with Journal(output) as journal:
            list(run([str(tmp_path / f"{name}.png")], [loaded(network, "net")], Options(), journal))
            journal.finish()
    assert sum(network.batches) == 1
    rows = list(read(output))
    assert [Path(row.path).name for row in rows] == ["a.png", "b.png"]
    assert rows[0].log_odds == rows[1].log_odds


def test_all_leaves_out_controls_and_detectors_without_weights(fake_plugins: FakePlugins) -> None:
    module = ModuleType("fake")

    @hookimpl
    def register_detectors(register: Any) -> None:
        register(DetectorInfo(name="free", summary="needs no weights", load="detector_zoo_dummy.detector:Dummy"))

    module.register_detectors = register_detectors  # type: ignore[attr-defined]
    fake_plugins.add("free", module)
    names, _ = select(["all"])
    assert "free" in names
    assert "dummy" not in names
    assert select(["dummy", "all", "dummy"])[0][0] == "dummy"


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    limit=st.integers(1, 60),
    workers=st.integers(0, 4),
    ahead=st.integers(0, 8),
)
def test_the_budget_bounds_what_is_held(sizes: list[int], limit: int, workers: int, ahead: int) -> None:
    from detector_zoo.workers import Budget, stream

    budget = Budget(limit)
    held: list[int] = []
    seen: list[int] = []
    most = 0
    for index in stream(range(len(sizes)), lambda i: (i, sizes[i]), budget, workers=workers, ahead=ahead):
        most = max(most, budget.held)
        if index is None:
            while held:
                budget.release(sizes[held.pop()])
            continue
        seen.append(index)
        held.append(index)
    assert sorted(seen) == list(range(len(sizes)))
    assert most <= max(limit, max(sizes))

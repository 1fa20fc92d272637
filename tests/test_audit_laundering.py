"""`zoo audit laundering`: what is left after re-encoding, resizing, blurring."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from audit_fakes import Bright, Grain, bright_and_dark, loaded, sample
from detector_zoo import TorchDetector, hookimpl, images
from detector_zoo.errors import DatasetError, ImageError
from detector_zoo.evaluation import in_memory
from detector_zoo.evaluation import laundering as module
from detector_zoo.evaluation.equalise import equalise_file
from detector_zoo.evaluation.metrics import measure
from detector_zoo.evaluation.perturbations import GRID, parse

from conftest import FakePlugins, photo

laundering = partial(module.laundering, equalise=False)


class Tensors(TorchDetector):
    """Mean brightness through the torch path; remembers its batches."""

    def __init__(self) -> None:
        self.network = torch.nn.Identity()
        self.batches: list[tuple[int, ...]] = []

    def transform(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        self.batches.append(tuple(batch.shape))
        return batch.mean((1, 2, 3)) / 25 - 5


def rough_and_smooth(folder: Path, count: int) -> list:
    found = []
    for i in range(count):
        rng = np.random.default_rng(i)
        for label, level in (("real", 12), ("generated", 4)):
            picture = np.asarray(photo(96, 96, seed=i), float) + rng.normal(0, level, (96, 96, 3))
            path = folder / f"{label}{i}.png"
            Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(path)
            found.append(sample(path, label))
    return found


def test_figures_are_those_of_the_perturbed_pictures(tmp_path: Path) -> None:
    samples = rough_and_smooth(tmp_path, 6)
    detector = loaded(Grain())
    result = laundering(samples, detector, ["jpeg:40", "noise:30", "screenshot"], resamples=100)
    assert [point.perturbation for point in result.points] == ["none", "jpeg:40", "noise:30", "screenshot"]
    labels = np.array([s.generated for s in samples])
    for point, perturbation in zip(result.points, parse(["none", "jpeg:40", "noise:30", "screenshot"]), strict=True):
        decoded = [images.decode(s.path) for s in samples]
        scores = detector.score([perturbation(d.image, d.sha256) for d in decoded])
        assert point.auroc.value == pytest.approx(roc_auc_score(labels, scores))
        assert point.real.value == pytest.approx(scores[~labels].mean(), abs=1e-5)
        assert point.generated.value == pytest.approx(scores[labels].mean(), abs=1e-5)
        assert point.drop.value == pytest.approx(result.points[0].auroc.value - point.auroc.value)
        assert point.auroc.low <= point.auroc.value <= point.auroc.high
        assert point.failed == 0
    none = result.points[0]
    assert (none.drop.low, none.drop.high) == (0, 0)
    assert result.points[2].real.value < none.real.value  # noise is grain


def test_images_are_equalised_first_unless_told_otherwise(tmp_path: Path) -> None:
    samples = rough_and_smooth(tmp_path, 4)
    detector = loaded(Grain())
    result = module.laundering(samples, detector, ["blur:1"], resamples=30)
    (blur,) = parse(["blur:1"])
    scores = detector.score([blur(equalise_file(s.path), images.decode(s.path).sha256) for s in samples])
    labels = np.array([s.generated for s in samples])
    assert result.points[1].real.value == pytest.approx(scores[~labels].mean(), abs=1e-5)
    assert result.origin.equalised
    assert not laundering(samples, detector, ["none"], resamples=30).origin.equalised


def test_curves_by_name_and_number(tmp_path: Path) -> None:
    samples = bright_and_dark(tmp_path, 2, (64, 64))
    result = laundering(samples, loaded(Bright()), ["jpeg:90", "blur:1", "jpeg:40"], resamples=30)
    assert {name: [p.value for p in curve] for name, curve in result.curves().items()} == {
        "jpeg": [40, 90],
        "blur": [1],
    }


def test_the_usual_grid(tmp_path: Path) -> None:
    samples = bright_and_dark(tmp_path, 1, (96, 64))
    result = laundering(samples, loaded(Bright()), resamples=20)
    assert len(result.points) + len(result.left_out) == 1 + len(GRID)
    assert all(reason.startswith("perturbation 'avif") for reason in result.left_out)
    assert all(point.auroc.value == 1 for point in result.points)


def test_each_image_is_decoded_once_and_memory_is_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = bright_and_dark(tmp_path, 20, (48, 48))
    decoded: list[str] = []
    original = images.decode
    monkeypatch.setattr(in_memory.images, "decode", lambda *a, **k: decoded.append(k["name"]) or original(*a, **k))
    detector = Tensors()
    prepared = {"now": 0, "most": 0}
    transform, logits = detector.transform, detector.logits

    def counting(image: Image.Image) -> torch.Tensor:
        prepared["now"] += 1
        prepared["most"] = max(prepared.values())
        return transform(image)

    def forwarding(batch: torch.Tensor) -> torch.Tensor:
        prepared["now"] -= len(batch)
        return logits(batch)

    monkeypatch.setattr(detector, "transform", counting)
    monkeypatch.setattr(detector, "logits", forwarding)
    specs = ["jpeg:90", "resize_bicubic:0.5", "resize_bicubic:0.75", "resize_bicubic:1.5", "crop:0.5", "screenshot"]
    laundering(samples, loaded(detector), specs, resamples=20)
    assert sorted(decoded) == sorted(str(s.path) for s in samples)
    assert prepared["most"] <= 4 * 16
    assert max(shape[0] for shape in detector.batches) == 16


def test_batches_change_no_figure(tmp_path: Path) -> None:
    samples = bright_and_dark(tmp_path, 6, (48, 48))
    pictures = [((0, i), images.decode(s.path).image) for i, s in enumerate(samples)]
    alone = dict(in_memory.score(loaded(Tensors()), pictures, batch_size=1))
    together = dict(in_memory.score(loaded(Tensors()), pictures, batch_size=5))
    assert alone.keys() == together.keys() == {(0, i) for i in range(12)}
    assert [alone[key] for key in alone] == pytest.approx([together[key] for key in alone])


def test_large_pictures_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "_WAITING_BYTES", 1)
    detector = Tensors()
    found = dict(in_memory.score(loaded(detector), ((i, photo(16, 16, seed=i)) for i in range(5))))
    assert sorted(found) == list(range(5))
    assert {shape[0] for shape in detector.batches} == {1}


def test_failures_are_counted_and_in_no_figure(tmp_path: Path, fake_plugins: FakePlugins) -> None:
    class Picky(Bright):
        def score(self, pictures):
            if any(min(p.size) < 40 for p in pictures):
                raise RuntimeError("too small")
            return super().score(pictures)

    plugin = ModuleType("fake")

    @hookimpl
    def register_perturbations(register) -> None:
        register("broken", "audit_fakes:broken")

    plugin.register_perturbations = register_perturbations
    fake_plugins.add("broken", plugin)
    samples = bright_and_dark(tmp_path, 3, (64, 48))
    small = tmp_path / "small.png"
    photo(30, 30).save(small)
    samples.append(sample(small, "real"))
    result = laundering(samples, loaded(Picky()), ["resize_bicubic:0.75", "broken"], resamples=20)
    none, resized, broken = result.points
    assert (none.failed, resized.failed, broken.failed) == (0, 6, 6)
    assert "too small" in resized.cause
    assert "no such size" in broken.cause
    assert np.isnan(resized.auroc.value)
    assert none.auroc.value == 1
    assert result.origin.real == 3
    assert len(result.origin.failures) == 1
    assert "small.png: fake failed: RuntimeError: too small" in result.origin.failures[0]
    assert result.to_dict()["points"][1]["auroc"]["value"] is None


def test_abstentions_are_counted(tmp_path: Path) -> None:
    result = laundering(bright_and_dark(tmp_path, 2), loaded(Bright(), inconclusive=100.0), ["none"], resamples=20)
    assert result.origin.inconclusive == 4


def test_abstentions_are_in_no_auroc_but_in_the_mean_log_odds(tmp_path: Path) -> None:
    samples = rough_and_smooth(tmp_path, 12)
    labels, scores = (
        np.array([s.generated for s in samples]),
        np.array([loaded(Grain()).score([s.path])[0] for s in samples], float),
    )
    middle = float(np.median(scores))
    band = float(np.sort(np.abs(scores - middle))[8])  # abstains on the eight nearest
    result = laundering(samples, loaded(Grain(), threshold=middle, inconclusive=band), ["blur:8"], resamples=50)
    plain, blurred = result.points
    known = np.abs(scores - middle) >= band
    assert plain.abstained == (~known).sum() == result.origin.inconclusive == 8
    assert plain.auroc == measure(labels[known], scores[known], names=("auroc",), resamples=50)["auroc"]
    assert plain.real.value == pytest.approx(scores[~labels].mean())
    assert blurred.abstained != plain.abstained


def test_what_cannot_be_audited(tmp_path: Path) -> None:
    samples = bright_and_dark(tmp_path, 2, (48, 48))
    with pytest.raises(DatasetError, match="no real image"):
        laundering([s for s in samples if s.generated], loaded(Bright()))
    with pytest.raises(ValueError, match="unknown perturbation"):
        laundering(samples, loaded(Bright()), ["fog:1"])
    samples[0].path.write_bytes(b"")
    with pytest.raises(ImageError, match="the file is empty"):
        laundering(samples, loaded(Bright()), ["none"])
    result = laundering(samples, loaded(Bright()), ["none"], skip_bad=True, resamples=20)
    assert len(result.origin.failures) == 1

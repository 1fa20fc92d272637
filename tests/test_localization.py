"""Heatmaps against masks, checked with scikit-learn and scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter
from sklearn.metrics import average_precision_score, jaccard_score, roc_auc_score

from audit_fakes import Bright, Grain, loaded, sample, triples
from detector_zoo import images
from detector_zoo.errors import DatasetError, PluginError
from detector_zoo.evaluation.localization import (
    energy_inside,
    localization,
    measure_map,
    read_mask,
    regions,
)

from conftest import encoded, photo


def example(seed: int, height: int = 60, width: int = 70) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    top, left = int(rng.integers(-5, 30)), int(rng.integers(-5, 30))
    mask[max(top, 0) : top + 28, max(left, 0) : left + 30] = True
    heat = rng.normal(size=mask.shape) + mask
    return np.round(heat, 1).astype(np.float32), mask


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(3, 40))
def test_regions_are_trufors(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((4, 4)) < 0.6, np.ones((height, width), bool))[: 3 * height, : 3 * width]
    edited, untouched = regions(mask)
    assert (edited == minimum_filter(mask, 15)).all()
    assert (untouched == ~maximum_filter(mask, 11)).all()


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    heat, mask = example(seed)
    found = measure_map(heat, mask)
    assert found is not None
    edited, untouched = regions(mask)
    counted = edited | untouched
    labels, values = edited[counted], heat[counted].astype(float)
    middle = (float(heat.min()) + float(heat.max())) / 2
    assert found.iou == pytest.approx(jaccard_score(labels, values > middle))
    best = max(jaccard_score(labels, values >= cut) for cut in np.unique(values))
    assert found.oracle_iou == pytest.approx(best)
    assert found.ap == pytest.approx(average_precision_score(labels, values))
    assert found.auroc == pytest.approx(roc_auc_score(labels, values))
    positive = values.clip(0)
    assert found.energy == pytest.approx(positive[labels].sum() / positive.sum())
    assert found.area == pytest.approx(labels.mean())
    assert measure_map(heat, mask, 0.5).iou == pytest.approx(jaccard_score(labels, values > 0.5))  # type: ignore[union-attr]


def test_perfect_flat_and_negative_maps() -> None:
    _, mask = example(3)
    perfect = measure_map(mask.astype(np.float32), mask)
    assert perfect is not None
    assert (perfect.iou, perfect.oracle_iou, perfect.ap, perfect.auroc, perfect.energy) == (1, 1, 1, 1, 1)
    flat = measure_map(np.ones(mask.shape, np.float32), mask)
    assert flat is not None
    assert (flat.iou, flat.auroc) == (0, 0.5)
    assert flat.oracle_iou == pytest.approx(flat.area)  # all called edited
    assert flat.energy == pytest.approx(flat.area)
    negative = measure_map(mask - np.float32(2), mask)
    assert negative is not None
    assert np.isnan(negative.energy)
    assert negative.auroc == 1


def test_the_border_is_not_counted() -> None:
    mask = np.zeros((80, 80), bool)
    mask[20:60, 20:60] = True
    heat = mask.astype(np.float32)
    smeared = heat.copy()
    smeared[~(regions(mask)[0] | regions(mask)[1])] = 0.3
    assert measure_map(heat, mask) == measure_map(smeared, mask)


def test_masks_without_a_core_and_bad_maps() -> None:
    thin = np.zeros((50, 50), bool)
    thin[:, 20:30] = True
    assert measure_map(np.zeros((50, 50), np.float32), thin) is None
    assert measure_map(np.zeros((50, 50), np.float32), np.ones((50, 50), bool)) is None
    with pytest.raises(ValueError, match="the map is"):
        measure_map(np.zeros((50, 51), np.float32), thin)
    with pytest.raises(ValueError, match="finite"):
        measure_map(np.full((50, 50), np.nan, np.float32), thin)


def test_energy_inside_counts_every_pixel() -> None:
    mask = np.eye(4, dtype=bool)
    assert energy_inside(np.ones((4, 4), np.float32), mask) == 0.25
    assert np.isnan(energy_inside(np.full((4, 4), -1, np.float32), mask))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_masks_are_turned_with_the_image(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((40, 60), bool)
    upright[5:15, 10:50] = True
    turns = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    turn = turns[orientation]
    whole = Image.fromarray((upright * 255).astype(np.uint8))
    stored = whole if turn is None else whole.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = images.decode(encoded(photo(*stored.size), "PNG", exif=exif))
    assert decoded.orientation == orientation
    path = tmp_path / "mask.png"
    stored.save(path)
    one = sample(tmp_path / "x.png", "generated", mask=path)
    assert (read_mask(one, decoded, "apply") == upright).all()
    assert (read_mask(one, decoded, "ignore") == (np.asarray(stored) > 127)).all()
    if orientation == 6:  # a mask drawn on the upright picture fits only that
        whole.save(path)
        assert (read_mask(one, decoded, "apply") == upright).all()


def test_over_images_with_intervals(tmp_path: Path) -> None:
    samples = triples(tmp_path, 5)
    result = localization(samples, loaded(Bright()), resamples=200)
    figures = []
    for s in samples:
        heat = loaded(Bright()).heatmap(s.path)
        figures.append(measure_map(heat, np.asarray(Image.open(s.mask)) > 127))
    for name, key in (
        ("miou", "iou"),
        ("oracle_miou", "oracle_iou"),
        ("ap", "ap"),
        ("auroc", "auroc"),
        ("energy", "energy"),
    ):
        metric = getattr(result, name)
        values = [getattr(figure, key) for figure in figures]
        assert metric.value == pytest.approx(np.mean(values))
        assert 0 <= metric.low < metric.value < metric.high <= 1
        assert metric.low < np.mean(values) - np.std(values) / 3
    assert result.oracle_miou.value >= result.miou.value
    assert (result.images, result.too_small) == (5, 0)
    assert result.threshold == "the middle of the map's own range"
    assert localization(samples, loaded(Bright()), threshold=0.9, resamples=20).threshold == "0.9"
    assert any("oracle" in str(row[0]) for row in result.tables()[0].rows)


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    samples = triples(tmp_path, 3)
    with pytest.raises(PluginError, match="has no heatmap"):
        localization(samples, loaded(Grain()))
    with pytest.raises(DatasetError, match="has a mask"):
        localization([sample(samples[0].path, "generated")], loaded(Bright()))

    thin = np.zeros((96, 96), np.uint8)
    thin[:, 3] = 255
    Image.fromarray(thin).save(tmp_path / "0-mask.png")
    Image.new("L", (96, 96)).save(tmp_path / "1-mask.png")
    with pytest.raises(DatasetError, match=r"1-mask\.png: empty"):
        localization(samples, loaded(Bright()))
    result = localization(samples, loaded(Bright()), skip_bad=True, resamples=20)
    assert (result.images, result.too_small, len(result.origin.failures)) == (1, 1, 1)

    class Infinite(Bright):
        def heatmap(self, pictures: Any) -> np.ndarray:
            return super().heatmap(pictures) / np.float32(0)

    with pytest.raises(DatasetError, match="no mask could be compared"), np.errstate(all="ignore"):
        localization(samples[2:], loaded(Infinite()))

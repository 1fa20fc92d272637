"""`zoo audit exchange`: the edit, or what the editor did to the rest; and the spectra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from audit_fakes import Bright, Grain, loaded, sample, triples
from detector_zoo.errors import DatasetError, ImageError
from detector_zoo.evaluation import spectrum
from detector_zoo.evaluation.equalise import reencode
from detector_zoo.evaluation.exchange import SIGMA, exchange, soft_exchange
from detector_zoo.evaluation.exchange_audit import exchange_audit

from conftest import photo

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@st.composite
def triple(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width = draw(SIZES)
    pictures = [draw(arrays(np.uint8, (height, width, 3))) for _ in range(2)]
    return pictures[0], pictures[1], draw(arrays(np.bool_, (height, width)))


@settings(max_examples=60, deadline=None)
@given(triple())
def test_exchange_is_its_definition_bit_for_bit(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    original, edited, mask = data
    before = original.copy(), edited.copy()
    found = exchange(original, edited, mask)
    m = mask[..., None].astype(np.int64)
    assert found.dtype == np.uint8
    assert (found == m * edited + (1 - m) * original).all()
    assert found[~mask].tobytes() == original[~mask].tobytes()
    assert found[mask].tobytes() == edited[mask].tobytes()
    assert (original == before[0]).all()
    assert (edited == before[1]).all()


@settings(max_examples=40, deadline=None)
@given(triple())
def test_soft_edges_differ_from_hard_ones_near_the_border_alone(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    original, edited, mask = data
    soft, hard = soft_exchange(original, edited, mask), exchange(original, edited, mask)
    padded = np.pad(mask, 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    plain = windows.all((2, 3)) | ~windows.any((2, 3))
    assert soft[plain].tobytes() == hard[plain].tobytes()
    assert (soft >= np.minimum(original, edited)).all()
    assert (soft <= np.maximum(original, edited)).all()


def test_soft_edges_are_a_gaussian_of_five_pixels() -> None:
    mask = np.zeros((11, 11), bool)
    mask[5, 5] = True
    white, black = (np.full((11, 11, 3), level, np.uint8) for level in (255, 0))
    found = soft_exchange(black, white, mask)[..., 0].astype(float)
    y, x = np.mgrid[-5:6, -5:6]
    kernel = np.where((abs(x) <= 2) & (abs(y) <= 2), np.exp(-(x**2 + y**2) / (2 * SIGMA**2)), 0)
    assert np.abs(found - 255 * kernel / kernel.sum()).max() <= 0.5


@pytest.mark.parametrize("operator", [exchange, soft_exchange])
def test_sizes_must_agree(operator) -> None:
    picture = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="sizes differ"):
        operator(picture, picture, np.zeros((5, 4), bool))


def test_a_detector_of_the_whole_picture_is_found_out(tmp_path: Path) -> None:
    samples = triples(tmp_path, 12)
    detector = loaded(Grain())
    result = exchange_audit(samples, detector, resamples=300)
    pixels = [[np.asarray(Image.open(p)) for p in (s.original, s.path, s.mask)] for s in samples]
    originals = detector.score([original for original, _, _ in pixels])
    versions = {
        "inpainted": [edited for _, edited, _ in pixels],
        "exchanged": [exchange(o, e, m > 127) for o, e, m in pixels],
        "soft edges": [soft_exchange(o, e, m > 127) for o, e, m in pixels],
    }
    labels = np.repeat([0, 1], 12)
    for name, pictures in versions.items():
        scores = detector.score(pictures)
        found = result.versions[name]
        assert found.auroc.value == pytest.approx(roc_auc_score(labels, np.concatenate([originals, scores])))
        assert found.accuracy.value == pytest.approx(((originals <= 0).mean() + (scores > 0).mean()) / 2)
        assert found.called_generated.value == pytest.approx((scores > 0).mean())
        assert found.log_odds.value == pytest.approx(scores.mean(), abs=1e-5)
        assert found.auroc_drop.value == pytest.approx(result.versions["inpainted"].auroc.value - found.auroc.value)
    assert result.original.value == pytest.approx(originals.mean(), abs=1e-5)
    assert result.versions["inpainted"].auroc.value == 1
    assert result.versions["exchanged"].auroc_drop.low > 0
    assert result.maps is None
    assert (result.triples, result.origin.real, result.origin.generated) == (12, 12, 12)
    assert result.formats == {"PNG > PNG": 12}


def test_a_detector_of_the_edit_is_not(tmp_path: Path) -> None:
    result = exchange_audit(triples(tmp_path, 6), loaded(Bright()), resamples=100)
    assert result.versions["exchanged"].auroc_drop.low <= 0
    assert result.maps is not None
    assert result.maps.exchanged.value > result.maps.area.value
    assert result.maps.area.value == pytest.approx(40 * 44 / 96**2)


def test_abstentions_are_in_no_accuracy(tmp_path: Path) -> None:
    samples = triples(tmp_path, 8)
    scores = loaded(Grain()).score([path for s in samples for path in (s.original, s.path)])
    originals, edits = scores[::2], scores[1::2]
    threshold, band = float(np.sort(edits)[3]), 0.05
    result = exchange_audit(samples, loaded(Grain(), threshold=threshold, inconclusive=band), resamples=50)
    undecided = np.abs(edits - threshold) < band
    found = result.versions["inpainted"]
    assert found.inconclusive == undecided.sum() > 0
    assert (np.abs(originals - threshold) >= band).all()
    right = (originals <= threshold).mean(), (edits > threshold)[~undecided].mean()
    assert found.accuracy.value == pytest.approx(np.mean(right))
    assert found.called_generated.value == pytest.approx((edits > threshold)[~undecided].mean())
    assert result.origin.inconclusive == undecided.sum()


def test_spectral_test(tmp_path: Path) -> None:
    spectra = exchange_audit(triples(tmp_path, 6), loaded(Bright()), maps=False, resamples=100).spectra
    assert spectra is not None
    assert spectra.loss_inpainted.low > 1.5
    assert abs(spectra.loss_exchanged.value) < 1
    assert spectra.correlation.low > 0.5  # blur errs where there is detail
    assert (spectra.images, spectra.correlated) == (6, 6)
    assert spectra.power["inpainted"][-1] < spectra.power["original"][-1]
    assert len(spectra.frequencies) == len(spectra.power["exchanged"]) == spectrum.BINS


def test_the_last_jpeg_is_of_every_version(tmp_path: Path) -> None:
    samples = triples(tmp_path, 3)
    detector = loaded(Grain())
    result = exchange_audit(samples, detector, quality=50, resamples=20)
    originals = [reencode(Image.open(s.original).convert("RGB"), "jpeg", 50) for s in samples if s.original]
    assert result.original.value == pytest.approx(detector.score(originals).mean(), abs=1e-5)
    assert result.quality == 50


def test_exchanges_and_real_splices_are_left_out(tmp_path: Path) -> None:
    samples = triples(tmp_path, 3)
    for s in samples[1:]:
        original, edited, mask = (np.asarray(Image.open(p)) for p in (s.original, s.path, s.mask))
        Image.fromarray(exchange(original, edited, mask > 127)).save(s.path)
    samples.append(sample(samples[0].path, "real", original=samples[0].original, mask=samples[0].mask))
    result = exchange_audit(samples, loaded(Bright()), resamples=20)
    assert (result.triples, result.already, result.origin.generated) == (1, 2, 1)
    assert result.origin.failures == ()
    with pytest.raises(DatasetError, match="there is nothing to exchange"):
        exchange_audit(samples[1:], loaded(Bright()))


def test_triples_that_cannot_be_used(tmp_path: Path) -> None:
    samples = triples(tmp_path, 3)
    detector = loaded(Bright())
    with pytest.raises(DatasetError, match="no triple"):
        exchange_audit([sample(samples[0].path, "generated")], detector)
    photo(50, 50).save(tmp_path / "0-mask.png")
    with pytest.raises(DatasetError, match=r"0-mask\.png: 50 x 50, the image 96 x 96"):
        exchange_audit(samples, detector)
    photo(50, 50).save(tmp_path / "1-original.png")
    result = exchange_audit(samples, detector, skip_bad=True, resamples=20)
    assert result.triples == 1
    assert len(result.origin.failures) == 2
    assert "96 x 96, its original 50 x 50" in result.origin.failures[1]
    (tmp_path / "2-original.png").unlink()
    with pytest.raises(DatasetError, match="no triple could be scored"):
        exchange_audit(samples, detector, skip_bad=True)
    with pytest.raises(ImageError, match="no such file"):
        exchange_audit(samples[2:], detector)


def test_power_is_in_its_ring_and_of_its_size() -> None:
    x = np.arange(128)
    for frequency in (0.1, 0.3, 0.45):
        wave = np.broadcast_to(np.rint(127.5 + 100 * np.sin(2 * np.pi * frequency * x))[None, :, None], (128, 128, 3))
        power = spectrum.radial_power(wave.astype(np.uint8))
        assert abs(spectrum.frequencies()[power.argmax()] - frequency) <= 1 / (2 * spectrum.BINS)
    noise = np.random.default_rng(0).normal(128, 20, (128, 130, 1)).repeat(3, 2).astype(np.uint8)
    power = spectrum.radial_power(noise)
    assert power[4:] == pytest.approx(np.full(28, (noise[..., 0] / 255.0).var()), rel=0.25)
    with pytest.raises(ValueError, match="64 pixels on each side"):
        spectrum.radial_power(noise[:63])


def test_loss_of_high_frequencies_in_decibels() -> None:
    power = np.full(spectrum.BINS, 2.0)
    assert spectrum.high_frequency_loss(power / 10, power) == pytest.approx(10)
    assert spectrum.high_frequency_loss(power, power) == 0
    assert np.isnan(spectrum.high_frequency_loss(power, 0 * power))


def test_error_correlation_is_pearsons_over_blocks() -> None:
    original = np.asarray(photo(64, 48, seed=1))
    edited = np.asarray(Image.fromarray(original).filter(ImageFilter.GaussianBlur(1.5)))
    mask = np.zeros((48, 64), bool)
    mask[10:20, 10:30] = True
    before, after = spectrum.luminance(original), spectrum.luminance(edited)
    padded = np.pad(before, 1, mode="reflect")
    box = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).mean((2, 3))
    error, detail = [], []
    for top in range(0, 48, 8):
        for left in range(0, 64, 8):
            here = slice(top, top + 8), slice(left, left + 8)
            if not mask[here].any():
                error.append(np.abs(after - before)[here].mean())
                detail.append(((before - box) ** 2)[here].mean())
    assert spectrum.error_correlation(original, edited, mask) == pytest.approx(np.corrcoef(error, detail)[0, 1])
    assert np.isnan(spectrum.error_correlation(original, original))
    assert np.isnan(spectrum.error_correlation(original, edited, np.ones_like(mask)))

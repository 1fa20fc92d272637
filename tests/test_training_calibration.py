"""Calibration: log-odds that are ones, thresholds that keep what they promise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from detector_zoo.errors import DatasetError, ZooError
from detector_zoo.training.calibration import fit, fit_threshold, isotonic, needed, platt, read, write


def scored(n: int, seed: int, scale: float = 2.0, offset: float = -1.0) -> tuple[np.ndarray, np.ndarray]:
    """Raw scores whose true log-odds are scale * raw + offset, with both classes alike likely."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.5
    # Two Gaussians of variance v at m +- d: log-odds are 2 d / v (x - m).
    v = 0.5
    d, m = scale * v / 2, -offset / scale
    return y, m + np.where(y, d, -d) + np.sqrt(v) * rng.standard_normal(n)


def test_platt_recovers_the_truth_and_agrees_with_scikit_learn() -> None:
    y, raw = scored(20_000, 0)
    scale, offset = platt(y, raw)
    assert scale == pytest.approx(2.0, rel=0.05)
    assert offset == pytest.approx(-1.0, rel=0.08)
    theirs = LogisticRegression(C=1e9, class_weight="balanced").fit(raw[:, None], y)
    assert (scale, offset) == pytest.approx((theirs.coef_[0, 0], theirs.intercept_[0]), abs=0.01)


def test_platt_weighs_classes_alike_and_stays_finite() -> None:
    y = np.array([False] * 90 + [True] * 10)
    raw = np.where(y, 1.0, -1.0)
    scale, offset = platt(y, raw)
    assert np.isfinite(scale)
    assert 2 < scale < 10
    assert abs(offset) < 2
    with pytest.raises(DatasetError):
        platt([1, 1], [0.0, 1.0])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(3, 60))
def test_isotonic_is_scikit_learns(seed: int, n: int) -> None:
    y, raw = scored(n, seed)
    raw = np.round(raw, 1)
    y[:2] = [True, False]
    weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
    theirs = IsotonicRegression().fit(raw, y, sample_weight=weight).predict(raw)
    scores, p = isotonic(y, raw)
    assert p[np.searchsorted(scores, raw, side="right") - 1] == pytest.approx(theirs, abs=1e-9)


def test_a_fit_says_how_far_it_may_be_believed() -> None:
    y, raw = scored(400, 3)
    found = fit(y, raw)
    p = 1 / (1 + np.exp(-(found.scale * raw + found.offset)))
    low, high = found.believable
    assert low >= 1 / (found.generated + 2)
    assert high <= 1 - 1 / (found.real + 2)
    assert p.min() <= low < 0.5 < high <= p.max()
    assert found.error < 0.08
    assert sum(w for *_, w in found.reliability) == pytest.approx(1)
    assert f"P is vouched for from {low:.3f} to {high:.3f}" in found.sentence()
    assert fit(~y, raw).scale < 0


@pytest.mark.parametrize(("fpr", "n"), [(0.01, 99), (0.05, 19), (0.5, 1), (0.3, 3), (1 / 3, 2)])
def test_too_few_photographs_are_refused(fpr: float, n: int) -> None:
    assert needed(fpr) == n
    scores = np.arange(float(n))
    assert fit_threshold(scores, fpr, detector="x").threshold == n - 1
    with pytest.raises(DatasetError, match=f"it takes at least {n}"):
        fit_threshold(scores[:-1], fpr, detector="x")


@pytest.mark.parametrize(("n", "fpr"), [(99, 0.01), (150, 0.01), (60, 0.05), (333, 0.1)])
def test_a_threshold_keeps_its_promise_on_fresh_photographs(n: int, fpr: float) -> None:
    rng = np.random.default_rng(n)
    rates, covered = [], 0
    for seed in range(100):
        found = fit_threshold(rng.standard_t(4, n), fpr, detector="x", seed=seed)
        rate = (rng.standard_t(4, 20_000) > found.threshold).mean()
        rates.append(rate)
        covered += found.fpr_interval[0] <= rate <= found.fpr_interval[1]
    error = np.std(rates) / np.sqrt(len(rates))
    assert fpr * n / (n + 2) - fpr / 4 - 3 * error < np.mean(rates) < fpr + 3 * error
    assert covered >= 0.88 * len(rates)


def test_the_interval_of_the_threshold_holds_it_and_shrinks() -> None:
    rng = np.random.default_rng(0)
    few, many = (fit_threshold(rng.normal(size=n), 0.05, detector="x") for n in (60, 6000))
    for found in (few, many):
        assert found.interval[0] <= found.threshold <= found.interval[1]
    assert many.interval[1] - many.interval[0] < few.interval[1] - few.interval[0]


def test_the_file_is_for_one_detector_and_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    made = fit_threshold(np.arange(30.0), 0.1, detector="corvi.lite", weights_sha256="ab" * 32)
    write(made, path)
    assert read(path, detector="corvi.lite", weights_sha256="ab" * 32) == made
    with pytest.raises(ZooError, match=r"was fitted for corvi\.lite, not for mdmf\.lite"):
        read(path, detector="mdmf.lite", weights_sha256="ab" * 32)
    with pytest.raises(ZooError, match=r"other weights of corvi\.lite"):
        read(path, detector="corvi.lite", weights_sha256="cd" * 32)
    write(replace(made, schema_version=9), path)
    with pytest.raises(ZooError, match="schema_version 9"):
        read(path, detector="corvi.lite", weights_sha256="ab" * 32)
    for text in ("{}", "no json", json.dumps({"schema_version": 1, "threshold": 0})):
        path.write_text(text)
        with pytest.raises(ZooError, match="not a calibration"):
            read(path, detector="corvi.lite", weights_sha256="ab" * 32)
    with pytest.raises(ZooError, match="No such file"):
        read(tmp_path / "none.json", detector="x", weights_sha256="")

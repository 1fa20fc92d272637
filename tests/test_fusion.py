"""Fitted fusions: against scikit-learn, against detectors that are wrong or say nothing, and on prediction rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from detector_zoo import predictions
from detector_zoo.cli import main
from detector_zoo.errors import DatasetError
from detector_zoo.evaluation import fusion
from detector_zoo.evaluation.fusion import Fusion, fit
from detector_zoo.evaluation.metrics import auroc
from detector_zoo.rows import Prediction

from conftest import photo

NAMES = ("a.lite", "b.lite", "c.lite")


def scores(seed: int, means: tuple[float, ...], count: int = 400) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Independent normal scores, ``means`` apart: of mean m and variance m they are log-odds."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3 == 0
    deviation = np.sqrt(np.maximum(np.abs(means), 1))
    return labels, rng.normal(size=(count, len(means))) * deviation + np.where(labels, 0.5, -0.5)[:, None] * means


def test_it_is_the_logistic_regression_where_no_weight_is_bounded() -> None:
    labels, x = scores(0, (1.0, 2.0, 1.5))
    importance = np.where(labels, 3.0, 1.0)
    found = fit(labels, x, NAMES, importance=importance, l2=0.5)
    weight = importance * len(labels) / importance.sum()
    known = LogisticRegression(C=1 / 0.5, tol=1e-10, max_iter=1000).fit(x, labels, sample_weight=weight)
    assert min(found.weights) > 0.1
    np.testing.assert_allclose(found.weights, known.coef_[0], atol=1e-4)
    assert found.offset == pytest.approx(known.intercept_[0], abs=1e-4)
    assert (found.real, found.generated) == (266, 134)


def test_a_detector_that_is_wrong_has_no_weight_and_stays_listed() -> None:
    labels, x = scores(1, (2.0, -2.0, 2.0))
    found = fit(labels, x, NAMES)
    assert found.detectors == NAMES
    assert found.weights[1] == 0
    without = fit(labels, x[:, [0, 2]], ("a.lite", "c.lite"))
    np.testing.assert_allclose([found.weights[0], found.weights[2]], without.weights, atol=1e-4)


def test_independent_detectors_together_beat_each_on_images_that_were_not_fitted_on() -> None:
    found = fit(*scores(2, (2.0, 2.0, 0.0)), NAMES)
    labels, x = scores(3, (2.0, 2.0, 0.0), 3000)
    alone = [auroc(labels, column) for column in x.T]
    assert auroc(labels, found.log_odds(x)) > max(alone) + 0.05
    # Calibrated and independent: the sum, a little drawn towards 0.
    assert found.weights[:2] == pytest.approx((1, 1), abs=0.25)


def test_classes_count_alike_unless_told_otherwise() -> None:
    labels, x = scores(4, (2.0,), 900)
    rare = labels & (np.arange(900) % 30 == 0)
    kept = ~labels | rare
    found = fit(labels[kept], x[kept], NAMES[:1])
    fused = found.log_odds(x)
    assert np.mean(fused[labels] > 0) == pytest.approx(np.mean(fused[~labels] <= 0), abs=0.1)
    assert fit(labels[kept], x[kept], NAMES[:1], importance=np.ones(kept.sum())).offset < found.offset - 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), columns=st.integers(1, 4), l2=st.sampled_from([0.1, 1.0, 10.0]))
def test_no_weight_is_negative_and_order_and_copies_change_nothing(seed: int, columns: int, l2: float) -> None:
    labels, x = scores(seed, tuple(np.random.default_rng(seed).uniform(-2, 2, columns)), 60)
    names = [f"d{i}.lite" for i in range(columns)]
    found = fit(labels, x, names, l2=l2)
    assert min(found.weights) >= 0
    turned = fit(labels, x[:, ::-1], names[::-1], l2=l2)
    np.testing.assert_allclose(found.weights, turned.weights[::-1], atol=2e-3)
    assert fit(labels, x, names, l2=l2) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(6)}, "needs both"),
        ({"scores": np.full((6, 1), np.nan)}, "lack a detector's score"),
    ],
)
def test_data_that_cannot_be_fitted_on_are_refused(change: dict[str, NDArray[np.float64]], message: str) -> None:
    given_ = {"labels": np.arange(6) % 2, "scores": np.arange(6.0)[:, None], "detectors": ["a.lite"], **change}
    with pytest.raises(DatasetError, match=message):
        fit(**given_)  # type: ignore[arg-type]


MADE = Fusion(
    detectors=("dummy", "m.t", "idle.lite"),
    weights_sha256=("", "w" * 64, "i" * 64),
    weights=(0.5, 2.0, 0.0),
    offset=-1.0,
    l2=1.0,
    real=3,
    generated=2,
)


def row(path: str, detector: str, log_odds: float | None, **changes: str) -> Prediction:
    weights, sha256 = {"dummy": ("", ""), "m": ("t", "w" * 64)}[detector]
    values = {"error": "no image"} if log_odds is None else {"label": "real"}
    base = {"path": path, "sha256": path * 8, "detector": detector, "weights": weights, "core_version": "1"}
    return Prediction(**{"weights_sha256": sha256, **base, **values, **changes}, log_odds=log_odds)  # type: ignore[arg-type]


def test_rows_are_fused_image_by_image_and_errors_stay_errors() -> None:
    rows = [row("one", "dummy", 2.0), row("two", "dummy", 4.0), row("two", "m", None), row("one", "m", 0.25)]
    first, second = MADE.rows(rows)
    assert (first.path, first.log_odds, first.label) == ("one", 0.5 * 2 + 2 * 0.25 - 1, "generated")
    assert first.detector == fusion.NAME
    assert first.weights_sha256 == MADE.sha256
    assert (second.path, second.log_odds, second.label) == ("two", None, "")
    assert second.error == "no score to fuse from m.t: no image"


def test_scores_of_other_weights_or_without_a_needed_detector_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"needs scores of m\.t"):
        MADE.rows([row("one", "dummy", 1.0)])
    with pytest.raises(DatasetError, match=r"was fitted on scores of m\.t wwwwwwwwwwww, these are of x"):
        MADE.rows([row("one", "dummy", 1.0), row("one", "m", 1.0, weights_sha256="x")])


def test_a_missing_score_is_missing_only_where_it_counts() -> None:
    fused = MADE.log_odds([[2.0, 1.0, np.nan], [2.0, np.nan, 1.0]])
    assert fused[0] == pytest.approx(0.5 * 2 + 2 - 1)
    assert np.isnan(fused[1])
    with pytest.raises(ValueError, match="for 3 detectors"):
        MADE.log_odds([[1.0]])


def test_a_file_holds_it_and_a_damaged_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "fusion.json"
    path.write_text(json.dumps(MADE.to_dict()))
    assert fusion.read(path) == MADE
    path.write_text(json.dumps({"detectors": [], "fusion": MADE.to_dict()}))
    assert fusion.read(path) == MADE
    for values, message in (
        ({**MADE.to_dict(), "weights": [1, -1, 0]}, "damaged fusion"),
        ({"schema_version": 9}, "not a fusion of version 1"),
        ([], "not a fusion"),
    ):
        path.write_text(json.dumps(values))
        with pytest.raises(DatasetError, match=message):
            fusion.read(path)


def test_zoo_eval_adds_the_fusion(tmp_path: Path) -> None:
    for label, bright in (("real", 60), ("fake", 180)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for index in range(3):
            pixels = np.asarray(photo(48, 48, index)) // 4 + bright - 60
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "set" / label / f"{index}.png")
    file = tmp_path / "fusion.json"
    plain = {**MADE.to_dict(), "detectors": ["dummy"], "weights_sha256": [""], "weights": [2.0], "offset": 3.0}
    file.write_text(json.dumps(plain))
    command = ["eval", "-d", "dummy", "--data", str(tmp_path / "set"), "--fuse", str(file), "--format", "json"]
    done = CliRunner().invoke(main, [*command, "--predictions", str(tmp_path / "p.jsonl"), "--resamples", "100"])
    assert done.exit_code == 0, done.output
    alone, fused = json.loads(done.stdout)["detectors"]
    assert (fused["detector"], fused["equalised"]) == (fusion.NAME, True)
    np.testing.assert_allclose(fused["log_odds"], 2 * np.array(alone["log_odds"]) + 3, rtol=1e-6)
    # The fusion is computed, not stored: only the detectors' own rows are kept.
    assert {one.detector for one in predictions.read(tmp_path / "p.jsonl")} == {"dummy"}

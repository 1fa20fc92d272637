"""The weights in the wheel: all seven score offline, and score what they scored when they were measured."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

import detector_zoo
from detector_zoo import registry
from detector_zoo.cli import main

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.jpg"))
SEVEN = ("cnnspot", "corvi", "inpx", "mdmf", "patch_shuffle", "stay_positive", "ufd_clip")
LIMIT = 25_000_000

# Log-odds of the pictures below on the machine that the weights were trained on.
GOLDEN: dict[str, dict[str, float]] = {
    "cnnspot": {"ramp": -2.568, "noise": -0.293, "shapes": 3.353},
    "corvi": {"ramp": -1.359, "noise": 10.021, "shapes": 2.734},
    "inpx": {"ramp": 0.005, "noise": 3.692, "shapes": 1.197},
    "mdmf": {"ramp": -1.505, "noise": -1.95, "shapes": -1.625},
    "patch_shuffle": {"ramp": -0.826, "noise": 8.016, "shapes": -2.168},
    "stay_positive": {"ramp": -0.751, "noise": 10.083, "shapes": 2.867},
    "ufd_clip": {"ramp": -1.93, "noise": 0.976, "shapes": -1.248},
}


def pictures() -> dict[str, Image.Image]:
    """Three pictures that any machine draws alike."""
    ramp = np.linspace(0, 255, 256, dtype=np.uint8)
    shapes = Image.new("RGB", (500, 420), (120, 140, 90))
    draw = ImageDraw.Draw(shapes)
    for index in range(40):
        left, top = index * 37 % 430, index * 53 % 350
        colour = (index * 41 % 256, index * 67 % 256, index * 97 % 256)
        draw.rectangle((left, top, left + 20 + index, top + 60 - index), fill=colour)
    return {
        "ramp": Image.fromarray(np.stack([np.tile(ramp, (200, 1))] * 3, axis=-1)),
        "noise": Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)),
        "shapes": shapes,
    }


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DETECTOR_ZOO_HOME", str(tmp_path))


@pytest.mark.parametrize("method", SEVEN)
def test_golden_scores(method: str) -> None:
    detector = detector_zoo.load(method, device="cpu")
    assert detector.name == f"{method}.lite"
    given = pictures()
    assert set(GOLDEN[method]) == set(given)
    for name, picture in given.items():
        assert detector.score([picture])[0] == pytest.approx(GOLDEN[method][name], abs=0.05), name


def test_all_seven_score_the_examples_without_a_network() -> None:
    done = CliRunner().invoke(main, ["score", "-d", "all", "--format", "json", *map(str, EXAMPLES)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["detector"] for row in rows} >= set(SEVEN)
    ours = [row for row in rows if row["detector"] in SEVEN]
    assert len(ours) == 7 * len(EXAMPLES) == 56
    assert {row["weights"] for row in ours} == {"lite"}
    assert all(np.isfinite(row["log_odds"]) and row["calibrated"] and not row["error"] for row in ours)


def test_the_lite_weights_together_fit_the_wheel() -> None:
    sizes = {}
    for method in SEVEN:
        spec = registry.lookup(f"{method}.lite")
        assert registry.resolve(method)[1] == spec
        content = (files(f"detector_zoo_{method}") / "weights" / "lite.safetensors").read_bytes()
        assert len(content) == spec.bytes
        sizes[method] = len(content)
    assert sum(sizes.values()) <= LIMIT, sizes

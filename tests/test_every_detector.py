"""What must hold for every detector whose weights are at hand, ours and whatever else is installed."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector_zoo import images, load, registry, weights
from detector_zoo.detector import Localizer
from detector_zoo.loading import LoadedDetector
from detector_zoo.plugins import list_detectors
from detector_zoo.scoring import Options, run

from conftest import photo

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TOLERANCE = 1e-4
ODD_SIZES = [(1, 1), (1, 300), (17, 16), (33, 700), (257, 255), (700, 520)]


def at_hand() -> list[str]:
    """Names of the detectors that can score now: without weights, or with weights on this machine."""
    infos = [(info.name, registry.resolve(info.name)[1]) for info in list_detectors()]
    return [name for name, spec in infos if spec is None or weights.locate(spec)]


@pytest.fixture(scope="module", params=at_hand())
def detector(request: pytest.FixtureRequest) -> LoadedDetector:
    return load(request.param)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The examples, and synthetic pictures of several sizes, some of them shared."""
    folder = tmp_path_factory.mktemp("files")
    for i, (width, height) in enumerate([(300, 200), (200, 300), (300, 200), (64, 64), (450, 410), (450, 410)]):
        photo(width, height, i).save(folder / f"{i}.png")
    return [*sorted(EXAMPLES.glob("*.jpg")), *sorted(folder.iterdir())]


def scores(paths: list[Path], detector: LoadedDetector, options: Options) -> dict[str, float]:
    rows = [row for rows in run(map(str, paths), [detector], options) for row in rows]
    assert not [row.error for row in rows if row.error]
    return {row.path: row.log_odds for row in rows if row.log_odds is not None}


@pytest.fixture(scope="module")
def expected(detector: LoadedDetector, files: list[Path]) -> dict[str, float]:
    return scores(files, detector, Options(batch_size=1, workers=0))


def test_a_score_does_not_depend_on_batch_workers_or_order(
    detector: LoadedDetector, files: list[Path], expected: dict[str, float]
) -> None:
    shuffled = random.Random(1).sample(files, len(files))
    for paths, options in ((files, Options(batch_size=16, workers=2)), (shuffled, Options(batch_size=3, workers=2))):
        assert scores(paths, detector, options) == pytest.approx(expected, abs=TOLERANCE)


def test_path_bytes_array_and_picture_score_alike(
    detector: LoadedDetector, files: list[Path], expected: dict[str, float]
) -> None:
    for path in (files[0], files[-1]):
        with Image.open(path) as picture:
            sources = [path, str(path), path.read_bytes(), np.asarray(picture.convert("RGB")), picture]
            found = detector.score(sources)
        assert found == pytest.approx(expected[str(path)], abs=TOLERANCE)


def test_the_seed_does_not_matter(detector: LoadedDetector, files: list[Path], expected: dict[str, float]) -> None:
    torch = pytest.importorskip("torch")
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # the legacy state, which a careless detector would read
        random.seed(seed)
        assert detector.score([files[0]]) == pytest.approx(expected[str(files[0])], abs=TOLERANCE)


@pytest.mark.parametrize("size", ODD_SIZES)
def test_any_size_is_scored(detector: LoadedDetector, size: tuple[int, int]) -> None:
    picture = photo(*size)
    (score,) = detector.score([picture])
    assert np.isfinite(score)
    if isinstance(detector.detector, Localizer):
        heat = detector.heatmap(picture)
        assert heat.shape == (size[1], size[0])
        assert np.isfinite(heat).all()


def test_a_large_photograph_is_scored(detector: LoadedDetector) -> None:
    decoded = images.decode(Image.effect_noise((6000, 4000), 40).convert("RGB"))
    assert np.isfinite(detector.forward([detector.prepare(decoded)])).all()


def test_metadata_is_complete(detector: LoadedDetector) -> None:
    info, spec = detector.info, detector.spec
    assert info.summary
    if spec is None:
        return
    assert spec.licence
    assert spec.trained_on
    assert info.paper is not None
    assert info.paper.bibtex.startswith("@")
    assert info.card is not None
    card = info.card.read_text("utf-8")
    for heading in ("## Training data", "## Results", "## Limits and known shortcuts", "## Licence"):
        assert f"\n{heading}\n" in card


def test_importing_a_plugin_imports_nothing_heavy() -> None:
    modules = {
        point.load().__name__ for point in __import__("detector_zoo.plugins").plugins.entry_points("detector_zoo")
    }
    code = f"import {', '.join(sorted(modules))}, sys; print(*{{'torch', 'numpy', 'timm', 'PIL'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_golden_scores_of_the_dummy() -> None:
    flat = [Image.new("RGB", (5, 4), (value,) * 3) for value in (0, 51, 127, 128, 255)]
    golden = [-6.2324, -1.3863, -0.0078, 0.0078, 6.2324]
    assert load("dummy").score(flat) == pytest.approx(golden, abs=1e-4)

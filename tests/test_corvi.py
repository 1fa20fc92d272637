"""Corvi against torchvision's network with the two strides edited, tiled and untiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import detector_zoo_corvi
import resnets
from detector_zoo import load
from detector_zoo.networks.positionwise import PositionwiseDetector
from detector_zoo.networks.tiling import Geometry

from conftest import photo

SIZES = [(64, 64), (97, 61), (250, 33), (7, 131), (1, 1), (224, 40)]
# Of seeded weights and pictures; they guard against drift.
GOLDEN = (3.837393, 3.101274)


@pytest.fixture(scope="module")
def detector() -> PositionwiseDetector:
    return resnets.build("corvi", resnets.state())


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    return resnets.reference(1, resnets.state())


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_torchvisions(
    detector: PositionwiseDetector, reference: torch.nn.Module, size: tuple[int, int]
) -> None:
    image = photo(*size)
    assert detector.score([image]) == pytest.approx(resnets.reference_logit(reference, image), abs=1e-4)


def test_golden_scores(detector: PositionwiseDetector) -> None:
    assert detector.score([photo(90, 70, 3)]) == pytest.approx(GOLDEN[0], abs=1e-4)
    assert detector.score([photo(33, 64, 4)]) == pytest.approx(GOLDEN[1], abs=1e-4)


@pytest.mark.parametrize("kind", resnets.PATTERNS)
def test_tiles_change_nothing(detector: PositionwiseDetector, kind: str) -> None:
    tiled = resnets.build("corvi", resnets.state())
    tiled.memory = round(97 * 170 * 4 * 579 / 0.6)
    image = resnets.pattern(kind, 251, 97)
    assert tiled.score([image]) == pytest.approx(detector.score([image]), abs=1e-3)


def test_resolution_is_halved_three_times(detector: PositionwiseDetector) -> None:
    assert detector.network.geometry == Geometry(stride=8, radius=56)
    with torch.inference_mode():
        assert detector.network.features(torch.zeros(1, 3, 40, 17)).shape == (1, 2048, 5, 3)


@pytest.mark.parametrize("container", ["model", "bare", "state_dict"])
def test_the_authors_file_is_converted_and_scores(tmp_path: Path, reference: torch.nn.Module, container: str) -> None:
    file = tmp_path / "w.pth"
    tensors = dict(resnets.state())
    if container == "model":
        resnets.authors_file(file, tensors)
    else:
        torch.save(tensors if container == "bare" else {container: tensors}, file)
    done = resnets.zoo("weights", "import", "corvi.mine", file)
    assert done.exit_code == 0, done.output
    image = photo(60, 44)
    assert load("corvi.mine", device="cpu").score([image]) == pytest.approx(
        resnets.reference_logit(reference, image), abs=1e-4
    )


def test_other_strides_are_another_detector(detector: PositionwiseDetector) -> None:
    image = photo(64, 64)
    assert abs(detector.score([image]) - resnets.build("cnnspot", resnets.state()).score([image])) > 1e-3


def test_the_class_is_a_public_name_of_the_package() -> None:
    from detector_zoo_corvi import model

    assert detector_zoo_corvi.Corvi is model.Corvi
    with pytest.raises(AttributeError, match="has no attribute 'Corvus'"):
        detector_zoo_corvi.Corvus  # noqa: B018

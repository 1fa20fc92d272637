"""CNNSpot against torchvision's own network and transforms, and its weights' way in."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision

import resnets
from detector_zoo import load, registry
from detector_zoo.detector import Weights
from detector_zoo.errors import WeightsError
from detector_zoo.networks.positionwise import PositionwiseDetector
from detector_zoo.registry import WeightSpec
from detector_zoo_cnnspot.model import CNNSpot

from conftest import photo

SIZES = [(224, 224), (301, 257), (97, 131), (1, 1), (5, 260)]
# Of seeded weights and pictures; they guard against drift.
GOLDEN = (3.800352, 4.900729)


@pytest.fixture(scope="module")
def whole() -> PositionwiseDetector:
    return resnets.build("cnnspot", resnets.state())


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    return resnets.reference(2, resnets.state())


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_torchvisions(
    whole: PositionwiseDetector, reference: torch.nn.Module, size: tuple[int, int]
) -> None:
    image = photo(*size)
    assert whole.score([image]) == pytest.approx(resnets.reference_logit(reference, image), abs=1e-4)


@pytest.mark.parametrize("size", [(300, 257), (225, 223), (100, 91), (1, 1), (90, 400)])
def test_the_crop_is_torchvisions(reference: torch.nn.Module, size: tuple[int, int]) -> None:
    image = photo(*size)
    cropped = resnets.build("cnnspot", resnets.state(), crop=224)
    assert cropped.score([image]) == pytest.approx(resnets.reference_logit(reference, image, 224), abs=1e-4)
    heat = cropped.heatmap([image])
    assert heat.shape == (1, size[1], size[0])


def test_golden_scores(whole: PositionwiseDetector) -> None:
    images = [photo(200, 150, 3), photo(64, 96, 4)]
    assert whole.score(images[:1]) == pytest.approx(GOLDEN[0], abs=1e-4)
    assert whole.score(images[1:]) == pytest.approx(GOLDEN[1], abs=1e-4)


def test_tiles_change_nothing(whole: PositionwiseDetector) -> None:
    tiled = resnets.build("cnnspot", resnets.state())
    tiled.memory = round(500 * 600 * 4 * 39 / 0.6)
    for kind in ("random", "checkerboard"):
        image = resnets.pattern(kind, 699, 500)
        assert tiled.score([image]) == pytest.approx(whole.score([image]), abs=1e-3)


def test_the_authors_file_is_converted_and_scores(tmp_path: Path, reference: torch.nn.Module) -> None:
    file = resnets.authors_file(tmp_path / "blur_jpg.pth", resnets.state())
    done = resnets.zoo("weights", "import", "cnnspot.mine", file)
    assert done.exit_code == 0, done.output
    image = photo(120, 90)
    (score,) = load("cnnspot.mine", device="cpu").predict([image])
    assert score.raw == pytest.approx(resnets.reference_logit(reference, image), abs=1e-4)
    assert not score.calibrated
    refused = resnets.zoo("weights", "import", "cnnspot.blur_jpg_0_5", file)
    assert refused.exit_code == 1
    assert "md5" in refused.output, "weights that the catalogue knows must be the authors'"


def others() -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    """Files of other architectures, and the first key that does not fit."""
    with torch.device("meta"):
        networks = {
            "resnet18": (torchvision.models.resnet18(), "'layer1.0.conv1.weight' of shape (64, 64, 1, 1), got (64, 64"),
            "classes": (torchvision.models.resnet50(), "'fc.weight' of shape (1, 2048), got (1000, 2048)"),
            "transformer": (timm.create_model("vit_tiny_patch16_224"), "'conv1.weight' of shape (64, 3, 7, 7), it is"),
        }
    return {
        name: ({key: torch.zeros(value.shape, dtype=value.dtype) for key, value in network.state_dict().items()}, words)
        for name, (network, words) in networks.items()
    }


@pytest.mark.parametrize("kind", ["resnet18", "classes", "transformer"])
def test_another_architecture_is_refused(tmp_path: Path, own_home: Path, kind: str) -> None:
    tensors, words = others()[kind]
    torch.save(tensors, tmp_path / "w.pth")
    done = resnets.zoo("weights", "import", "cnnspot.mine", tmp_path / "w.pth")
    assert done.exit_code == 1
    assert words in done.output
    assert not list(own_home.rglob("cnnspot.mine*")), "nothing of it is kept"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "resnet18"}, "architecture 'resnet18' is unknown"),
        ({"conv1_stride": 3}, "conv1_stride is 3, expected 1 or 2"),
        ({"maxpool_stride": True}, "maxpool_stride is True"),
        ({"nonnegative": True}, "unknown key 'nonnegative'"),
    ],
)
def test_a_wrong_configuration_is_refused(config: dict[str, object], words: str) -> None:
    with pytest.raises(WeightsError, match=r"^cnnspot\.x: config: ") as caught:
        CNNSpot.from_weights(Weights(WeightSpec(name="cnnspot.x", config=config), {}))
    assert words in str(caught.value)


def test_the_catalogue_has_both_weights_and_the_papers_crop() -> None:
    for tag in ("blur_jpg_0_5", "blur_jpg_0_1"):
        _, spec = registry.resolve(f"cnnspot.{tag}@crop224")
        assert spec is not None
        assert (spec.variant, spec.preprocessing["crop"]) == ("crop224", 224)
        assert spec.preprocessing["exif_orientation"] == "ignore"


@pytest.mark.parametrize("name", sorted(resnets.PUBLISHED.values()))
def test_without_weights_one_line_says_how_to_get_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(9, 9).save(tmp_path / "a.png")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = resnets.zoo("score", "-d", name, tmp_path / "a.png")
    assert done.exit_code == 1
    error, hint = done.output.strip().splitlines()
    _, spec = registry.resolve(name)
    assert spec is not None
    assert error.startswith(f"Error: {spec.name}: ")
    assert hint.startswith("Hint: ")
    assert hint.endswith(f"zoo weights import {spec.name} FILE")
    assert spec.how_to_get.startswith("Download https://")
    assert spec.how_to_get in resnets.zoo("info", name).output

"""Stay-Positive: Corvi's network, whose last layer has no negative weight."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import resnets
from detector_zoo import load
from detector_zoo.errors import WeightsError
from detector_zoo.networks.positionwise import PositionwiseDetector
from detector_zoo_corvi import Corvi

from conftest import photo

POSITIVE = resnets.state(nonnegative=True)
# Of seeded weights and pictures; they guard against drift.
GOLDEN = (1.636372, 1.578101)


@pytest.fixture(scope="module")
def detector() -> PositionwiseDetector:
    return resnets.build("stay_positive", POSITIVE)


def test_it_is_corvis_network_and_transform(detector: PositionwiseDetector) -> None:
    assert isinstance(detector, Corvi)
    image = photo(81, 57)
    expected = resnets.reference_logit(resnets.reference(1, POSITIVE), image)
    assert detector.score([image]) == pytest.approx(expected, abs=1e-4)
    assert resnets.build("corvi", POSITIVE).score([image]) == pytest.approx(expected, abs=1e-4)


def test_golden_scores(detector: PositionwiseDetector) -> None:
    assert detector.score([photo(90, 70, 3)]) == pytest.approx(GOLDEN[0], abs=1e-4)
    assert detector.score([photo(33, 64, 4)]) == pytest.approx(GOLDEN[1], abs=1e-4)


def test_nothing_speaks_for_a_real_image(detector: PositionwiseDetector) -> None:
    image = photo(81, 57)
    evidence = detector.evidence(image)
    assert evidence["real"] == 0
    assert evidence["fake"] > 0.1
    assert sum(evidence.values()) == pytest.approx(float(detector.score([image])[0]), abs=1e-5)
    lowest = evidence["bias"]
    assert detector.heatmap([image]).min() >= lowest - 1e-5, "no position either"


def test_the_base_detector_has_both_kinds_of_evidence() -> None:
    evidence = resnets.build("corvi", resnets.state()).evidence(photo(81, 57))
    assert evidence["real"] < -0.1
    assert evidence["fake"] > 0.1


def test_negative_weights_are_refused() -> None:
    tensors = dict(POSITIVE)
    tensors["fc.weight"] = tensors["fc.weight"].clone()
    tensors["fc.weight"][0, [3, 700, 2047]] = torch.tensor([-0.5, -0.25, -1e-9])
    with pytest.raises(WeightsError) as caught:
        resnets.build("stay_positive", tensors)
    assert "3 of the 2048 entries of 'fc.weight' are negative, the smallest -0.5:" in str(caught.value)


def test_only_a_base_detector_may_have_them(tmp_path: Path, own_home: Path) -> None:
    file = resnets.authors_file(tmp_path / "w.pth", resnets.state())
    for name in ("stay_positive.mine", "stay_positive.corvi_plus", "stay_positive.rajan_plus"):
        done = resnets.zoo("weights", "import", name, file)
        assert done.exit_code == 1
        assert f"{name}: {(resnets.state()['fc.weight'] < 0).sum()} of the 2048 entries" in done.output
        assert "--like stay_positive.rajan" in done.output
    assert not list(own_home.rglob("stay_positive*.safetensors"))
    image = photo(40, 32)
    expected = resnets.reference_logit(resnets.reference(1, resnets.state()), image)
    for words in (["stay_positive.rajan", file], ["stay_positive.base", file, "--like", "stay_positive.rajan"]):
        done = resnets.zoo("weights", "import", *words)
        assert done.exit_code == 0, done.output
        assert load(str(words[0]), device="cpu").score([image]) == pytest.approx(expected, abs=1e-4)


def test_a_wrong_flag_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from detector_zoo_stay_positive.model import StayPositive

    with pytest.raises(WeightsError, match="nonnegative is 'no', expected true or false"):
        StayPositive.build({"nonnegative": "no"})


def test_metadata_of_both_packages_import_no_torch() -> None:
    code = "import detector_zoo_stay_positive, detector_zoo_corvi, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

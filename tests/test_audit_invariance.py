"""`zoo audit invariance`: what moves a score that should not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from audit_fakes import Bright, loaded
from detector_zoo import TorchDetector
from detector_zoo.errors import DatasetError, ImageError
from detector_zoo.evaluation.invariance import Change, Invariance, invariance

from conftest import photo


class Leaky(TorchDetector):
    """Looks at the whole batch, and at the first pixel."""

    leak = 0.0
    corner = 0.0

    def __init__(self, leak: float = 0.0, corner: float = 0.0) -> None:
        self.network = torch.nn.Identity()
        self.leak, self.corner = leak, corner

    def transform(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        own = batch.mean((1, 2, 3)) - 0.5 + self.corner * batch[:, 0, 0, 0]
        return own + self.leak * len(batch)


def pictures(folder: Path, count: int = 3, kind: str = "png") -> list[Path]:
    paths = [folder / f"{i}.{kind}" for i in range(count)]
    for i, path in enumerate(paths):
        photo(32 + 8 * i, 40, seed=i).save(path)
    return paths


def by_name(result: Invariance) -> dict[str, Change]:
    return {change.variation: change for change in result.changes}


def test_nothing_moves_a_mean_but_a_pixel(tmp_path: Path) -> None:
    result = invariance(pictures(tmp_path), loaded(Bright()))
    changes = by_name(result)
    for name in (
        "batch of 2",
        "batch of 8",
        "decoder torchvision",
        "saved as PNG",
        *(f"EXIF orientation {i}" for i in (3, 6, 8)),
    ):
        assert changes[name].largest < 1e-5
        assert changes[name].images == 3
    cuts = [changes[f"without the {side} line of pixels"] for side in ("left", "top", "right", "bottom")]
    assert all(cut.largest > 1e-3 for cut in cuts)
    assert [change.largest for change in result.changes] == sorted((c.largest for c in result.changes), reverse=True)
    assert result.images == 3
    assert (result.origin.real, result.origin.generated) == (0, 0)


def test_a_batch_that_leaks_is_found(tmp_path: Path) -> None:
    paths = pictures(tmp_path)
    found = by_name(invariance(paths, loaded(Leaky(leak=0.25)), batches=(2, 5)))
    assert found["batch of 2"].largest == pytest.approx(0.25, abs=1e-5)
    assert found["batch of 5"].largest == pytest.approx(1.0, abs=1e-5)
    assert found["batch of 5"].mean == pytest.approx(1.0, abs=1e-5)
    assert found["saved as PNG"].largest < 1e-6


def test_the_worst_image_and_changed_verdicts_are_named(tmp_path: Path) -> None:
    paths = pictures(tmp_path)
    special = np.asarray(photo(40, 40, seed=9)).copy()
    special[0] = 0
    special[0, 0] = 255
    Image.fromarray(special).save(paths[1])
    found = by_name(invariance(paths, loaded(Leaky(corner=3.0))))
    cut = found["without the left line of pixels"]
    assert cut.worst == str(paths[1])
    assert cut.largest == pytest.approx(3.0, abs=0.05)
    assert cut.flips >= 1
    assert found["saved as PNG"].worst == ""


def test_orientation_is_the_detectors_business(tmp_path: Path) -> None:
    spec = SimpleNamespace(
        preprocessing={"exif_orientation": "ignore"}, calibration=None, tag="t", variant="", sha256=""
    )
    ignoring = loaded(Leaky(corner=3.0))
    object.__setattr__(ignoring, "spec", spec)
    (path,) = pictures(tmp_path, 1)
    pixels = np.asarray(Image.open(path)).copy()
    pixels[:1] = pixels[-1:] = 0
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(path)
    result = invariance([path], ignoring)
    assert result.orientation == "ignore"
    assert "This detector ignores EXIF orientation" in result.tables()[0].note
    changes = by_name(result)
    assert changes["EXIF orientation 3"].largest == pytest.approx(3.0)
    applied = by_name(invariance([path], loaded(Leaky(corner=3.0))))
    assert applied["EXIF orientation 3"].largest < 1e-6


def test_a_tagged_photograph_is_compared_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "tagged.jpg"
    photo(48, 32, seed=1).save(path, exif=exif)
    changes = by_name(invariance([path], loaded(Bright())))
    for name in ("EXIF orientation 3", "EXIF orientation 6", "saved as PNG", "decoder torchvision", "batch of 2"):
        assert changes[name].largest < 1e-5


def test_other_devices_and_decoders_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    paths = pictures(tmp_path, 1, "bmp")
    result = invariance(paths, loaded(Leaky()), others={"other": loaded(Leaky(leak=0.5))})
    assert by_name(result)["device other"].largest == pytest.approx(0.5)
    assert result.unmeasured == {
        "decoder torchvision": "it does not read this format",
        "decoder OpenCV": "cv2 is not installed, or lacks it",
    }
    assert "cv2 is not installed, or lacks it" in result.tables()[0].note
    alone = invariance(paths, loaded(Leaky()))
    assert alone.unmeasured["device"] == "no other device was given"


def test_a_picture_of_one_pixel_cannot_be_cut(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    result = invariance([tmp_path / "dot.png"], loaded(Bright()))
    assert result.unmeasured["without the left line of pixels"] == "only one pixel wide or high"


def test_what_cannot_be_audited(tmp_path: Path) -> None:
    paths = pictures(tmp_path, 2)
    with pytest.raises(ValueError, match="no batch"):
        invariance(paths, loaded(Bright()), batches=(1,))
    paths[0].write_bytes(b"no")
    with pytest.raises(ImageError, match="not an image"):
        invariance(paths, loaded(Bright()))
    assert len(invariance(paths, loaded(Bright()), skip_bad=True).origin.failures) == 1
    with pytest.raises(DatasetError, match="no image could be scored"):
        invariance(paths[:1], loaded(Bright()), skip_bad=True)

"""`zoo audit format`: is it the picture, or the file?"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from audit_fakes import Bright, Grid, bright_and_dark, loaded, planted, sample
from detector_zoo.errors import DatasetError, ImageError, ZooError
from detector_zoo.evaluation import format_audit as module
from detector_zoo.evaluation.equalise import equalise_file
from detector_zoo.evaluation.file_facts import GROUPS, file_facts
from detector_zoo.evaluation.format_audit import format_audit

from conftest import encoded, photo


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TREES", 15)


def test_a_planted_shortcut_is_found_and_gone_after_equalising(tmp_path: Path) -> None:
    result = format_audit(planted(tmp_path, 20), loaded(Grid()), resamples=300)
    assert result.shortcut
    for group in ("codec", "quantisation", "subsampling", "all together"):
        assert result.before[group].value == 1.0
        assert result.after[group].low <= 0.5 <= result.after[group].high
    assert result.before["size"].value == 0.5  # both classes have one size
    share = result.detector
    assert share is not None
    assert share.before.value > 0.95
    assert share.after.low <= 0.5 <= share.after.high
    assert share.share.value > 0.6
    assert share.share.low <= share.share.value <= share.share.high
    assert share.drop.value == pytest.approx(share.before.value - share.after.value)
    assert result.codecs == {"JPEG": {"real": 20, "generated": 0}, "PNG": {"real": 0, "generated": 20}}
    text = "\n".join(table.note for table in result.tables())
    assert "Files tell the classes apart" in text


def test_twins_that_no_group_names_are_found_by_their_looks(tmp_path: Path) -> None:
    samples = [replace(s, group="") for s in planted(tmp_path, 12, side=96)]
    result = format_audit(samples, resamples=50)
    assert (result.pictures, result.few) == (12, False)
    assert result.before["codec"].value == 1.0
    assert result.before["size"].value == 0.5
    assert all(metric.value == 0.5 for metric in result.after.values())


def test_perfect_separation_of_few_pictures_is_not_certain(tmp_path: Path) -> None:
    result = format_audit(planted(tmp_path, 4, side=96), resamples=50)
    assert (result.before["codec"].value, result.pictures, result.few) == (1.0, 4, True)
    assert result.before["codec"].low < 0.5
    assert not result.shortcut
    assert "4 pictures are too few" in result.tables()[0].note


def test_abstentions_are_counted_and_in_no_auroc(tmp_path: Path) -> None:
    samples = bright_and_dark(tmp_path, 8, (330, 330))
    plain = format_audit(samples, loaded(Bright()), resamples=50).detector
    unsure = format_audit(samples, loaded(Bright(), inconclusive=100.0), resamples=50).detector
    assert plain is not None
    assert unsure is not None
    assert plain.abstained == (0, 0)
    assert unsure.abstained == (16, 16)
    assert np.isnan([unsure.before.value, unsure.after.value, unsure.drop.value, unsure.share.value]).all()


def test_a_detector_of_content_keeps_its_auroc(tmp_path: Path) -> None:
    result = format_audit(bright_and_dark(tmp_path, 8, (330, 330)), loaded(Bright()), resamples=200)
    assert not result.shortcut
    assert result.detector is not None
    assert result.detector.before.value == 1.0
    assert result.detector.share.high < 0.1
    assert result.before["all together"].value == 0.5  # nothing to tell them by: no fold has an edge over another


def test_no_share_is_told_of_a_detector_at_chance(tmp_path: Path) -> None:
    class Constant(Bright):
        def score(self, pictures):
            return np.zeros(len(pictures), np.float32)

    result = format_audit(bright_and_dark(tmp_path, 4), loaded(Constant()), resamples=50)
    assert result.detector is not None
    assert result.detector.before.value == 0.5
    assert np.isnan(result.detector.share.value)
    assert result.to_dict()["detector"]["share"] == {"value": None, "low": None, "high": None}


def test_size_and_metadata_are_found_each_for_itself(tmp_path: Path) -> None:
    samples = []
    for i in range(10):
        for label, size in (("real", (120, 96)), ("generated", (128, 128))):
            path = tmp_path / f"{label}{i}.png"
            text = PngImagePlugin.PngInfo()
            if label == "generated" and i % 2:
                text.add_text("prompt", "a cat")
            photo(*size, seed=i).save(path, pnginfo=text)
            samples.append(sample(path, label))
    result = format_audit(samples, resamples=50)
    assert result.before["size"].value == 1.0
    assert 0.6 < result.before["metadata"].value < 0.9  # half of the generated ones
    assert result.before["codec"].value == 0.5
    assert result.detector is None
    assert list(result.before) == ["all together", *GROUPS]


def test_pictures_of_one_source_share_a_fold(tmp_path: Path) -> None:
    labels = np.array([False, True] * 12)
    groups = [str(i // 2) for i in range(24)]
    folds = module._folds(labels, groups, 0)
    assert (folds[::2] == folds[1::2]).all()
    assert len(np.unique(folds)) == 5


def test_facts_of_files() -> None:
    image = photo(100, 64)
    jpeg = file_facts(encoded(image, "JPEG", quality=75, subsampling=0, progressive=True))
    other = file_facts(encoded(image, "JPEG", quality=76, subsampling=2))
    assert jpeg["codec"]["is JPEG"] == 1
    assert set(jpeg["subsampling"]) == {"4:4:4"}
    assert set(other["subsampling"]) == {"4:2:0"}
    assert jpeg["quantisation"] != other["quantisation"]
    assert jpeg["metadata"]["progressive"] == 1
    assert (jpeg["size"]["width"], jpeg["size"]["width mod 8"]) == (100, 4)
    assert file_facts(encoded(image, "WEBP", lossless=True))["codec"]["lossless WebP"] == 1
    assert file_facts(encoded(image, "WEBP"))["codec"]["lossless WebP"] == 0
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", 6
    tagged = file_facts(encoded(image, "JPEG", exif=exif, icc_profile=b"x" * 20, dpi=(300, 300)))["metadata"]
    assert (tagged["EXIF make"], tagged["EXIF orientation"], tagged["profile bytes"]) == (1, 6, 20)
    assert tagged["resolution"] == 300
    assert file_facts(encoded(image.convert("L"), "PNG"))["metadata"]["mode L"] == 1
    for facts in (jpeg, other):
        assert tuple(facts) == GROUPS


def test_equalised_files_have_equal_facts_but_for_their_size(tmp_path: Path) -> None:
    photo(400, 400).save(tmp_path / "comment.jpg", comment=b"made by hand")
    assert file_facts((tmp_path / "comment.jpg").read_bytes())["metadata"]["comment"] == 1
    paths = (tmp_path / "comment.jpg", planted(tmp_path, 1)[1].path)
    first, second = (file_facts(module._as_file(equalise_file(path))) for path in paths)
    for group in GROUPS:
        assert group == "size" or first[group] == second[group]


def test_repeats(tmp_path: Path) -> None:
    samples = planted(tmp_path, 4, side=64)
    one, same = (format_audit(samples, resamples=30, seed=3).to_dict() for _ in range(2))
    assert one == same
    assert one["origin"]["seed"] == 3
    assert (one["origin"]["real"], one["origin"]["generated"]) == (4, 4)
    assert one["audit"] == "format"


def test_what_cannot_be_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = planted(tmp_path, 2, side=64)
    with pytest.raises(DatasetError, match="no generated image"):
        format_audit([s for s in samples if not s.generated])
    with pytest.raises(DatasetError, match="fewer than two source images"):
        format_audit(samples[:2])
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no")
    with pytest.raises(ImageError, match=r"bad\.png"):
        format_audit([*samples, sample(bad, "real")])
    result = format_audit([*samples, sample(bad, "real")], skip_bad=True, resamples=30)
    assert len(result.origin.failures) == 1
    assert result.origin.real == 2
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ZooError, match="scikit-learn") as caught:
        format_audit(samples)
    assert "[eval]" in str(caught.value.hint)

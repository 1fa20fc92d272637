"""`zoo audit semantics`: shuffled patches, and label against content."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from audit_fakes import Bright, Grain, bright_and_dark, loaded, sample
from detector_zoo import images
from detector_zoo.errors import DatasetError
from detector_zoo.evaluation import semantics as module
from detector_zoo.evaluation.equalise import equalise_file
from detector_zoo.evaluation.samples import Sample
from detector_zoo.evaluation.semantics import contents_of, shuffle_patches

from conftest import photo

semantics = partial(module.semantics, equalise=False)


def four_cells(folder: Path, count: int) -> list[Sample]:
    """Cats are bright, dogs are dark; generated pictures have grain, real ones have none."""
    found = []
    for i in range(count):
        rng = np.random.default_rng(i)
        for content, level in (("cat", 170), ("dog", 80)):
            for label, grain in (("real", 2), ("generated", 20)):
                pixels = level + rng.normal(0, grain, (64, 64, 3)) + rng.normal(0, 3)
                path = folder / f"{content}-{label}-{i}.png"
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
                found.append(sample(path, label, source=content))
    return found


class Smooth(Grain):
    """Says generated where there is grain."""

    def score(self, pictures):
        return -super().score(pictures)


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 40), st.integers(4, 40), st.integers(1, 8), st.text("0123456789abcdef", min_size=1, max_size=6))
def test_shuffling_keeps_every_patch(width: int, height: int, side: int, sha256: str) -> None:
    image = photo(width, height)
    columns, rows = width // side, height // side
    if columns * rows < 2:
        with pytest.raises(ValueError, match="fewer than two patches"):
            shuffle_patches(image, side, sha256)
        return
    found = shuffle_patches(image, side, sha256)
    assert found.size == (columns * side, rows * side)
    assert found.tobytes() == shuffle_patches(image, side, sha256).tobytes()

    def patches(picture: Image.Image) -> list[bytes]:
        boxes = [(x * side, y * side, (x + 1) * side, (y + 1) * side) for y in range(rows) for x in range(columns)]
        return [picture.crop(box).tobytes() for box in boxes]

    assert sorted(patches(found)) == sorted(patches(image))


def test_shuffling_moves_patches_by_the_files_hash() -> None:
    image = photo(128, 128)
    one, other = (shuffle_patches(image, 16, sha256).tobytes() for sha256 in ("a", "b"))
    assert len({one, other, image.tobytes()}) == 3


def test_a_statistic_of_pixels_stays_and_one_of_neighbours_moves(tmp_path: Path) -> None:
    samples = bright_and_dark(tmp_path, 5, (140, 130))
    stays = semantics(samples, loaded(Bright()), resamples=100)
    assert stays.auroc.value == 1
    for shuffled in stays.shuffled:
        assert shuffled.absolute.value < 1e-5
        assert shuffled.correlation == pytest.approx(1)
        assert (shuffled.drop.low, shuffled.drop.high) == (0, 0)
    assert [shuffled.side for shuffled in stays.shuffled] == [16, 32, 64]
    moves = semantics(samples, loaded(Grain()), sides=(8, 16), resamples=100).shuffled
    assert moves[0].real.value < moves[1].real.value < 0  # more edges between smaller patches
    detector, labels = loaded(Grain()), np.array([s.generated for s in samples])
    decoded = [images.decode(s.path) for s in samples]
    whole = [d.image.crop((0, 0, 128, 128)) for d in decoded]
    before = detector.score(whole)
    after = detector.score([shuffle_patches(w, 8, d.sha256) for w, d in zip(whole, decoded, strict=True)])
    assert moves[0].auroc.value == pytest.approx(roc_auc_score(labels, after))
    assert moves[0].generated.value == pytest.approx((after - before)[labels].mean(), abs=1e-5)
    assert moves[0].absolute.value == pytest.approx(np.abs(after - before).mean(), abs=1e-5)
    assert moves[0].correlation == pytest.approx(np.corrcoef(before, after)[0, 1], abs=1e-4)


def test_images_are_equalised_first_unless_told_otherwise(tmp_path: Path) -> None:
    samples = bright_and_dark(tmp_path, 2, (140, 140))
    result = module.semantics(samples, loaded(Bright()), sides=(32,), resamples=30)
    assert result.origin.equalised
    seen = [np.asarray(equalise_file(s.path))[:128, :128] for s in samples]
    scores = loaded(Bright()).score(seen)
    labels = np.array([s.generated for s in samples])
    assert result.auroc.value == pytest.approx(roc_auc_score(labels, scores))


def test_a_detector_of_content_changes_sides(tmp_path: Path) -> None:
    samples = four_cells(tmp_path, 8)
    contents = contents_of(samples, "source", tmp_path)
    by_content = semantics(samples, loaded(Bright()), contents=contents, sides=(32,), resamples=200).inversion
    assert by_content is not None
    assert by_content.contents == ("cat", "dog")
    assert by_content.a_against_b.value == 1
    assert by_content.b_against_a.value == 0
    assert by_content.gap.value == 1
    assert by_content.content_in_real.value == by_content.content_in_generated.value == 0
    assert by_content.label.low < 0.5 < by_content.label.high
    by_label = semantics(samples, loaded(Smooth()), contents=contents, sides=(32,), resamples=200).inversion
    assert by_label is not None
    figures = (by_label.label_in_a, by_label.label_in_b, by_label.label, by_label.a_against_b, by_label.b_against_a)
    assert [metric.value for metric in figures] == [1] * 5
    assert by_label.gap.value == 0
    assert set(by_label.counts.values()) == {8}


def test_an_empty_cell_has_no_figure(tmp_path: Path) -> None:
    samples = [s for s in four_cells(tmp_path, 4) if s.source == "cat" or not s.generated]
    contents = [s.source if "3" not in s.path.name else "" for s in samples]
    inversion = semantics(samples, loaded(Bright()), contents=contents, sides=(32,), resamples=50).inversion
    assert inversion is not None
    assert np.isnan(inversion.label_in_b.value)
    assert np.isnan(inversion.b_against_a.value)
    assert inversion.label.value == inversion.label_in_a.value
    assert inversion.counts == {"cat real": 3, "cat generated": 3, "dog real": 3, "dog generated": 0}
    assert inversion.unknown == 3


def test_contents_from_a_manifest(tmp_path: Path) -> None:
    samples = [sample(tmp_path / "a" / f"{i}.png", "real", kind="photo") for i in range(3)]
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path,label,animal\na/0.png,real,cat\na/1.png,real,dog\n")
    for place in (manifest, tmp_path):
        assert contents_of(samples, "animal", place) == ["cat", "dog", ""]
    assert contents_of(samples, "folder", tmp_path) == ["a"] * 3
    assert contents_of(samples, "kind", tmp_path) == ["photo"] * 3
    with pytest.raises(DatasetError, match=r"manifest\.csv: no column 'plant'"):
        contents_of(samples, "plant", manifest)
    manifest.unlink()
    with pytest.raises(DatasetError, match="no content column 'animal'"):
        contents_of(samples, "animal", tmp_path)


def test_what_cannot_be_audited(tmp_path: Path) -> None:
    samples = four_cells(tmp_path, 2)
    detector = loaded(Bright())
    contents = ["cat", "dog", "cow", "cat"] * 2
    with pytest.raises(DatasetError, match="the column has 3: cat, cow, dog"):
        semantics(samples, detector, contents=contents)
    with pytest.raises(DatasetError, match="no image of content 'fox'"):
        semantics(samples, detector, contents=contents, pair=("cat", "fox"))
    with pytest.raises(ValueError, match="at least 1 pixel"):
        semantics(samples, detector, sides=(0,))
    with pytest.raises(DatasetError, match="no image of one class could be scored"):
        semantics(samples, detector, sides=(64,))
    photo(40, 40).save(samples[0].path)
    result = semantics(samples, detector, sides=(16, 32), resamples=20)
    assert len(result.origin.failures) == 1
    assert "40 x 40 is too small to shuffle patches of 32" in result.origin.failures[0]
    assert result.origin.real == 3

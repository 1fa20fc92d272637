"""Augmentation and batches: pure functions of their seeds, pairs alike, formats equalised."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.samples import Sample
from detector_zoo.training.augment import OPERATIONS, Augmentation, Picture
from detector_zoo.training.batches import ImageBatches, Mix, probabilities, stream
from detector_zoo.training.pictures import evenly, window
from detector_zoo.training.splits import select
from training_toys import toy_set

from conftest import photo

EVERY = [
    {"resize": {"short": 60}},
    {"rescale": {"scale": [0.8, 1.2]}},
    {"random_resized_crop": {"size": 48, "scale": [0.3, 1]}},
    {"color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}},
    {"grayscale": {"p": 0.5}},
    {"cutout": {"size": 12}},
    {"noise": {"variance": [10, 50]}},
    {"blur": {"sigma": [0, 3]}},
    {"jpeg": {"quality": [30, 100], "subsampling": [0, 2]}},
    {"webp": {"quality": [60, 100]}},
    {"rot90": {}},
    {"flip": {"p": 0.5}},
    {"d4": {}},
    {"random_crop": {"size": 40}},
]


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and np.array_equal(np.asarray(one), np.asarray(other))


def test_every_operation_is_in_the_tests() -> None:
    assert {name for entry in EVERY for name in entry} == set(OPERATIONS)


@pytest.mark.parametrize("entry", EVERY, ids=lambda e: next(iter(e)))
def test_an_operation_is_a_function_of_the_seed_and_does_something(entry: dict[str, dict[str, object]]) -> None:
    operation = Augmentation.of([entry])
    picture = Picture(photo(72, 64))
    results = [operation(picture, (seed,)).image for seed in range(8)]
    assert all(same(operation(picture, (seed,)).image, results[seed]) for seed in range(8))
    assert not all(same(picture.image, result) for result in results)


def test_two_images_of_one_size_get_the_identical_augmentation() -> None:
    # Linear in the pixels and the same places: the augmented difference is the difference of the augmented.
    steps = Augmentation.of(
        [e for e in EVERY if set(e) & {"random_resized_crop", "rot90", "flip", "d4", "random_crop"}]
    )
    where = np.indices((64, 72)).astype(np.uint8)
    one = Image.fromarray(np.stack([where[0], where[1], where[0] * 0], 2))
    other = Image.fromarray(np.stack([where[0], where[1], where[0] * 0 + 200], 2))
    for seed in range(6):
        pixels = [np.asarray(steps(Picture(image), (3, seed)).image) for image in (one, other)]
        assert np.array_equal(pixels[0][..., :2], pixels[1][..., :2])
        assert (pixels[1][..., 2] == 200).all()
    noisy = Augmentation.of([{"noise": {"variance": [20, 20]}}])
    flat = [Image.new("RGB", (32, 32), (value,) * 3) for value in (100, 150)]
    first, second = (np.asarray(noisy(Picture(image), (1,)).image, int) for image in flat)
    assert np.array_equal(first - 100, second - 150)
    assert 3 < first.std() < 6


def test_the_mask_moves_with_the_image() -> None:
    mask = Image.fromarray((np.indices((64, 72))[1] < 30).astype(np.uint8) * 255)
    picture = Picture(Image.merge("RGB", [mask] * 3), mask)
    for seed in range(8):
        moved = Augmentation.of([e for e in EVERY if set(e) & {"rescale", "random_resized_crop", "rot90", "d4"}])(
            picture, (seed,)
        )
        assert moved.mask is not None
        assert same(moved.image.convert("L"), moved.mask)


def test_probability_is_a_frequency() -> None:
    flip = Augmentation.of([{"flip": {"p": 0.2}}])
    picture = Picture(photo(9, 8))
    flipped = sum(not same(flip(picture, (seed,)).image, picture.image) for seed in range(600))
    assert 0.14 < flipped / 600 < 0.27


def test_blur_is_a_gaussian() -> None:
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[20, 20] = 255
    blurred = np.asarray(Augmentation.of([{"blur": {"sigma": [1.5, 1.5]}}])(Picture(Image.fromarray(dot)), (0,)).image)
    at = np.exp(-0.5 * (np.arange(-6, 7) / 1.5) ** 2)
    expected = 255 * np.outer(at, at) / at.sum() ** 2
    assert np.abs(blurred[14:27, 14:27, 0] - expected).max() <= 0.5001


def test_a_lossless_file_gets_a_jpeg_generation_and_a_jpeg_does_not(tmp_path: Path) -> None:
    image = photo(200, 160)
    for name, options in (("a.png", {}), ("b.jpg", {"quality": 95})):
        image.save(tmp_path / name, **options)  # type: ignore[arg-type]
    png, jpeg = (Sample(path=tmp_path / name, label="real") for name in ("a.png", "b.jpg"))
    bare = window(png, (5,), equalise=False, sides=(64, 64)).image
    assert (np.asarray(bare) == _cut(np.asarray(image), np.asarray(bare))).all()
    changed = window(png, (5,), sides=(64, 64)).image
    assert _cut(np.asarray(image), np.asarray(changed)) is None
    kept = window(jpeg, (5,), sides=(64, 64)).image
    with Image.open(tmp_path / "b.jpg") as decoded:
        assert _cut(np.asarray(decoded), np.asarray(kept)) is not None


def _cut(whole: np.ndarray, part: np.ndarray) -> np.ndarray | None:
    """The part of an image that equals another, or None."""
    height, width = part.shape[:2]
    for top in range(whole.shape[0] - height + 1):
        for left in range(whole.shape[1] - width + 1):
            if np.array_equal(whole[top, left : left + width], part[0]) and np.array_equal(
                found := whole[top : top + height, left : left + width], part
            ):
                return found
    return None


def test_a_webp_is_reduced_before_anything_else(tmp_path: Path) -> None:
    photo(90, 60).save(tmp_path / "a.webp", quality=80)
    sample = Sample(path=tmp_path / "a.webp", label="real")
    assert window(sample, (0,), sides=(300, 300)).image.size == (52, 32)
    assert window(sample, (0,), sides=(300, 300), equalise=False).image.size == (82, 52)


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (16, 9), (700, 12)])
def test_windows_of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    photo(*size).save(tmp_path / "a.png")
    sample = Sample(path=tmp_path / "a.png", label="real", sha256="0" * 64)
    assert min(window(sample, (1,)).image.size) >= 1
    assert same(evenly(sample), evenly(sample))


def batches(folder: Path, mix: Mix, **options: object) -> ImageBatches:
    crop = Augmentation.of([{"jpeg": {"p": 0.5, "quality": [50, 90]}}, {"random_crop": {"size": 24}}, {"d4": {}}])
    given = {"size": 8, "seed": 3, "sides": (30, 40), **options}
    return ImageBatches(select(toy_set(folder, 6).samples), crop, mix, **given)  # type: ignore[arg-type]


def test_a_batch_is_a_function_of_the_seed_and_its_number(tmp_path: Path) -> None:
    one, other = batches(tmp_path / "a", Mix()), batches(tmp_path / "b", Mix())
    assert all((one[k].inputs == other[k].inputs).all() for k in (0, 5))
    assert (one[0].inputs != one[1].inputs).any()
    assert (one[0].inputs != batches(tmp_path / "a", Mix(), seed=4)[0].inputs).any()
    first = batches(tmp_path / "a", Mix(), shard=(0, 2))[2]
    second = batches(tmp_path / "a", Mix(), shard=(1, 2))[2]
    assert (one[2].inputs[0::2] == first.inputs).all()
    assert (one[2].inputs[1::2] == second.inputs).all()


def test_workers_do_not_matter(tmp_path: Path) -> None:
    made = batches(tmp_path, Mix())
    alone, helped = (list(stream(made.__getitem__, 2, 5, workers)) for workers in (0, 2))
    assert [step for step, _ in helped] == [2, 3, 4]
    assert all((a.inputs == b.inputs).all() for (_, a), (_, b) in zip(alone, helped, strict=True))


def test_classes_are_balanced_and_masks_are_filled(tmp_path: Path) -> None:
    batch = batches(tmp_path, Mix())[0]
    assert batch.labels.tolist() == [0.0] * 4 + [1.0] * 4
    assert batch.masks is not None
    assert batch.masks.mean((1, 2)).tolist() == batch.labels.tolist()
    assert batch.inputs.shape == (8, 3, 24, 24)


def test_pairs_stand_side_by_side_under_one_augmentation(tmp_path: Path) -> None:
    plain = Augmentation.of([{"random_crop": {"size": 24}}, {"d4": {}}])
    toys = select(toy_set(tmp_path, 6).samples)
    made = ImageBatches(toys, plain, Mix(pairs=1.0), size=8, seed=0, sides=(30, 40), equalise=False)
    batch = made[0]
    assert batch.labels.tolist() == [0.0, 1.0] * 4
    difference = (batch.inputs[1::2].int() - batch.inputs[0::2].int()).abs()
    # The chequerboard of the very same crop: 30 wherever it does not clip.
    assert difference.max() == 30
    assert (difference == 30).float().mean() > 0.9


def test_pairs_of_two_sizes_are_none(tmp_path: Path) -> None:
    toys = select(toy_set(tmp_path, 2).samples)
    with Image.open(toys[0].path) as image:
        image.resize((20, 20)).save(tmp_path / "small.png")
    shrunk = [replace(s, original=tmp_path / "small.png") if s.generated else s for s in toys]
    with pytest.raises(DatasetError, match="aligned pairs"):
        ImageBatches(shrunk, Augmentation(()), Mix(pairs=0.5), size=4, seed=0)


def test_kinds_and_sources_share_as_the_mix_says() -> None:
    common = {"label": "generated", "path": Path("x")}
    many = [Sample(kind="t2i", source="a", **common)] * 9 + [Sample(kind="t2i", source="b", **common)]  # type: ignore[arg-type]
    few = [Sample(kind="edit", source="c", **common)] * 2  # type: ignore[arg-type]
    p = probabilities([*many, *few], Mix(kinds={"edit": 3.0}, balance=0.0))
    assert p[-2:].sum() == pytest.approx(0.75)
    assert p[9] == pytest.approx(p[:9].sum()) == pytest.approx(0.125)
    assert probabilities([*many, *few], Mix(kinds={"edit": 0.0}, balance=1.0)) == pytest.approx([0.1] * 10 + [0, 0])


def test_an_augmentation_that_leaves_several_sizes_is_an_error(tmp_path: Path) -> None:
    made = ImageBatches(select(toy_set(tmp_path, 3).samples), Augmentation(()), Mix(), size=6, seed=0, sides=(30, 40))
    with pytest.raises(DatasetError, match="sizes") as caught:
        made[0]
    assert "random_crop" in (caught.value.hint or "")


def test_a_broken_file_and_a_mask_of_another_size_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"broken\.png"):
        window(Sample(path=tmp_path / "broken.png", label="real"), (0,))
    photo(20, 20).save(tmp_path / "a.png")
    Image.new("L", (10, 20)).save(tmp_path / "mask.png")
    with pytest.raises(DatasetError, match=r"mask of \(10, 20\) for an image of \(20, 20\)"):
        window(Sample(path=tmp_path / "a.png", label="generated", mask=tmp_path / "mask.png"), (0,))


def test_validation_images_end_in_one_codec(tmp_path: Path) -> None:
    photo(400, 400).save(tmp_path / "a.png")
    image = evenly(Sample(path=tmp_path / "a.png", label="real", sha256="ab" * 32))
    again = io.BytesIO()
    image.save(again, "JPEG", quality=92, subsampling=2)
    with Image.open(again) as decoded:
        change = np.abs(np.asarray(decoded, int) - np.asarray(image, int))
    # A second JPEG of the same quality on the same grid changes next to nothing.
    assert change.mean() < 0.3

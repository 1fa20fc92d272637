import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from detector_zoo.evaluation import equalise as module
from detector_zoo.evaluation.equalise import (
    FIRST_GENERATION,
    SIDES,
    equalise,
    equalise_file,
    equalised_jpeg,
    first_generation,
    reencode,
)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def encoded(image: Image.Image, codec: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, codec, **options)
    return buffer.getvalue()


def spy(monkeypatch) -> list[tuple]:
    calls: list[tuple] = []
    real = module.reencode
    monkeypatch.setattr(module, "reencode", lambda image, *args: calls.append(args) or real(image, *args))
    return calls


def test_same_file_same_pixels(tmp_path):
    path, copy = tmp_path / "a.png", tmp_path / "b.png"
    path.write_bytes(encoded(picture(500, 500), "PNG"))
    copy.write_bytes(path.read_bytes())
    assert equalise_file(path).tobytes() == equalise_file(copy).tobytes()
    assert equalise_file(path).tobytes() != equalise_file(path, "other salt").tobytes()


def test_both_classes_end_with_two_jpeg_generations(tmp_path, monkeypatch):
    png, jpg = tmp_path / "a.png", tmp_path / "a.jpg"
    png.write_bytes(encoded(picture(500, 500), "PNG"))
    jpg.write_bytes(encoded(picture(500, 500), "JPEG", quality=90))
    calls = spy(monkeypatch)
    equalise_file(jpg)
    assert [call[0] for call in calls] == ["jpeg"]
    calls.clear()
    equalise_file(png)
    assert [call[0] for call in calls] == ["jpeg", "jpeg"]
    assert calls[0][1:] in {(quality, subsampling) for quality, subsampling, _ in FIRST_GENERATION}
    assert calls[1][1] == module.FINAL_QUALITY


def test_crop_does_not_depend_on_the_history():
    image = picture(600, 450)
    one = equalise(image, has_jpeg_history=True, rng=rng(), final_quality=None)
    other = equalise(image, has_jpeg_history=False, rng=rng(), final_quality=None)
    assert one.size == other.size
    difference = np.abs(np.asarray(one, float) - np.asarray(other, float)).mean()
    assert 0 < difference < 4


@pytest.mark.parametrize("size", [(448, 448), (512, 512), (640, 427), (1920, 1080)])
def test_sizes_and_offsets(size):
    coordinates = np.zeros((size[1], size[0], 3), np.uint8)
    coordinates[..., 0], coordinates[..., 1] = np.arange(size[0]) % 256, (np.arange(size[1]) % 256)[:, None]
    image = Image.fromarray(coordinates)
    for seed in range(50):
        crop = equalise(image, has_jpeg_history=True, rng=rng(seed), final_quality=None)
        assert all(SIDES[0] <= side <= SIDES[1] for side in crop.size)
        left, top, _ = np.asarray(crop)[0, 0]
        assert left % 8
        assert top % 8


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (7, 8), (259, 300)])
def test_small_images_lose_little(size):
    for seed in range(20):
        crop = equalise(picture(*size), has_jpeg_history=False, rng=rng(seed))
        assert all(max(1, side - 7) <= new <= side for side, new in zip(size, crop.size, strict=True))


def test_first_generation_draws_from_the_table():
    stream = rng(3)
    table = {(quality, subsampling) for quality, subsampling, _ in FIRST_GENERATION}
    image = picture(64, 64)
    results = {hashlib.sha256(first_generation(image, stream).tobytes()).digest() for _ in range(60)}
    possible = {hashlib.sha256(reencode(image, "jpeg", *entry).tobytes()).digest() for entry in table}
    assert results <= possible
    assert len(results) > 5
    assert sum(count for *_, count in FIRST_GENERATION) == 388


def test_reencode():
    image = picture(100, 80)
    assert reencode(image, "png").tobytes() == image.tobytes()
    for codec in ("jpeg", "webp"):
        again = reencode(image, codec, 90)
        assert again.size == image.size
        assert again.mode == "RGB"
        assert again.tobytes() != image.tobytes()


def test_reencode_subsamples_as_asked(monkeypatch):
    kept = []
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, fp, *a, **k: (save(self, fp, *a, **k), kept.append(fp))[0])
    for subsampling in (0, 1, 2):
        reencode(picture(64, 64), "jpeg", 90, subsampling)
        buffer = io.BytesIO(kept[-1].getvalue())
        assert get_sampling(Image.open(buffer)) == subsampling


def test_the_equalised_file_carries_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x010E] = "made by a camera"
    picture(400, 380).save(path, "JPEG", comment=b"a comment", exif=exif, dpi=(300, 300))
    with Image.open(io.BytesIO(equalised_jpeg(path))) as image:
        assert "comment" not in image.info
        assert not image.getexif()
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(equalise_file(path)))

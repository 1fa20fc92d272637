"""`Preprocessing` against torchvision's transforms, and the way back of a map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from detector_zoo.errors import WeightsError
from detector_zoo.preprocessing import Preprocessing

from conftest import photo

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONSTANTS = {"mean": list(MEAN), "std": list(STD), "exif_orientation": "ignore"}
SIDES = st.integers(1, 70)


def inputs(**constants: object) -> Preprocessing:
    return Preprocessing.of("test", CONSTANTS | constants)


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES, crop=SIDES)
def test_crop_is_torchvisions(width: int, height: int, crop: int) -> None:
    image = photo(width, height)
    found = inputs(crop=crop).pixels(image)
    assert torch.equal(found, transforms.PILToTensor()(transforms.CenterCrop(crop)(image)))


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES, multiple=st.integers(1, 20), crop=st.none() | st.integers(1, 4))
def test_whole_multiples_of_the_centre_are_kept(width: int, height: int, multiple: int, crop: int | None) -> None:
    image = photo(width, height)
    most = crop and crop * multiple
    sides = [max(1, min(side, most or side) // multiple) * multiple for side in (height, width)]
    found = inputs(multiple=multiple, crop=most)
    assert torch.equal(found.pixels(image), transforms.PILToTensor()(transforms.CenterCrop(sides)(image)))
    map_of_width = np.broadcast_to(np.arange(sides[1], dtype=np.float32), sides)
    back = found.spread(map_of_width, image.size)
    assert back.shape == (height, width)
    if width >= multiple:
        assert {back.min(), back.max()} == {0, sides[1] - 1}, "all of what was cut out, and beyond it its edge"


@settings(max_examples=40, deadline=None)
@given(width=SIDES, height=SIDES, resize=st.integers(1, 40), cubic=st.booleans(), crop=st.none() | st.integers(1, 50))
def test_resize_is_torchvisions(width: int, height: int, resize: int, cubic: bool, crop: int | None) -> None:
    image = photo(width, height)
    steps = [transforms.Resize(resize, transforms.InterpolationMode.BICUBIC if cubic else Image.Resampling.BILINEAR)]
    if crop:
        steps.append(transforms.CenterCrop(crop))
    found = inputs(resize=resize, interpolation="bicubic" if cubic else "bilinear", crop=crop).pixels(image)
    assert torch.equal(found, transforms.PILToTensor()(transforms.Compose(steps)(image)))


def test_squashing_ignores_the_aspect() -> None:
    image = photo(60, 31)
    found = inputs(resize=[20, 30]).pixels(image)
    assert torch.equal(found, transforms.PILToTensor()(transforms.Resize((20, 30))(image)))


def test_values_are_torchvisions() -> None:
    image = photo(33, 21)
    pixels = inputs().pixels(image)
    assert pixels.dtype == torch.uint8
    found = inputs().normalise(pixels[None])
    expected = transforms.Normalize(MEAN, STD)(transforms.ToTensor()(image))
    assert torch.equal(found[0], expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image)), "the pixels themselves stay"


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES, crop=SIDES)
def test_a_map_of_the_crop_comes_back(width: int, height: int, crop: int) -> None:
    rows, columns = np.mgrid[:height, :width].astype(np.float32) + 1
    transform = inputs(crop=crop)
    place = Image.fromarray(np.stack([rows, columns, columns], -1).astype(np.uint8))
    cropped = transform.pixels(place).numpy().astype(np.float32)
    for channel, whole in ((0, rows), (1, columns)):
        back = transform.spread(cropped[channel], (width, height))
        assert back.shape == (height, width)
        assert back.dtype == np.float32
        seen = cropped[channel][cropped[channel] > 0]
        assert np.array_equal(back, whole.clip(seen.min(), seen.max())), "outside the crop its edge is repeated"


@pytest.mark.parametrize("constants", [{"resize": 40}, {"resize": [50, 30]}, {"resize": 40, "crop": 32}])
def test_a_map_of_the_resized_image_comes_back(constants: dict[str, object]) -> None:
    image = Image.new("RGB", (120, 90))
    image.paste((255, 255, 255), (50, 30, 80, 60))
    transform = inputs(**constants)
    back = transform.spread(transform.pixels(image)[0].numpy().astype(np.float32), image.size)
    assert back.shape == (90, 120)
    assert abs(back - np.asarray(image)[..., 0]).mean() < 8, "blurred at the edge of the square"
    assert back[45, 65] == pytest.approx(255, abs=1)


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"resise": 3}, "unknown key 'resise'"),
        ({"mean": [0.5, 0.5]}, "ValueError"),
        ({"mean": None}, "TypeError"),
        ({"resize": [224]}, "ValueError"),
        ({"resize": "224"}, "'224' is not a side in pixels"),
        ({"resize": [224, 0]}, "0 is not a side"),
        ({"crop": -1}, "-1 is not a side"),
        ({"crop": 22.4}, "22.4 is not a side"),
        ({"multiple": 0}, "0 is not a side"),
        ({"std": [1, 0, 1]}, "divided by 0"),
        ({"interpolation": "nearest"}, "'nearest' is not bilinear, bicubic"),
    ],
)
def test_wrong_constants_are_refused(constants: dict[str, object], words: str) -> None:
    with pytest.raises(WeightsError, match=r"^test: preprocessing: ") as caught:
        inputs(**constants)
    assert words in str(caught.value)


def test_missing_constants_are_refused() -> None:
    with pytest.raises(WeightsError, match="KeyError: 'std'"):
        Preprocessing.of("test", {"mean": [0, 0, 0]})

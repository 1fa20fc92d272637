"""Perturbations: what they do, that they repeat, and how plugins add theirs."""

from __future__ import annotations

import io
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from detector_zoo import hookimpl, plugins
from detector_zoo.errors import PluginError
from detector_zoo.evaluation.perturbations import GRID, known_perturbations, parse

from conftest import FakePlugins, photo

PICTURE = photo(96, 64, seed=3)
AVIF = features.check("avif")
SPECS = [spec for spec in GRID if AVIF or not spec.startswith("avif")]


def perturbed(spec: str, image: Image.Image = PICTURE, sha256: str = "a") -> np.ndarray:
    (found,) = parse([spec])
    return np.asarray(found(image, sha256))


@pytest.mark.parametrize("spec", SPECS)
def test_every_one_of_the_grid_changes_the_picture_and_repeats(spec: str) -> None:
    before = PICTURE.tobytes()
    first = perturbed(spec)
    assert PICTURE.tobytes() == before
    assert first.dtype == np.uint8
    assert first.shape[2] == 3
    assert first.tobytes() == perturbed(spec).tobytes()
    assert first.tobytes() != before


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["noise:5", "crop:0.5", "screenshot"]),
    st.text(alphabet="0123456789abcdef", min_size=4, max_size=8),
    st.text(alphabet="0123456789abcdef", min_size=4, max_size=8),
)
def test_what_is_random_depends_on_the_file_alone(spec: str, one: str, other: str) -> None:
    image = photo(120, 120)
    assert perturbed(spec, image, one).tobytes() == perturbed(spec, image, one).tobytes()
    if one != other and spec == "noise:5":
        assert perturbed(spec, image, one).tobytes() != perturbed(spec, image, other).tobytes()


def test_codecs_do_what_pillow_does() -> None:
    for spec, options in (("jpeg:40", {"quality": 40, "subsampling": 2}), ("webp:50", {"quality": 50, "method": 2})):
        buffer = io.BytesIO()
        PICTURE.save(buffer, spec.partition(":")[0].upper(), **options)
        assert perturbed(spec).tobytes() == np.asarray(Image.open(buffer).convert("RGB")).tobytes()


def test_lower_quality_is_further_away() -> None:
    for name in ("jpeg", "webp", *(["avif"] if AVIF else [])):
        errors = [np.abs(perturbed(f"{name}:{q}").astype(int) - np.asarray(PICTURE)).mean() for q in (90, 50, 10)]
        assert errors == sorted(errors)
        assert errors[0] < errors[2]


def test_sizes() -> None:
    assert perturbed("resize_lanczos:0.5").shape == (32, 48, 3)
    assert perturbed("resize_bilinear:1.5").shape == (96, 144, 3)
    assert perturbed("crop:0.75").shape == (48, 72, 3)
    assert perturbed("social_media:48").shape == (32, 48, 3)
    assert perturbed("social_media").shape == (64, 96, 3)
    height, width, _ = perturbed("screenshot:1").shape
    assert 64 - 14 <= height <= 62
    assert 96 - 14 <= width <= 94
    for spec in ("screenshot:0.1", "crop:0.01", "resize_bicubic:0.01"):
        assert min(perturbed(spec, photo(5, 4)).shape[:2]) == 1


def test_a_crop_is_a_part_of_the_picture() -> None:
    coordinates = np.stack(np.meshgrid(np.arange(96), np.arange(64)), -1)
    image = Image.fromarray(np.dstack([coordinates, np.zeros((64, 96))]).astype(np.uint8))
    found = perturbed("crop:0.5", image)
    left, top = found[0, 0, :2]
    assert (found[..., :2] == coordinates[top : top + 32, left : left + 48]).all()


def test_noise_and_blur_are_as_strong_as_they_say() -> None:
    grey = Image.new("RGB", (256, 256), (128, 128, 128))
    assert perturbed("noise:5", grey).std() == pytest.approx(5, rel=0.03)
    dot = Image.new("RGB", (41, 41))
    dot.putpixel((20, 20), (255, 255, 255))
    blurred = perturbed("blur:2", dot)[..., 0].astype(float)
    spread = (blurred.sum(0) * (np.arange(41) - 20) ** 2).sum() / blurred.sum()
    assert spread**0.5 == pytest.approx(2, rel=0.15)
    assert perturbed("none").tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("jpg:75", "unknown perturbation 'jpg'; known: avif, blur"),
        ("jpeg", "'jpeg' needs a number"),
        ("none:3", "'none:3' takes no number"),
        ("jpeg:high", "'high' is not a number"),
        ("jpeg:0", "a quality lies in 1 to 100, not 0"),
        ("jpeg:nan", "a quality lies in 1 to 100, not nan"),
        ("crop:1.5", "a crop keeps a share above 0"),
        ("blur:-1", "sigma must lie in 0 to 100"),
        ("noise:999", "sigma must lie in 0 to 255"),
        ("resize_bicubic:0", "a scale lies above 0"),
        ("social_media:0", "a side has at least 1 pixel"),
    ],
)
def test_one_line_for_what_is_not_understood(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match="perturbation") as caught:
        parse(["none", spec])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_twice_is_tried_once() -> None:
    assert [str(p) for p in parse(["jpeg:75", "none", "jpeg:75"])] == ["jpeg:75", "none"]


def plugin(name: str, target: str) -> ModuleType:
    module = ModuleType("fake")

    @hookimpl
    def register_perturbations(register) -> None:
        register(name, target)

    module.register_perturbations = register_perturbations
    return module


def test_a_plugin_adds_its_own(fake_plugins: FakePlugins) -> None:
    fake_plugins.add("weather", plugin("fog", "audit_fakes:fog"))
    assert perturbed("fog:0.5", sha256="a").tobytes() == perturbed("fog:0.5", sha256="a").tobytes()
    assert perturbed("fog:0.5", sha256="a").tobytes() != perturbed("fog:0.5", sha256="b").tobytes()
    with pytest.raises(ValueError, match="density is at most 1"):
        parse(["fog:2"])


def test_a_plugin_that_cannot_be_used_is_named(fake_plugins: FakePlugins) -> None:
    fake_plugins.add("a", plugin("gone", "no_such_module:x"))
    fake_plugins.add("b", plugin("fails", "audit_fakes:broken"))
    with pytest.raises(PluginError, match="perturbation gone: cannot load no_such_module:x"):
        parse(["gone"])
    (fails,) = parse(["fails"])
    with pytest.raises(PluginError, match="perturbation fails failed: RuntimeError: no such size"):
        fails(PICTURE, "a")


def test_a_plugin_cannot_take_a_name_of_ours(fake_plugins: FakePlugins) -> None:
    fake_plugins.add("thief", plugin("jpeg", "audit_fakes:fog"), distribution="zoo-thief")
    (jpeg,) = parse(["jpeg:75"])
    assert jpeg.function.__module__ == "detector_zoo.evaluation.transforms"
    assert "'jpeg' of zoo-thief is taken" in plugins.catalogue().broken()[0].status


def test_ours_are_there_in_the_safe_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTOR_ZOO_PLUGINS", "")
    plugins.catalogue.cache_clear()
    try:
        assert {spec.partition(":")[0] for spec in GRID} <= set(known_perturbations())
    finally:
        plugins.catalogue.cache_clear()

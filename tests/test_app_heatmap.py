"""Overlays: what they look like, and what they cost."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from detector_zoo import heatmaps

from conftest import photo


def at_once(image: Image.Image, heat: NDArray[np.float32], opacity: float) -> NDArray[np.uint8]:
    """The formula for the whole picture, which takes 69 bytes a pixel."""
    low, high = np.percentile(heat, [1, 99])
    strength = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)[..., None] * opacity
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    red = np.array([230.0, 30.0, 20.0], np.float32)
    return np.clip(grey * (1 - strength) + red * strength + 0.5, 0, 255).astype(np.uint8)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(0, 3), st.booleans())
def test_in_parts_it_is_the_same(width: int, height: int, opacity: float, seed: int, flat: bool) -> None:
    image = photo(width, height, seed)
    heat = np.random.default_rng(seed).normal(0, 3, (height, width)).astype(np.float32)
    heat = np.full_like(heat, seed) if flat else heat
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(heatmaps, "_AT_A_TIME", 97)
        found = np.asarray(heatmaps.overlay(image, heat, opacity))
        assert np.array_equal(found, at_once(image, heat, opacity))
        turned = np.asfortranarray(heat)
        assert np.array_equal(np.asarray(heatmaps.overlay(image, turned, opacity)), found)


def test_the_memory_of_an_overlay() -> None:
    width, height = 1500, 1000
    image, heat = Image.new("RGB", (width, height)), np.zeros((height, width), np.float32)
    heat[:, : width // 2] = 1
    tracemalloc.start()
    try:
        found = heatmaps.overlay(image, heat)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.getpixel((0, 0))[0] > 100
    assert most / (width * height) < 16

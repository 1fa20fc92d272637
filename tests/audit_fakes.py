"""Detectors that answer to one thing, and small sets of pictures, for the tests of the audits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detector_zoo import DetectorInfo
from detector_zoo.evaluation.samples import Label, Sample
from detector_zoo.loading import LoadedDetector

from conftest import photo


def loaded(detector: Any, **options: Any) -> LoadedDetector:
    return LoadedDetector(
        info=DetectorInfo(name="fake", summary="", load="x:X"), spec=None, detector=detector, **options
    )


class Bright:
    """Mean grey level, with the pixels' own as a heatmap."""

    def score(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return np.array([np.asarray(p, float).mean() / 25 - 5 for p in pictures], np.float32)

    def heatmap(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(p, np.float32).mean(2) / 255 for p in pictures])


class Grain:
    """Says real where there is fine detail; a constant shift away from brightness."""

    def score(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return np.array([4 - np.abs(np.diff(np.asarray(p, float), axis=1)).mean() for p in pictures], np.float32)


class Grid:
    """Says real where the picture has the 8-pixel grid of JPEG: a detector of file formats."""

    def score(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        return np.array([-self.blockiness(np.asarray(p.convert("L"), float)) for p in pictures], np.float32)

    @staticmethod
    def blockiness(grey: np.ndarray) -> float:
        steps = np.abs(np.diff(grey, axis=1)).mean(0)
        edge = np.arange(1, grey.shape[1]) % 8 == 0
        return float(steps[edge].mean() - steps[~edge].mean())


def fog(image: Image.Image, density: float, *, rng: np.random.Generator) -> Image.Image:
    """A plugin's perturbation."""
    if density > 1:
        raise ValueError("density is at most 1")
    level = 255 * rng.random()
    return Image.blend(image, Image.new("RGB", image.size, (int(level),) * 3), density)


def broken(image: Image.Image, *, rng: np.random.Generator) -> Image.Image:
    """A plugin's perturbation that fails on all but the small grey image that it is tried on."""
    if image.size != (64, 64):
        raise RuntimeError("no such size")
    return image


def sample(path: Path, label: Label, **more: Any) -> Sample:
    return Sample(path=path, label=label, **more)


def planted(folder: Path, count: int, side: int = 400) -> list[Sample]:
    """The same pictures twice: JPEG and called real, PNG and called generated."""
    found = []
    for i in range(count):
        picture = photo(side, side, seed=i)
        picture.save(folder / f"{i}.jpg", quality=60)
        picture.save(folder / f"{i}.png")
        found += [
            sample(folder / f"{i}.jpg", "real", group=str(i)),
            sample(folder / f"{i}.png", "generated", group=str(i)),
        ]
    return found


def bright_and_dark(folder: Path, count: int, size: tuple[int, int] = (128, 128)) -> list[Sample]:
    """Dark photographs, bright generated pictures: `Bright` tells them apart."""
    found = []
    for i in range(count):
        for label, shift in (("real", 0.6), ("generated", 1.0)):
            picture = photo(*size, seed=2 * i + (label == "real")).point(lambda v, s=shift: int(v * s))
            path = folder / f"{label}-{i}.png"
            picture.save(path)
            found.append(sample(path, label))
    return found


def triples(folder: Path, count: int, side: int = 96) -> list[Sample]:
    """Photographs, "inpainted": blurred as a whole (as an autoencoder would), 30 grey levels brighter inside a mask."""
    found = []
    for i in range(count):
        rng = np.random.default_rng(i)
        original = photo(side, side, seed=i).point(lambda value: value // 2)
        grain = rng.normal(0, 25, (side, side, 1)) * (np.arange(side) > side // 2)[:, None]
        rough = np.clip(np.asarray(original, float) + grain, 0, 255)
        original = Image.fromarray(rough.astype(np.uint8))
        mask = np.zeros((side, side), bool)
        top = 10 + int(rng.integers(20))
        mask[top : top + 40, 20:64] = True
        edited = np.asarray(original.resize((side // 2, side // 2), Image.Resampling.BOX).resize((side, side))).copy()
        edited[mask] = np.clip(np.asarray(original, int) + 30, 0, 255)[mask]
        original.save(folder / f"{i}-original.png")
        Image.fromarray(edited).save(folder / f"{i}-edited.png")
        Image.fromarray((mask * 255).astype(np.uint8)).save(folder / f"{i}-mask.png")
        found.append(
            sample(
                folder / f"{i}-edited.png",
                "generated",
                original=folder / f"{i}-original.png",
                mask=folder / f"{i}-mask.png",
            )
        )
    return found

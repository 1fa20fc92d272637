"""Views of the training images, and what frozen networks make of them: computed once, kept in the run's folder."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detector_zoo import convert
from detector_zoo.evaluation.samples import Sample
from detector_zoo.training.augment import Augmentation
from detector_zoo.training.display import shown
from detector_zoo.training.job import Job
from detector_zoo.training.pictures import evenly, read, window
from detector_zoo_mdmf.laundering import launder
from detector_zoo_mdmf.recipe import Recipe
from detector_zoo_mdmf.tiles import Tiling

__all__ = ["Sight", "View", "collect"]

TOGETHER = 16
"""Tiles that go through the networks at a time."""
FEW = 2**14
"""Images up to which 256 files hold them; more lie in 4,096: what is lost when a run is killed is one of them."""

View = tuple[Tensor, ...]
"""What the networks make of one tile: grids of tokens, each (C, h, w) float16, or its pixels, uint8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The frozen networks.

    Attributes:
        key: Names them and whatever their grids depend on.
        tiling: The detector's.
        look: Normalised tiles of one size, (N, 3, H, W), to grids, each (N, C, h, w).
    """

    key: str
    tiling: Tiling
    look: Callable[[Tensor], View]


def collect(job: Job, recipe: Recipe, sight: Sight, version: int) -> dict[str, list[View]]:
    """A version of every sample of the job, tile by tile, from ``features/`` in the run's folder or made there.

    Args:
        job: See there.
        recipe: See there.
        sight: See there.
        version: 0 for what a sample is validated on; else an augmented or laundered one.

    Returns:
        By the file's sha256.
    """
    how = [sight.key, version, job.seed, recipe.equalise, recipe.orientation, recipe.kept]
    if version:
        how += [recipe.launder, recipe.sides, recipe.augmentation]
    folder = job.out / "features"
    folder.mkdir(exist_ok=True)
    # By hash, so that more data elsewhere leave most parts what they were.
    parts: dict[str, list[Sample]] = defaultdict(list)
    digits = 2 if len(job.samples) <= FEW else 3
    for sample in sorted(job.samples, key=lambda s: s.sha256):
        parts[sample.sha256[:digits]].append(sample)
    found: dict[str, Tensor] = {}
    with shown(len(parts), 0, quiet=job.quiet) as show:
        for number, part in enumerate(parts.values(), 1):
            text = json.dumps([how, [s.sha256 for s in part]], default=str)
            path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
            if not path.is_file():
                made = _made(job, recipe, sight, part, version)
                with convert.atomic(path) as staging:
                    convert.write(made, staging)
            found |= convert.read_safetensors(path)
            show(number, "")
    out: dict[str, list[View]] = defaultdict(list)
    grids: dict[tuple[str, int], dict[int, Tensor]] = defaultdict(dict)
    for key, value in found.items():
        sha256, tile, grid = key.split(".")
        grids[sha256, int(tile)][int(grid)] = value
    for (sha256, _), view in sorted(grids.items(), key=lambda item: item[0]):
        out[sha256].append(tuple(view[index] for index in sorted(view)))
    return out


def _made(job: Job, recipe: Recipe, sight: Sight, samples: Sequence[Sample], version: int) -> dict[str, Tensor]:
    """Grids by sha256, number of the tile and number of the grid."""
    by_shape: dict[torch.Size, list[tuple[str, Tensor]]] = defaultdict(list)
    for sample in samples:
        image = _picture(job, recipe, sample, version)
        for number, tile in enumerate(sight.tiling.spread(image).split(3)):
            by_shape[tile.shape].append((f"{sample.sha256}.{number}", tile))
    out: dict[str, Tensor] = {}
    for group in by_shape.values():
        for start in range(0, len(group), TOGETHER):
            chosen = group[start : start + TOGETHER]
            with torch.inference_mode():
                grids = sight.look(torch.stack([tile for _, tile in chosen]))
            for number, grid in enumerate(grids):
                kept = grid.half() if grid.is_floating_point() else grid
                for (name, _), values in zip(chosen, kept.cpu(), strict=True):
                    out[f"{name}.{number}"] = _few(values, recipe.kept, name, version).clone()
    return out


def _picture(job: Job, recipe: Recipe, sample: Sample, version: int) -> Image.Image:
    if version == 0:
        return evenly(sample, equalise=recipe.equalise, orientation=recipe.orientation)
    seed = (job.seed, version, int(sample.sha256[:12], 16))
    if recipe.launder is not None:
        picture, compressed = read(sample, recipe.orientation)
        return launder(picture.image, compressed, recipe.launder, np.random.default_rng(seed))
    cut = window(sample, (*seed, 0), equalise=recipe.equalise, sides=recipe.sides, orientation=recipe.orientation)
    return Augmentation.of(recipe.augmentation)(cut, (*seed, 1)).image


def _few(grid: Tensor, kept: int | None, name: str, version: int) -> Tensor:
    """At most ``kept`` tokens of a grid (C, h, w), as a grid of one row."""
    if kept is None:
        return grid
    digest = hashlib.sha256(f"{name} {version}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, "<u4"))
    flat = grid.flatten(1)
    return flat[:, rng.permutation(flat.shape[1])[:kept]].unsqueeze(1)

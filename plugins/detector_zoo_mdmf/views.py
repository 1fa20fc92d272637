"""Views of the training images, and what the frozen networks make of them: computed once, whatever is kept out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detector_zoo.evaluation.equalise import equalise_file
from detector_zoo_mdmf import teacher as clip
from detector_zoo_mdmf.distilled import DistilledEmbedder
from detector_zoo_mdmf.embedder import PatchEmbedder
from detector_zoo_mdmf.laundering import launder
from detector_zoo_mdmf.manifest import Row
from detector_zoo_mdmf.tiles import Tiling

__all__ = ["View", "make_views", "versions"]

LAUNDERED_SIDE = 336
CHUNK = 16


@dataclass(frozen=True, slots=True)
class View:
    """One version of one image, as the detector would see it.

    Attributes:
        row: sha256 of the file.
        equalised: Whether it is the equalised version, which slices are judged on, or a laundered one.
        cells: What `DistilledEmbedder.cells` makes of it, (C, h, w) float16.
        teacher: The teacher's tokens on the same grid, (D, h, w) float16.
    """

    row: str
    equalised: bool
    cells: Tensor
    teacher: Tensor


def versions(row: Row, laundered: int) -> Iterator[Image.Image]:
    """The equalised version, then laundered ones: in JPEG files' case on top of their own history."""
    yield equalise_file(row.path, "tokens 0")
    rng = np.random.default_rng(int(row.sha256[:8], 16))
    with Image.open(row.path) as file:
        image = file.convert("RGB")
    for _ in range(laundered):
        yield launder(image, row.codec == "jpg", LAUNDERED_SIDE, rng)


def make_views(
    rows: Sequence[Row], embedder: DistilledEmbedder, teacher: PatchEmbedder, tiling: Tiling, laundered: int
) -> Iterator[View]:
    """Views of every row: an equalised one and ``laundered`` others.

    The teacher computes in bfloat16, which leaves its tokens what they are to two digits and halves the time.

    Args:
        rows: Of both classes.
        embedder: Its trunk filled.
        teacher: With the embedder's patches, on CLIP's normalisation.
        tiling: The detector's.
        laundered: Laundered versions an image.
    """
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (tiling.mean, tiling.std))
    clip_mean, clip_std = (torch.tensor(value).view(3, 1, 1) for value in (clip.MEAN, clip.STD))
    half = teacher.bfloat16()
    for start in range(0, len(rows), CHUNK):
        by_shape: dict[tuple[int, ...], list[tuple[str, bool, Tensor]]] = defaultdict(list)
        for row in rows[start : start + CHUNK]:
            for number, version in enumerate(versions(row, laundered)):
                for tile in tiling.spread(version).split(3):
                    by_shape[tuple(tile.shape)].append((row.sha256, number == 0, tile))
        for group in by_shape.values():
            x = torch.stack([tile for _, _, tile in group])
            with torch.inference_mode():
                cells = embedder.cells(x.contiguous(memory_format=torch.channels_last)).half()
                tokens = half(((x * std + mean - clip_mean) / clip_std).bfloat16()).half()
            for (sha256, equalised, _), own, taught in zip(group, cells, tokens, strict=True):
                yield View(sha256, equalised, own.clone(), taught.clone())

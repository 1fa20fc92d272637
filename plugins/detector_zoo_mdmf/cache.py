"""Tokens of the training images under the frozen embedder, computed once for every experiment on the head."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from detector_zoo.evaluation.equalise import equalise, equalise_file
from detector_zoo_mdmf.embedder import PatchEmbedder
from detector_zoo_mdmf.manifest import Row
from detector_zoo_mdmf.pairs import KINDS, Pair
from detector_zoo_mdmf.samples import launder
from detector_zoo_mdmf.signatures import TokenSet
from detector_zoo_mdmf.tiles import Tiling

__all__ = ["embed", "equalised_pair", "pair_sets", "row_sets"]

LAUNDERED_SIDE = 320


def embed(embedder: PatchEmbedder, tiling: Tiling, image: Image.Image) -> Tensor:
    """Tokens of one image as the detector would see it, (n, dim) float16."""
    tiles = tiling.spread(image)
    with torch.inference_mode():
        grid = embedder(tiles.unflatten(0, (-1, 3)))
    tokens: Tensor = grid.flatten(2).transpose(1, 2).flatten(0, 1).half()
    return tokens


def row_sets(
    embedder: PatchEmbedder, tiling: Tiling, rows: Iterable[Row], equalised: int, laundered: int, keep: int | None
) -> Iterator[TokenSet]:
    """Token sets of data-set rows.

    Args:
        embedder: Frozen.
        tiling: The detector's.
        rows: LaMa's composites are labelled generated as a whole.
        equalised: How many equalised versions of each.
        laundered: How many laundered crops of each, in JPEG files' case on top of their own history.
        keep: Tokens an image, drawn at random; None for all.
    """
    for row in rows:
        seed = int(row.sha256[:8], 16)
        rng = np.random.default_rng(seed)
        versions = [equalise_file(row.path, f"tokens {i}") for i in range(equalised)]
        if laundered:
            with Image.open(row.path) as file:
                image = file.convert("RGB")
            compressed = row.codec == "jpg"
            versions += [launder(image, compressed, LAUNDERED_SIDE, rng) for _ in range(laundered)]
        for version in versions:
            tokens = embed(embedder, tiling, version)
            if keep is not None:
                tokens = tokens[torch.from_numpy(rng.permutation(len(tokens))[:keep])]
            yield TokenSet(tokens, torch.full((len(tokens),), float(row.generated)), row.source)


def equalised_pair(pair: Pair, kind: str) -> tuple[Image.Image, Image.Image, Image.Image]:
    """A pair's original, its regeneration and the mask of what was generated, equalised with the same crop."""
    digest = hashlib.sha256(f"{pair.row}{pair.reduced}{kind}".encode()).digest()
    seed = np.frombuffer(digest, np.uint32)
    out = []
    for name in ("original", kind):
        with Image.open(pair.folder / f"{name}.png") as image:
            history = name == "original" and not pair.reduced
            out.append(equalise(image.convert("RGB"), has_jpeg_history=history, rng=np.random.default_rng(seed)))
    if kind == "edit":
        with Image.open(pair.folder / "mask.png") as image:
            mask = equalise(
                image.convert("RGB"), has_jpeg_history=True, rng=np.random.default_rng(seed), final_quality=None
            )
    else:
        mask = Image.new("RGB", out[1].size, (255, 255, 255))
    return out[0], out[1], mask


def pair_sets(embedder: PatchEmbedder, tiling: Tiling, pairs: Sequence[Pair], keep: int | None) -> Iterator[TokenSet]:
    """Token sets of every kind of pair: both halves; groups ``pair original`` and ``pair <kind>``."""
    for pair in pairs:
        rng = np.random.default_rng(int(pair.row[:8], 16))
        for kind in KINDS:
            original, made, mask = equalised_pair(pair, kind)
            for image, group in ((original, "pair original"), (made, f"pair {kind}")):
                tokens = embed(embedder, tiling, image)
                labels = torch.zeros(len(tokens)) if group == "pair original" else _patch_labels(mask, tiling)
                chosen = slice(None) if keep is None else torch.from_numpy(rng.permutation(len(tokens))[:keep])
                yield TokenSet(tokens[chosen], labels[chosen], group)


def _patch_labels(mask: Image.Image, tiling: Tiling) -> Tensor:
    """Share of generated pixels under every token that `embed` yields, (n,)."""
    bare = Tiling(tiling.patch, (0.0,) * 3, (1.0,) * 3, tiling.tile, tiling.grid)
    tiles = bare.spread(mask).unflatten(0, (-1, 3))[:, :1]
    return functional.avg_pool2d(tiles, tiling.patch).flatten(2).transpose(1, 2).flatten()

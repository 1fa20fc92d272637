"""The teacher that a distilled embedder is taught by: CLIP's image tower (Radford et al., 2021), in training alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from detector_zoo import weights
from detector_zoo.convert import sha256_of
from detector_zoo.errors import WeightsError
from detector_zoo.networks.clip import load_tower
from detector_zoo.registry import lookup
from detector_zoo_mdmf.embedder import PatchEmbedder

__all__ = ["MEAN", "STD", "ClipEmbedder", "load_teacher"]

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalisation, RGB, on a scale of 0 to 1."""


class ClipEmbedder(PatchEmbedder):
    """Patch tokens of a block of CLIP's image tower, as they are, at any image size.

    Args:
        model: open_clip's name, see `detector_zoo.networks.clip.build_tower`.
        tensors: See `detector_zoo.networks.clip.load_tower`.
        name: Of the weights, for messages.
        block: Counted from 1.
        patch: See `PatchEmbedder`.

    Raises:
        WeightsError: The tensors do not fit, or there is no such block.
    """

    def __init__(self, model: str, tensors: Mapping[str, Tensor], name: str, *, block: int, patch: int) -> None:
        super().__init__()
        tower: Any = load_tower(model, tensors, name)
        blocks = tower.transformer.resblocks
        if not 1 <= block <= len(blocks):
            raise WeightsError(f"{name}: block {block} is not one of the {len(blocks)} of {model}")
        del blocks[block:]
        self.tower = tower
        self.dim, _, self.stride, _ = tower.conv1.weight.shape
        self.patch = patch

    def features(self, x: Tensor) -> Tensor:
        """See `PatchEmbedder.features`; position embeddings are interpolated."""
        tower = self.tower
        y = tower.conv1(x)
        grid = y.shape[-2:]
        own, places = tower.positional_embedding[:1], tower.positional_embedding[1:]
        if tuple(grid) != tuple(tower.grid_size):
            laid = places.float().T.unflatten(1, tower.grid_size)[None]
            laid = functional.interpolate(laid, grid, mode="bicubic", antialias=True)
            places = laid[0].flatten(1).T.to(places.dtype)
        first = tower.class_embedding.expand(len(y), 1, -1) + own
        y = tower.ln_pre(torch.cat([first, y.flatten(2).transpose(1, 2) + places], 1))
        for block in tower.transformer.resblocks:
            y = block(y)
        tokens: Tensor = y[:, 1:].transpose(1, 2).unflatten(2, grid)
        return tokens


def load_teacher(place: str, model: str, *, block: int, patch: int, progress: bool = False) -> tuple[ClipEmbedder, str]:
    """Load CLIP's image tower.

    Args:
        place: Name of a backbone in the catalogue, or a safetensors file in any layout of
            `detector_zoo.networks.clip.load_tower`.
        model: open_clip's name.
        block: Whose tokens it gives.
        patch: Pixels of its input that a token is pooled over.
        progress: Show a bar while downloading.

    Returns:
        The tower, frozen, and its file's sha256.

    Raises:
        WeightsError: It cannot be had, or the file holds something else.
    """
    if "/" in place or place.endswith(".safetensors"):
        file, name = Path(place), Path(place).name
        if not file.is_file():
            raise WeightsError(f"teacher {place}: no such file")
    else:
        spec = lookup(place)
        file, name = weights.fetch(spec, progress=progress), spec.name
    embedder = ClipEmbedder(model, weights.read(file), name, block=block, patch=patch)
    return embedder.eval().requires_grad_(False), sha256_of(file)

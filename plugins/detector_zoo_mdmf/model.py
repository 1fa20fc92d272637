"""The detector: micro-defects expose macro-fakes (Zhang et al., 2026, arXiv 2605.09296).

An image's patches become tokens of a frozen embedder, tokens become signatures, and the score is the maximum mean
discrepancy between the image's signatures and a bank of real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.networks.folding import fold
from detector_zoo.networks.state import load_strictly
from detector_zoo_mdmf.distilled import DistilledEmbedder, build_embedder
from detector_zoo_mdmf.embedder import ConvEmbedder, PatchEmbedder, VitEmbedder
from detector_zoo_mdmf.mmd import SignatureHead
from detector_zoo_mdmf.tiles import Tiling

if TYPE_CHECKING:
    from detector_zoo.training.job import Job

__all__ = ["MDMF", "Network"]

CPU_TILES = 2
"""Tiles that go through the embedder at a time on a CPU."""

WITNESSES = 2048
"""Signatures, evenly spread, that stand for an image in its own heatmap: bounds the work of large images."""


class Network(nn.Module):
    """Embedder and signature head.

    Args:
        embedder: See `build_embedder`.
        head: Over the embedder's tokens.
    """

    def __init__(self, embedder: PatchEmbedder, head: SignatureHead) -> None:
        super().__init__()
        self.embedder = embedder
        self.head = head

    def tokens(self, tiles: Tensor) -> Tensor:
        """Tiles (B, 3 T, h, w) to tokens (B, T n, dim)."""
        count = tiles.shape[1] // 3
        single = tiles.unflatten(1, (count, 3)).flatten(0, 1)
        # More at a time would leave the CPU's cache and be slower; a GPU wants all it can get.
        grids = torch.cat([self.embedder(part) for part in single.split(CPU_TILES if single.is_cpu else len(single))])
        tokens: Tensor = grids.flatten(2).transpose(1, 2).unflatten(0, (-1, count)).flatten(1, 2)
        return tokens

    def forward(self, tiles: Tensor) -> Tensor:
        """Tiles (B, 3 T, h, w) of B images to their MMD^2, (B,)."""
        scores: Tensor = self.head(self.tokens(tiles))
        return scores


class MDMF(TorchDetector):
    """MDMF on any embedder that `build_embedder` knows.

    Args:
        network: In evaluation mode.
        tiling: How an image becomes tiles.
    """

    network: Network

    def __init__(self, network: Network, tiling: Tiling) -> None:
        self.network = network
        self.tiling = tiling

    @classmethod
    def from_weights(cls, weights: Weights) -> MDMF:
        """Build what ``weights.spec.config`` describes and load the tensors strictly.

        ``config`` holds ``embedder`` (see `build_embedder`) and ``head`` (``hidden``, ``dim`` and ``bank`` of
        `SignatureHead`); ``preprocessing`` the fields of `Tiling`.

        Raises:
            WeightsError: A tensor is missing, left over or of another shape.
        """
        spec = weights.spec
        embedder = build_embedder(spec.config["embedder"])
        network = Network(embedder, SignatureHead(embedder.dim, **spec.config["head"]))
        if isinstance(embedder, VitEmbedder):
            # The mask token is of use in pre-training alone; some copies of DINOv2 still carry it.
            load_strictly(embedder.vit, weights.backbone, spec.backbone or spec.name, ignore=("mask_token",))
            load_strictly(network.head, weights.tensors, spec.name)
        else:
            load_strictly(network, weights.tensors, spec.name)
        network.eval().requires_grad_(False)
        if isinstance(embedder, ConvEmbedder | DistilledEmbedder):
            # Fewer passes over memory, which bound this network on a CPU; the same values but for rounding.
            fold(embedder).to(memory_format=torch.channels_last)
        detector = cls(network, Tiling.from_preprocessing(spec.preprocessing, embedder.patch, embedder.unit))
        detector.spec = spec
        return detector

    def transform(self, image: Image.Image) -> Tensor:
        """Up to ``grid`` by ``grid`` tiles, reduced, compressed and normalised, stacked by channels: (3 T, h, w).

        Their size and number follow from the image's size alone and are bounded, so time and memory are too.
        """
        return self.tiling.spread(image)

    def logits(self, batch: Tensor) -> Tensor:
        """(N, 3 T, h, w) to MMD^2 against the bank, (N,); about 0 for an image whose patches all look real."""
        scores: Tensor = self.network(batch)
        return scores

    @classmethod
    def fit(cls, job: Job) -> Path:
        """See `detector_zoo.detector.Trainable`."""
        from detector_zoo_mdmf.training import fit

        return fit(job)

    def heatmap(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Evidence of every patch of the whole image.

        A patch's evidence is the witness function with its sign turned, mean_x k(x_i, x) - mean_r k(x_i, r): what
        its signature has in common with the image and not with the bank. Patches are interpolated bilinearly.

        Args:
            images: N RGB images of one size (W, H).

        Returns:
            (N, H, W) float32, in (-1, 1).
        """
        return np.stack([self._heat(image) for image in images])

    def _heat(self, image: Image.Image) -> NDArray[np.float32]:
        patch = self.tiling.patch
        columns, rows = (side // patch for side in self.tiling.covered(image))
        signatures = torch.zeros(rows, columns, self.network.head.bank.shape[1])
        with torch.inference_mode():
            for top, left, tile in self.tiling.cover(image):
                grid = self.network.embedder(tile[None].to(self.device))[0]
                found = self.network.head.phi(grid.permute(1, 2, 0)).cpu()
                i, j = top // patch, left // patch
                signatures[i : i + found.shape[0], j : j + found.shape[1]] = found
            flat = signatures.flatten(0, 1)
            spread = flat[torch.linspace(0, len(flat) - 1, min(WITNESSES, len(flat))).long()]
            head = self.network.head
            evidence = torch.cat([head.witness(x.to(self.device), spread.to(self.device)) for x in flat.split(4096)])
            grid = evidence.cpu().view(1, 1, rows, columns)
            heat = functional.interpolate(grid, (rows * patch, columns * patch), mode="bilinear")[0, 0]
        return heat[: image.height, : image.width].numpy().astype(np.float32)

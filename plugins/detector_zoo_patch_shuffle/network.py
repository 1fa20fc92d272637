"""The network: every patch by itself through one encoder, the features side by side into one linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn
from torch.nn import functional

from detector_zoo.preprocessing import Preprocessing

__all__ = ["FEATURES", "WIDTH", "PatchEncoder", "PatchNetwork", "cut", "with_slots"]

WIDTH = 64
"""Of the published network at full resolution; its stages have 2, 4 and 8 times as many channels."""
FEATURES = 8 * WIDTH


def cut(images: Tensor, patch: int) -> Tensor:
    """Images (N, C, H, W) to their patches (N, P, C, patch, patch), row by row; sides are multiples of ``patch``."""
    grid = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    patches: Tensor = grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return patches


def with_slots(config: Mapping[str, Any], inputs: Preprocessing) -> dict[str, Any]:
    """The arguments of `PatchNetwork`: a configuration, with as many slots as the crop has patches where it has none.

    Raises:
        ValueError: What ``inputs`` leaves of an image is not a whole number of patches.
    """
    patch, crop = config.get("patch"), inputs.crop
    if not isinstance(patch, int) or patch < 1 or not crop or crop % patch or (inputs.multiple or patch) % patch:
        raise ValueError(f"crop {crop} is not a whole number of patches of {patch} px")
    return {"slots": (crop // patch) ** 2, **config}


class PatchEncoder(nn.Module):
    """One patch to ``8 * width`` numbers, none negative; patches know nothing of each other.

    Args:
        depth: Convolutions at full resolution after the first (the paper's N; 18 in the repository).
        width: Channels at full resolution.
    """

    def __init__(self, depth: int = 18, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        body: list[nn.Module] = []
        for _ in range(depth):
            conv = nn.Conv2d(width, width, 3, padding=1)
            body += [conv, nn.BatchNorm2d(width, eps=1e-4), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*body)
        self.stages = nn.Sequential(*[_stage(width * step, 2 * width * step) for step in (1, 2, 4)])

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (M, 3, p, p) in [0, 1] to features (M, 8 * width)."""
        x = functional.relu(self.stem(patches), inplace=True)
        features: Tensor = self.stages(self.body(x)).mean((2, 3))
        return features


class PatchNetwork(nn.Module):
    """The network as it is trained, where a patch's weights depend on the slot that it is shuffled into.

    Args:
        patch: Pixels along a patch's side.
        depth: See `PatchEncoder`.
        slots: P, patches in an image.
        width: See `PatchEncoder`.
    """

    def __init__(self, patch: int = 64, depth: int = 18, slots: int = 16, width: int = WIDTH) -> None:
        super().__init__()
        self.patch, self.slots, self.width = patch, slots, width
        self.encoder = PatchEncoder(depth, width)
        self.classifier = nn.Linear(slots * 8 * width, 1)

    def forward(self, images: Tensor, order: Tensor | None = None) -> Tensor:
        """Logits under given permutations.

        Args:
            images: (N, 3, H, W) in [0, 1], of P patches each.
            order: Which patch comes into each slot: (P,), or (N, P) with a permutation an image. None leaves them
                row by row.

        Returns:
            (N,).
        """
        patches = cut(images, self.patch)
        features = self.encoder(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        if order is not None:
            features = features[torch.arange(len(images), device=images.device)[:, None], order]
        logits: Tensor = self.classifier(features.flatten(1))[:, 0]
        return logits

    def mean_weight(self) -> Tensor:
        """The classifier's weights, averaged over the slots, (512,).

        With h_p the features of patch p, w_s the weights of slot s and pi a uniformly random permutation that brings
        patch pi(s) into slot s, every patch is equally likely in every slot, and so::

            E[sum_s w_s . h_pi(s) + b] = sum_s sum_p P(pi(s) = p) w_s . h_p + b = sum_p (1/P sum_s w_s) . h_p + b

        These weights in every slot give the mean logit over all P! permutations, exactly and without drawing any.
        An image of n patches, n not P, has the mean over all draws of P of them in its place: P/n sum_p ... + b, since
        every slot is as likely to hold any of the n (drawn anew for every slot where n < P).
        """
        return self.classifier.weight.view(self.slots, -1).mean(0)


def _stage(inputs: int, outputs: int) -> nn.Module:
    """Two basic blocks (He et al., CVPR 2016), the first of which halves the resolution."""
    shortcut: Any = downsample_conv(inputs, outputs, kernel_size=1, stride=2)
    return nn.Sequential(BasicBlock(inputs, outputs, 2, shortcut), BasicBlock(outputs, outputs))

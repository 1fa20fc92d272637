"""Patch embedders: images to a grid of patch tokens, frozen while patch forensic signatures are learnt.

Here, a small convolutional network and timm's vision transformers, DINOv2 of the paper among them; the one of the
`lite` weights, which is built on the first, is in `detector_zoo_mdmf.distilled`.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ConvEmbedder", "PatchEmbedder", "VitEmbedder"]

# EfficientNet-lite0: repeats, kernel, stride, expansion, width of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _relu6(x: Tensor) -> Tensor:
    # In place: what bounds this network on a CPU is memory traffic, not arithmetic.
    return functional.relu6(x, inplace=True)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


class PatchEmbedder(nn.Module):
    """What the detector asks of an embedder.

    Attributes:
        dim: Width of a token.
        stride: Pixels from one token of `features` to the next.
        patch: Pixels along the side of a pooled patch, the paper's W; ``stride`` where nothing is pooled.
    """

    dim: int
    stride: int
    patch: int

    @property
    def unit(self) -> int:
        """Sides of an input have to be multiples of this: pixels after which tokens and patches begin together."""
        return math.lcm(self.stride, self.patch)

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), normalised, to (N, dim, H / stride, W / stride)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), normalised, to patch tokens (N, dim, H / patch, W / patch); sides are multiples of `unit`.

        The grid of tokens, ``stride`` pixels apart, becomes one of patches by adaptive average pooling: a patch is the
        mean of the tokens that touch it. At a stride of 14 and 448 px, 32 x 32 tokens become 28 x 28 patches of 16 px
        (four tokens each, shared with the neighbours), 14 x 14 of 32 px or 8 x 8 of 56 px: the paper's three.
        """
        tokens = self.features(x)
        if self.patch == self.stride:
            return tokens
        return functional.adaptive_avg_pool2d(tokens, (x.shape[-2] // self.patch, x.shape[-1] // self.patch))


class _Separable(nn.Module):
    """Depthwise then pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs, bias=False)
        self.bn1 = _norm(inputs)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pw(_relu6(self.bn1(self.conv_dw(x)))))
        return y


class _Inverted(nn.Module):
    """Inverted residual: widen, depthwise convolution, narrow; a skip where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.conv_pw = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = _norm(hidden)
        self.conv_dw = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.bn2 = _norm(hidden)
        self.conv_pwl = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = _norm(outputs)
        self.skip = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = _relu6(self.bn1(self.conv_pw(x)))
        y = _relu6(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        out: Tensor = x + y if self.skip else y
        return out


class ConvEmbedder(PatchEmbedder):
    """The first stages of EfficientNet-lite0, with timm's parameter names.

    Args:
        stages: How many of the seven; five end at a sixteenth of the size, all at a thirty-second.
        patch: See `PatchEmbedder`; None for the stride.
    """

    def __init__(self, stages: int = 5, patch: int | None = None) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1 = _norm(32)
        self.stride = 2
        width, blocks = 32, []
        for index, (repeats, kernel, stride, expansion, outputs) in enumerate(STAGES[:stages]):
            stage: list[nn.Module] = []
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                block = (
                    _Separable(width, outputs, kernel, step)
                    if index == 0
                    else _Inverted(width, outputs, kernel, step, expansion)
                )
                stage.append(block)
                width = outputs
            blocks.append(nn.Sequential(*stage))
            self.stride *= stride
        self.blocks = nn.Sequential(*blocks)
        self.dim = width
        self.patch = patch or self.stride

    def outputs(self, x: Tensor) -> list[Tensor]:
        """What every stage makes of (N, 3, H, W), normalised."""
        x = _relu6(self.bn1(self.conv_stem(x)))
        out = []
        for stage in self.blocks:
            x = stage(x)
            out.append(x)
        return out

    def features(self, x: Tensor) -> Tensor:
        """See `PatchEmbedder.features`."""
        return self.outputs(x)[-1]


class VitEmbedder(PatchEmbedder):
    """Patch tokens of a timm vision transformer, at any image size.

    Args:
        name: timm's name, e.g. ``vit_large_patch14_dinov2.lvd142m``.
        img_size: The size whose position embeddings the tensors hold (518 for DINOv2); others are interpolated.
        patch: See `PatchEmbedder`; 16, 32 or 56 in the paper, None for the transformer's own.
        block: The block, counted from 1, whose tokens are taken as they are; None for the last, normalised.
    """

    def __init__(self, name: str, img_size: int = 518, patch: int | None = None, block: int | None = None) -> None:
        import timm

        super().__init__()
        vit: Any = timm.create_model(name, pretrained=False, num_classes=0, img_size=img_size, dynamic_img_size=True)
        self.vit = vit
        self.block = block
        self.dim = int(vit.num_features)
        self.stride = int(vit.patch_embed.patch_size[0])
        self.patch = patch or self.stride

    def features(self, x: Tensor) -> Tensor:
        """See `PatchEmbedder.features`."""
        vit: Any = self.vit
        if self.block is not None:
            taken: list[Tensor] = vit.forward_intermediates(
                x, indices=[self.block - 1], norm=False, stop_early=True, intermediates_only=True
            )
            return taken[0]
        tokens: Tensor = vit.forward_features(x)[:, vit.num_prefix_tokens :]
        grid = (x.shape[-2] // self.stride, x.shape[-1] // self.stride)
        folded: Tensor = tokens.transpose(1, 2).unflatten(2, grid)
        return folded

"""Patch embedders: images to a grid of patch tokens, frozen while patch forensic signatures are learnt.

Two kinds: the small convolutional one of the `lite` weights, and timm's DINOv2, the paper's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detector_zoo.errors import WeightsError

__all__ = ["ConvEmbedder", "DinoEmbedder", "PatchEmbedder", "build_embedder", "load_strictly"]

# EfficientNet-lite0: repeats, kernel, stride, expansion, width of each stage.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))


def _relu6(x: Tensor) -> Tensor:
    # In place: what bounds this network on a CPU is memory traffic, not arithmetic.
    return functional.relu6(x, inplace=True)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


class PatchEmbedder(nn.Module):
    """What the detector asks of an embedder.

    Attributes:
        dim: Width of a token.
        stride: Pixels from one token to the next, before pooling.
        pool: Neighbouring tokens, along each side, whose mean is one patch of ``stride * pool`` pixels.
    """

    dim: int
    stride: int
    pool: int = 1

    def features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), normalised, to (N, dim, H / stride, W / stride)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), normalised, to patch tokens (N, dim, h, w), h = H / (stride * pool) rounded down."""
        tokens = self.features(x)
        return functional.avg_pool2d(tokens, self.pool) if self.pool > 1 else tokens


class _Separable(nn.Module):
    """Depthwise then pointwise convolution."""

    PAIRS = (("conv_dw", "bn1"), ("conv_pw", "bn2"))

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

    PAIRS = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))

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
        stages: How many of the five stages up to a sixteenth of the size.
        stem_stride: 2 as published; 1 keeps the finest traces and doubles every resolution.
        pool: See `PatchEmbedder`.
    """

    PAIRS = (("conv_stem", "bn1"),)

    def __init__(self, stages: int = 5, stem_stride: int = 2, pool: int = 1) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, stem_stride, 1, bias=False)
        self.bn1 = _norm(32)
        self.stride, self.pool = stem_stride, pool
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

    def fold(self) -> ConvEmbedder:
        """Fold every normalisation into its convolution, in place and for good: in evaluation mode it is affine."""
        for module in list(self.modules()):
            for conv, norm in getattr(module, "PAIRS", ()):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
        return self

    def features(self, x: Tensor) -> Tensor:
        """See `PatchEmbedder.features`."""
        x = _relu6(self.bn1(self.conv_stem(x)))
        tokens: Tensor = self.blocks(x)
        return tokens


class DinoEmbedder(PatchEmbedder):
    """Patch tokens of a timm vision transformer, at any image size.

    Args:
        name: timm's name, e.g. ``vit_large_patch14_dinov2.lvd142m``.
        img_size: The size whose position embeddings the tensors hold (518 for DINOv2); others are interpolated.
        pool: See `PatchEmbedder`.
    """

    def __init__(self, name: str, img_size: int = 518, pool: int = 1) -> None:
        import timm

        super().__init__()
        vit: Any = timm.create_model(name, pretrained=False, num_classes=0, img_size=img_size, dynamic_img_size=True)
        self.vit = vit
        self.dim = int(vit.num_features)
        self.stride = int(vit.patch_embed.patch_size[0])
        self.pool = pool

    def features(self, x: Tensor) -> Tensor:
        """See `PatchEmbedder.features`."""
        vit: Any = self.vit
        tokens: Tensor = vit.forward_features(x)[:, vit.num_prefix_tokens :]
        grid = (x.shape[-2] // self.stride, x.shape[-1] // self.stride)
        folded: Tensor = tokens.transpose(1, 2).unflatten(2, grid)
        return folded


def build_embedder(config: Mapping[str, Any]) -> PatchEmbedder:
    """Build the embedder that ``config`` describes: ``kind`` (``conv`` or ``dinov2``) and its arguments.

    For ``dinov2``, ``patch`` (16, 32 or 56 pixels in the paper) chooses the pooling: the nearest multiple of the
    transformer's own patch.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind == "conv":
        return ConvEmbedder(**options)
    if kind == "dinov2":
        patch = options.pop("patch", 14)
        embedder = DinoEmbedder(**options)
        embedder.pool = max(1, round(patch / embedder.stride))
        return embedder
    raise WeightsError(f"embedder kind {kind!r} is unknown; conv and dinov2 are there")


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], name: str, ignore: Sequence[str] = ()) -> None:
    """Load a state dict, or raise before anything is loaded.

    Args:
        module: What to fill.
        tensors: Its state; other floating-point types are converted.
        name: Of the weights, for the message.
        ignore: Keys of ``tensors`` that may be left over.

    Raises:
        WeightsError: A key is missing, left over or of another shape; the message names the first such key.
    """
    expected = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {k: v for k, v in tensors.items() if k not in ignore and not k.endswith("num_batches_tracked")}
    for key, value in expected.items():
        if key not in given:
            raise WeightsError(f"{name}: expected tensor {key!r} of shape {tuple(value.shape)}, it is missing")
        if given[key].shape != value.shape:
            raise WeightsError(f"{name}: expected {key!r} of shape {tuple(value.shape)}, got {tuple(given[key].shape)}")
    for key, value in given.items():
        if key not in expected:
            raise WeightsError(f"{name}: expected no tensor {key!r}, got one of shape {tuple(value.shape)}")
    module.load_state_dict({key: given[key].to(value.dtype) for key, value in expected.items()}, strict=False)

"""Convolutions that apply what follows them while their output is still in the cache.

With normalisations folded, a ResNet on a CPU spends a quarter of its time reading and writing maps only to clip or add
them. oneDNN does that inside the convolution, but torch has no public name for it outside `torch.compile`, whose
compilation takes longer than most runs. So torch's own operations for the purpose are used where they are there and
give what the public ones give, which is tried once; anywhere else, and wherever gradients are wanted, the public ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["conv_add_relu", "conv_relu"]


def conv_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """relu(conv(x)), (N, C, H, W) to (N, C', H', W')."""
    if _fusible(conv, x):
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(x, *_arguments(conv), "relu", [], "")
        return fused
    return functional.relu(conv(x))


def conv_add_relu(conv: nn.Conv2d, x: Tensor, added: Tensor) -> Tensor:
    """relu(conv(x) + added). The result may be written over ``added``, which is not to be used afterwards."""
    if _fusible(conv, x) and added.dtype == torch.float32:
        operation: Any = torch.ops.mkldnn._convolution_pointwise_.binary
        fused: Tensor = operation(added, x, *_arguments(conv), "add", 1.0, "relu", [], "")
        return fused
    return functional.relu(conv(x) + added)


def _arguments(conv: nn.Conv2d) -> tuple[Any, ...]:
    sizes = (list(conv.padding), list(conv.stride), list(conv.dilation))
    return conv.weight, conv.bias, *sizes, conv.groups


def _fusible(conv: nn.Conv2d, x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == conv.weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and _works()
    )


@cache
def _works() -> bool:
    """Whether the private operations are there and compute what they should."""
    onednn: Any = torch.backends.mkldnn  # whose functions have no types
    if not onednn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((1, 4, 5, 5), (8, 4, 3, 3), (8,)))
    added = torch.randn(1, 8, 5, 5, generator=generator)
    plain = functional.conv2d(x, weight, bias, padding=1)
    arguments = (weight, bias, [1, 1], [1, 1], [1, 1], 1)
    try:
        one = torch.ops.mkldnn._convolution_pointwise(x, *arguments, "relu", [], "")
        operation: Any = torch.ops.mkldnn._convolution_pointwise_.binary
        two = operation(added.clone(), x, *arguments, "add", 1.0, "relu", [], "")
    # Another version of torch may lack them, or want other arguments: that costs speed and nothing else.
    except (AttributeError, RuntimeError, TypeError):
        return False
    expected = (functional.relu(plain), functional.relu(plain + added))
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip((one, two), expected, strict=True))

"""Heatmaps of classifiers that judge a whole image: GradCAM by captum, and attention rollout.

They work on networks whose parameters take no gradients, wherever they are called from (scoring runs under
``torch.inference_mode``), and leave neither gradients nor hooks behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from detector_zoo.errors import PluginError

__all__ = ["grad_cam", "rollout", "spread", "token_cam"]

Score = Callable[[Tensor], Tensor]
"""Normalised images (N, 3, H, W) to one number each, (N,)."""


def grad_cam(score: Score, pooling: nn.Module, batch: Tensor) -> Tensor:
    """GradCAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391) of the last maps of a convolutional network.

    Its ReLU is left out: what speaks against the class is below 0, and can be told from what says nothing. With
    average pooling and a linear layer the sum of a map is the logit without its bias.

    Args:
        score: The network.
        pooling: The part of it that takes the maps, (N, C, h, w).
        batch: Normalised images, (N, 3, H, W).

    Returns:
        (N, h, w).

    Raises:
        PluginError: captum is not installed.
    """
    method = _captum().LayerGradCam(score, pooling)
    with _gradients():
        found: Tensor = method.attribute(_input(batch), attribute_to_layer_input=True)
    return found[:, 0].detach()


def token_cam(score: Score, layer: nn.Module, batch: Tensor, grid: tuple[int, int]) -> Tensor:
    """Gradient times activation of a transformer's tokens, summed over the channels.

    That is GradCAM without averaging the gradient over the positions (HiResCAM, Draelos & Carin 2020, arXiv
    2011.08891): how much attention a token gets is in its gradient, and the average would lose it.

    Args:
        score: The network.
        layer: A part of it that returns tokens, (N, T, C); the normalisation that opens the last block.
        batch: Normalised images, (N, 3, H, W).
        grid: Rows and columns of patches, whose tokens are the last.

    Returns:
        (N, rows, columns).

    Raises:
        PluginError: captum is not installed.
    """
    method = _captum().LayerGradientXActivation(score, layer)
    with _gradients():
        found: Tensor = method.attribute(_input(batch))
    return found.detach().sum(-1)[:, -grid[0] * grid[1] :].reshape(-1, *grid)


def rollout(network: nn.Module, blocks: Sequence[nn.Module], batch: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attention rollout (Abnar & Zuidema, ACL 2020, arXiv 2005.00928): where a class token's contents come from.

    The blocks' attention, averaged over the heads and with the residual connections in between, multiplied. It tells
    where a network looks, and is the same whichever class what it sees there speaks for.

    Args:
        network: A transformer; the first of its tokens is the class token.
        blocks: Its blocks in order, each with ``attn``: timm's ``Attention`` or torch's ``MultiheadAttention``.
        batch: Normalised images, (N, 3, H, W).
        grid: Rows and columns of patches, whose tokens are the last.

    Returns:
        (N, rows, columns): shares, above 0, that together with those of the other tokens make 1.
    """
    with torch.inference_mode(), _attention(blocks) as maps:
        network(batch)
        # Of the product only the class token's row is of use, so it is taken from the last block to the first.
        row = torch.zeros_like(maps[0][:, 0, :1])
        row[..., 0] = 1
        for weights in reversed(maps):
            row = (row + row @ weights.mean(1)) / 2
        return row[:, 0, -grid[0] * grid[1] :].reshape(-1, *grid)


def spread(grid: Tensor, height: int, width: int, stride: int, first: float) -> Tensor:
    """Interpolate a map bilinearly to pixels.

    Args:
        grid: (N, h, w).
        height: Of the network's input, in pixels.
        width: Likewise.
        stride: Pixels from one position to the next.
        first: Of which pixel the first position is the centre: 0 for padded convolutions, (patch - 1) / 2 for
            patches.

    Returns:
        (N, height, width); beyond the outermost centres their values repeat.
    """
    rows, columns = (
        _interpolation(pixels, positions, stride, first).to(grid)
        for pixels, positions in zip((height, width), grid.shape[-2:], strict=True)
    )
    return rows @ grid @ columns.T


def _interpolation(pixels: int, positions: int, stride: int, first: float) -> Tensor:
    """The matrix (pixels, positions) of linear interpolation."""
    place = ((torch.arange(pixels) - first) / stride).clamp(0, positions - 1)
    return (1 - (place[:, None] - torch.arange(positions)).abs()).clamp(min=0)


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise PluginError("this heatmap needs captum", hint="pip install 'detector-zoo[heatmaps]'") from error
    return cast("ModuleType", captum.attr)


@contextmanager
def _gradients() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _input(batch: Tensor) -> Tensor:
    """A leaf of its own: what inference mode made cannot take gradients, and the caller's shall not keep any."""
    return batch.clone().requires_grad_()


@contextmanager
def _attention(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Have the blocks spell out their attention, (N, heads, T, T) each, into a list that a forward pass fills."""
    found: list[Tensor] = []
    with ExitStack() as stack:
        for block in blocks:
            attn: Any = block.attn
            if isinstance(attn, nn.MultiheadAttention):
                hooks = [
                    attn.register_forward_pre_hook(_ask_for_weights, with_kwargs=True),
                    attn.register_forward_hook(lambda module, args, output: found.append(output[1])),
                ]
            else:
                # timm's fused kernel never has the matrix; without it a dropout of probability 0 is given it.
                stack.callback(setattr, attn, "fused_attn", attn.fused_attn)
                attn.fused_attn = False
                hooks = [attn.attn_drop.register_forward_hook(lambda module, args, output: found.append(output))]
            for hook in hooks:
                stack.callback(hook.remove)
        yield found


def _ask_for_weights(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"need_weights": True, "average_attn_weights": False}

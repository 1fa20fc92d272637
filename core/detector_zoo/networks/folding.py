"""Folding batch normalisation into the convolution before it: fewer passes over memory, the same values."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fold"]


def fold(network: nn.Module) -> nn.Module:
    """Fold every convolution's normalisation into it, in place and for good; returns the network.

    A pair is a ``Conv2d`` and the ``BatchNorm2d`` of as many channels that was registered right after it in the
    same module, as torchvision's and timm's networks do. A normalisation that holds an activation of its own (timm's
    ``BatchNormAct2d``) leaves that activation in its place.

    Args:
        network: In evaluation mode, where a normalisation is affine. A network whose modules run in another order
            than they were registered in would change its output: compare the two once.
    """
    for module in list(network.modules()):
        children = list(module.named_children())
        for (first, conv), (second, norm) in pairwise(children):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            # Without running statistics a normalisation is not affine, not even in evaluation mode.
            if norm.num_features != conv.out_channels or norm.running_mean is None:
                continue
            setattr(module, first, fuse_conv_bn_eval(conv, norm))
            setattr(module, second, getattr(norm, "act", None) or nn.Identity())
    return network

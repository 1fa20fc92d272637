"""UFD's linear head on a small frozen network that comes with it, where CLIP is too large to embed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from detector_zoo.networks import small
from detector_zoo.networks.positionwise import PositionwiseDetector

__all__ = ["SmallUFD"]


class SmallUFD(PositionwiseDetector):
    """A linear head on the averaged features of a frozen ImageNet network (`detector_zoo.networks.small`)."""

    @classmethod
    def build(cls, config: Mapping[str, object]) -> nn.Module:
        """See `PositionwiseDetector.build`."""
        return small.build(config)

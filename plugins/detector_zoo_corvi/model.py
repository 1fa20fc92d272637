"""Corvi et al.'s detector: a ResNet-50 that halves its resolution three times instead of five, on the whole image."""

from __future__ import annotations

from collections.abc import Mapping

from detector_zoo.networks.positionwise import PositionwiseDetector
from detector_zoo.networks.resnet import ResNet50

__all__ = ["Corvi"]


class Corvi(PositionwiseDetector):
    """Corvi (Corvi et al., ICASSP 2023, arXiv 2211.00680).

    The first convolution and the max pooling keep the resolution (``conv1_stride`` and ``maxpool_stride`` 1 in the
    weights' ``config``); the image is neither resized nor cropped. The logit is the score; the authors call an image
    generated above 0.
    """

    @classmethod
    def build(cls, config: Mapping[str, object]) -> ResNet50:
        """See `PositionwiseDetector.build`."""
        return ResNet50.of(config)

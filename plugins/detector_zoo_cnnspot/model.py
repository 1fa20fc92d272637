"""CNNSpot's detector: torchvision's ResNet-50 with one output, on the whole image or its centre."""

from __future__ import annotations

from collections.abc import Mapping

from detector_zoo.networks.positionwise import PositionwiseDetector
from detector_zoo.networks.resnet import ResNet50

__all__ = ["CNNSpot"]


class CNNSpot(PositionwiseDetector):
    """CNNSpot (Wang et al., CVPR 2020, arXiv 1912.11035).

    The image is neither resized nor, unless the weights' ``preprocessing`` has a ``crop``, cropped. The logit is the
    score; the authors call an image generated above 0.
    """

    @classmethod
    def build(cls, config: Mapping[str, object]) -> ResNet50:
        """See `PositionwiseDetector.build`."""
        return ResNet50.of(config)

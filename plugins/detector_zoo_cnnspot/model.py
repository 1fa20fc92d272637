"""CNNSpot's detector: torchvision's ResNet-50 with one output, on the whole image or its centre."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from detector_zoo.networks import small
from detector_zoo.networks.positionwise import PositionwiseDetector

if TYPE_CHECKING:
    from detector_zoo.training.job import Job

__all__ = ["CNNSpot"]


class CNNSpot(PositionwiseDetector):
    """CNNSpot (Wang et al., CVPR 2020, arXiv 1912.11035).

    The image is neither resized nor, unless the weights' ``preprocessing`` has a ``crop``, cropped. The logit is the
    score; the authors call an image generated above 0.
    """

    @classmethod
    def build(cls, config: Mapping[str, object]) -> nn.Module:
        """See `PositionwiseDetector.build`."""
        return small.build(config)

    @classmethod
    def fit(cls, job: Job) -> Path:
        """See `detector_zoo.detector.Trainable`."""
        from detector_zoo_cnnspot.training import fit

        return fit(job)

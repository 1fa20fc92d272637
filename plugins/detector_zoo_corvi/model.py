"""Corvi et al.'s detector: a ResNet-50 that halves its resolution three times instead of five, on the whole image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from detector_zoo.networks import small
from detector_zoo.networks.positionwise import PositionwiseDetector

if TYPE_CHECKING:
    from detector_zoo.training.job import Job

__all__ = ["Corvi"]


class Corvi(PositionwiseDetector):
    """Corvi (Corvi et al., ICASSP 2023, arXiv 2211.00680).

    The first convolution and the max pooling keep the resolution (``conv1_stride`` and ``maxpool_stride`` 1 in the
    weights' ``config``); the image is neither resized nor cropped. The logit is the score; the authors call an image
    generated above 0.
    """

    @classmethod
    def build(cls, config: Mapping[str, object]) -> nn.Module:
        """See `PositionwiseDetector.build`."""
        return small.build(config)

    @classmethod
    def fit(cls, job: Job) -> Path:
        """See `detector_zoo.detector.Trainable`."""
        from detector_zoo_corvi.training import fit

        return fit(job)

"""The dummy's statistic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Dummy:
    """Log-odds of the mean pixel value m: ln(m / (255 - m)), with m kept one half away from either end.

    A bright image scores above 0, a dark one below. It says nothing about where an image comes from.
    """

    def score(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """(N,) float32 in [-6.24, 6.24]."""
        means = np.array([np.asarray(image.convert("RGB"), np.float64).mean() for image in images])
        means = np.clip(means, 0.5, 254.5)
        log_odds: NDArray[np.float32] = np.log(means / (255 - means)).astype(np.float32)
        return log_odds

    def heatmap(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """(N, H, W) float32 in [0, 1]: the pixels' own mean over the channels."""
        return np.stack([np.asarray(image.convert("RGB"), np.float32).mean(axis=2) / 255 for image in images])

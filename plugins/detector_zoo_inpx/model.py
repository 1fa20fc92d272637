"""The detector: a classifier of real against exchanged images (Nebioglu et al., 2026, arXiv 2602.00192)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.networks.folding import fold
from detector_zoo.networks.state import load_strictly
from detector_zoo.preprocessing import Preprocessing
from detector_zoo_inpx.networks import View, build, view

if TYPE_CHECKING:
    from detector_zoo.training.job import Job

__all__ = ["INPX"]

CPU_IMAGES = 4
"""Images that go through a network at a time on a CPU: more would leave its cache, and be slower."""


class INPX(TorchDetector):
    """A classifier with one output on the whole image.

    Args:
        network: One that `detector_zoo_inpx.networks.build` made.
        inputs: Its preprocessing; every image has to come out of it in one size.
        look: How it is looked into.
    """

    def __init__(self, network: nn.Module, inputs: Preprocessing, look: View) -> None:
        self.network = fold(network.eval().requires_grad_(False)).to(memory_format=torch.channels_last)
        self.inputs = inputs
        self._look = look

    @classmethod
    def from_weights(cls, weights: Weights) -> INPX:
        """Build the network that ``weights.spec.config`` describes and load the tensors strictly.

        ``config`` is that of `detector_zoo_inpx.networks.build`, and ``heatmap``: ``gradcam`` or, for transformers,
        ``rollout``.

        Raises:
            WeightsError: A tensor is missing, left over or of another shape; or the spec is not understood.
        """
        spec = weights.spec
        network = build(spec.config)
        look = view(network, spec.config["heatmap"])
        load_strictly(network, weights.tensors, spec.name)
        detector = cls(network, Preprocessing.of(spec.name, spec.preprocessing), look)
        detector.spec = spec
        return detector

    def transform(self, image: Image.Image) -> Tensor:
        """The pixels, (3, H, W) uint8, of the network's size."""
        return self.inputs.pixels(image)

    def logits(self, batch: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) uint8 to logits, (N,)."""
        parts = batch.split(CPU_IMAGES if batch.device.type == "cpu" else len(batch))
        return torch.cat([self.network(self.inputs.normalise(part))[:, 0] for part in parts])

    def heatmap(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """What ``config`` names, interpolated bilinearly.

        Args:
            images: N RGB images of one size (W, H).

        Returns:
            (N, H, W) float32. ``gradcam``: shares of the logit, above 0 where the image looks generated.
            ``rollout``: shares of attention, above 0: where the network looks, whichever way it decides.
        """
        return np.stack([self._heat(image) for image in images])

    def _heat(self, image: Image.Image) -> NDArray[np.float32]:
        with torch.no_grad():
            batch = self.inputs.normalise(self.transform(image)[None].to(self.device))
            heat = self._look.heatmap(self.network, batch)[0]
        return self.inputs.spread(heat.float().cpu().numpy(), image.size)

    @classmethod
    def fit(cls, job: Job) -> Path:
        """See `detector_zoo.detector.Trainable`."""
        from detector_zoo_inpx.training import fit

        return fit(job)

"""The detector: patches in no order (Zheng et al., NeurIPS 2024, openreview NtNTfRTjE8).

Training shuffles the patches of an image so that the scene cannot be read. The linear layer on their concatenated
features still tells the slots apart, so the score of an image would depend on the permutation that is drawn for it.
Here it is the mean over all of them, which needs no drawing, and may be over more patches than there are slots: see
`PatchNetwork.mean_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.errors import WeightsError
from detector_zoo.networks.folding import fold
from detector_zoo.networks.state import load_strictly
from detector_zoo.preprocessing import Preprocessing
from detector_zoo_patch_shuffle.network import PatchNetwork, cut, with_slots

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL import Image

    from detector_zoo.training.job import Job

__all__ = ["PatchShuffle"]

CPU_PIXELS = 4 * 256 * 256
"""Pixels, in whole patches, that go through the encoder at a time on a CPU.

Every call packs the weights of the last stages anew, which is soon most of its work where fewer patches share it.
"""


class PatchShuffle(TorchDetector):
    """Patch-shuffle at any patch size and depth, scored by the mean over all permutations of the patches.

    Args:
        network: In evaluation mode.
        inputs: Its preprocessing, which leaves whole patches: as many as the network has slots, or any other number.
    """

    network: PatchNetwork

    def __init__(self, network: PatchNetwork, inputs: Preprocessing) -> None:
        fold(network.eval().requires_grad_(False)).to(memory_format=torch.channels_last)
        self.network = network
        self.inputs = inputs

    @classmethod
    def from_weights(cls, weights: Weights) -> PatchShuffle:
        """Build the network that ``weights.spec.config`` describes and load the tensors strictly.

        ``config`` holds ``patch``, ``depth``, ``width`` and ``slots`` of `PatchNetwork`; ``preprocessing`` the fields
        of `Preprocessing`. Without ``slots`` there are as many as patches in the ``crop``.

        Raises:
            WeightsError: The crop is not a whole number of patches; a tensor is missing, left over or of another
                shape.
        """
        spec = weights.spec
        inputs = Preprocessing.of(spec.name, spec.preprocessing)
        try:
            network = PatchNetwork(**with_slots(spec.config, inputs))
        except ValueError as error:
            raise WeightsError(f"{spec.name}: {error}") from error
        load_strictly(network, weights.tensors, spec.name)
        detector = cls(network, inputs)
        detector.spec = spec
        return detector

    def transform(self, image: Image.Image) -> Tensor:
        """The centre crop's pixels, (3, H, W) uint8, of whole patches; black where the image is smaller."""
        return self.inputs.pixels(image)

    def logits(self, batch: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) uint8 to logits, (N,).

        Each is the mean over all ways to fill the network's slots with patches of the image: over all permutations
        where there are as many patches as slots.
        """
        shares = self._shares(self._features(batch))
        logits: Tensor = self.network.slots * shares.mean(1) + self.network.classifier.bias
        return logits

    def heatmap(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """The logit that every patch would give an image made of nothing else: one value a patch.

        Args:
            images: N RGB images of one size (W, H).

        Returns:
            (N, H, W) float32, in the unit of the logit; above 0 where the patch looks generated. The mean over the
            patches is the image's logit, before calibration. Outside the crop, where the score does not look, the
            map repeats the crop's edge.
        """
        patch, slots = self.network.patch, self.network.slots
        with torch.inference_mode():
            batch = torch.stack([self.transform(image) for image in images]).to(self.device)
            grid = slots * self._shares(self._features(batch)) + self.network.classifier.bias
            grid = grid.unflatten(1, (batch.shape[2] // patch, -1))
            maps = grid.repeat_interleave(patch, 1).repeat_interleave(patch, 2).float().cpu().numpy()
        return np.stack([self.inputs.spread(heat, image.size) for heat, image in zip(maps, images, strict=True)])

    def evidence(self, image: Image.Image) -> Mapping[str, float]:
        """What a logit is made of, by the sign of the weights (the decomposition of Rajan & Lee, ICML 2025).

        Features are behind a ReLU, so with the weights averaged over the slots a negative one can only speak for a
        real image and a positive one only for a generated one.

        Returns:
            With h the features of the mean patch, times the number of slots: ``real``, the sum of w_i h_i over w_i < 0;
            ``fake``, the same over w_i > 0; ``bias``, b. They add up to the logit, before calibration.
        """
        with torch.inference_mode():
            features = self._features(self.transform(image)[None].to(self.device))[0].mean(0)
            parts = self.network.slots * self.network.mean_weight() * features
            return {
                "real": float(parts.clamp(max=0).sum()),
                "fake": float(parts.clamp(min=0).sum()),
                "bias": float(self.network.classifier.bias),
            }

    def _features(self, batch: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) uint8 to features (N, P, 512) float32."""
        patches = cut(batch, self.network.patch)
        area = self.network.patch**2
        # At full resolution a convolution's input and output live at once.
        pixels = self.budget() // (4 * 2 * self.network.width)
        if batch.device.type == "cpu":
            pixels = min(pixels, CPU_PIXELS)
        parts = patches.flatten(0, 1).split(max(1, pixels // area))
        features = torch.cat([self.network.encoder(self.inputs.normalise(part)) for part in parts])
        by_image: Tensor = features.float().unflatten(0, patches.shape[:2])
        return by_image

    def _shares(self, features: Tensor) -> Tensor:
        """Features (N, P, 512) to each patch's share of the logit, (N, P)."""
        return (features * self.network.mean_weight()).sum(2)

    @classmethod
    def fit(cls, job: Job) -> Path:
        """See `detector_zoo.detector.Trainable`."""
        from detector_zoo_patch_shuffle.training import fit

        return fit(job)

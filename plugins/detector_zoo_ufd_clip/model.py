"""The detector: a linear head on CLIP's image embedding (Ojha et al., CVPR 2023, arXiv 2302.10174)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor, nn

from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.networks.clip import embedding_size, load_tower
from detector_zoo.networks.shared import BackboneDetector
from detector_zoo.networks.state import load_strictly
from detector_zoo.preprocessing import Preprocessing
from detector_zoo_ufd_clip.small import SmallUFD

if TYPE_CHECKING:
    from detector_zoo.training.job import Job

__all__ = ["UFD"]


class UFD(BackboneDetector):
    """A linear head on the embedding of a frozen image tower, which other detectors on the same tower share.

    The embedding is what CLIP's ``encode_image`` returns, and not divided by its length.

    Args:
        head: Linear, one output.
        inputs: The preprocessing; it has to produce the tower's one input size.
        key: Of the tower, see `detector_zoo.networks.shared.shared`.
        build: Of the tower.
    """

    def __init__(self, head: nn.Linear, inputs: Preprocessing, key: Hashable, build: Callable[[], nn.Module]) -> None:
        super().__init__(head, key, build)
        self.inputs = inputs

    @classmethod
    def from_weights(cls, weights: Weights) -> TorchDetector:
        """Put the head ``weights.tensors`` (``weight``, ``bias``) on the tower ``weights.backbone``.

        With ``architecture`` in ``config`` the network came with the head: see `SmallUFD`. Otherwise ``config`` holds
        ``model``, open_clip's name of the tower (see `detector_zoo.networks.clip.build_tower`).

        Raises:
            WeightsError: A tensor is missing, left over or of another shape; or the spec is not understood.
        """
        spec = weights.spec
        if "architecture" in spec.config:
            return SmallUFD.from_weights(weights)
        model = str(spec.config["model"])
        # The head first: a wrong one is found before a gigabyte has been read for it.
        head = nn.Linear(embedding_size(model), 1)
        load_strictly(head, weights.tensors, spec.name)
        detector = cls(
            head,
            Preprocessing.of(spec.name, spec.preprocessing),
            (cls.key_of(weights), model),
            lambda: load_tower(model, weights.backbone, spec.backbone or spec.name),
        )
        detector.spec = spec
        return detector

    def transform(self, image: Image.Image) -> Tensor:
        """The pixels of the centre, (3, H, W) uint8; what an image is too small for is black."""
        return self.inputs.pixels(image)

    def logits(self, batch: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) uint8 to logits, (N,)."""
        embeddings: Tensor = self.backbone(self.inputs.normalise(batch))
        scores: Tensor = self.network(embeddings)[:, 0]
        return scores

    @classmethod
    def fit(cls, job: Job) -> Path:
        """See `detector_zoo.detector.Trainable`."""
        from detector_zoo_ufd_clip.training import fit

        return fit(job)

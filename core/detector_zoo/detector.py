"""What a detector is: one method to write, and optional capabilities found by ``isinstance``.

A plugin's class has only to score images. Whether it can also draw a heatmap, explain itself or be trained is
a matter of extra protocols, never of its name. torch and numpy are imported only where they are used: a detector
that works without torch costs nobody the seconds that it takes to load.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    from detector_zoo.training.job import Job
    from detector_zoo.weight_specs import WeightSpec

__all__ = [
    "PROTOCOLS",
    "Detector",
    "Explainer",
    "Label",
    "Localizer",
    "Score",
    "TorchDetector",
    "Trainable",
    "Weights",
    "probability",
    "verdict",
]

Label = Literal["real", "generated", "inconclusive"]
Precision = Literal["fp32", "bf16", "fp16"]

DEFAULT_MEMORY = 2 * 10**9
"""Bytes that a forward pass on the CPU may take unless told otherwise."""
SHARE = 0.6
"""Of the memory, for a network's maps; the rest is for the input and for what convolutions pack and unpack."""


@runtime_checkable
class Detector(Protocol):
    """The whole duty of a plugin."""

    def score(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Score images.

        Args:
            images: N RGB images of any size.

        Returns:
            Shape (N,), float32 log-odds; above 0 means generated. An image's score must not depend on the
            images beside it, on their order or on their number.
        """
        ...


@runtime_checkable
class Localizer(Protocol):
    """A detector that says where."""

    def heatmap(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Map the evidence.

        Args:
            images: N RGB images of one common size (W, H).

        Returns:
            Shape (N, H, W), float32, higher where the image looks generated.
        """
        ...


@runtime_checkable
class Explainer(Protocol):
    """A detector that can say what its score is made of."""

    def evidence(self, image: Image.Image) -> Mapping[str, float]:
        """Named parts of one image's score, in log-odds."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """A detector that the zoo can train; its recipes are YAML files in ``recipes/`` beside its module."""

    @classmethod
    def fit(cls, job: Job) -> Path:
        """Train as the job says, starting without weights; return the folder of the new ones.

        ``job.values`` is the recipe as the user changed it: unknown keys are for the class to refuse
        (`detector_zoo.training.recipes.build`).
        """
        ...


PROTOCOLS: Mapping[str, type] = {"localize": Localizer, "explain": Explainer, "train": Trainable}
"""The protocol behind each name of `detector_zoo.info.CAPABILITIES`."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights on their way into a detector: already fetched, verified and read.

    Attributes:
        spec: Where they come from, the architecture's configuration and the preprocessing constants.
        tensors: The state dict.
        backbone: The state dict of ``spec.backbone``, when the weights are a head on a public network; read when it
            is first looked into, because a network that is loaded already is shared instead.
    """

    spec: WeightSpec
    tensors: Mapping[str, torch.Tensor]
    backbone: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """One detector's answer for one image.

    Attributes:
        log_odds: Calibrated where ``calibrated`` is true; above ``threshold`` means generated.
        probability: The logistic function of ``log_odds``, in [0, 1].
        raw: What the method computes before calibration (MMD^2, a logit, ...), in its own unit.
        label: ``inconclusive`` where the weights' calibration says that neither class is clearly likelier.
        threshold: In log-odds.
        detector: Method name.
        weights: Tag, or "" for a detector without weights.
        calibrated: Whether ``log_odds`` were fitted to be log-odds. An uncalibrated score ranks images; its
            probability is not one.
    """

    log_odds: float
    probability: float
    raw: float
    label: Label
    threshold: float
    detector: str
    weights: str
    calibrated: bool


def probability(log_odds: float) -> float:
    """The logistic function, without overflow at either end."""
    if log_odds >= 0:
        return 1.0 / (1.0 + math.exp(-log_odds))
    odds = math.exp(log_odds)
    return odds / (1.0 + odds)


def verdict(log_odds: float, threshold: float, inconclusive: float = 0.0) -> Label:
    """Label a score; within ``inconclusive`` of the threshold (log-odds, exclusive) neither class is named."""
    if abs(log_odds - threshold) < inconclusive:
        return "inconclusive"
    return "generated" if log_odds > threshold else "real"


class TorchDetector:
    """A detector made of two pure pieces, so that decoding threads can run one and the device the other.

    A subclass writes `transform` and `logits`; whatever they need is built in ``__init__`` or ``from_weights``.
    ``spec`` is set by whoever builds the detector from weights; its calibration turns logits into log-odds.
    """

    spec: WeightSpec | None = None
    network: torch.nn.Module
    memory: int | None = None
    """Bytes that a forward pass may take; None for `DEFAULT_MEMORY`, on CUDA for what is free."""
    precision: Precision = "fp32"
    """Of the network's matrix products and convolutions (autocast); weights and results stay float32."""

    @classmethod
    def from_weights(cls, weights: Weights) -> TorchDetector:
        """Build the network that ``weights.spec.config`` describes and load the tensors strictly."""
        raise NotImplementedError

    def transform(self, image: Image.Image) -> torch.Tensor:
        """One RGB image to one input, (C, H, W) float32 or uint8. Pure, thread-safe, runs on the CPU."""
        raise NotImplementedError

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        """Inputs of one common shape, (N, C, H, W) on ``device``, to the method's raw scores, (N,)."""
        raise NotImplementedError

    @cached_property
    def device(self) -> torch.device:
        """Where the network lives."""
        import torch

        tensor = next(iter(self.network.parameters()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def to(self, device: str | torch.device) -> TorchDetector:
        """Move the network; returns self."""
        self.network.to(device)
        self.__dict__.pop("device", None)
        return self

    def budget(self) -> int:
        """Bytes that the maps of one forward pass may take: what `memory` leaves beside inputs and scratch space."""
        import torch

        if self.memory is not None:
            return int(SHARE * self.memory)
        if self.device.type == "cuda":
            # What the caching allocator holds and does not use is as good as free.
            cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return int(SHARE * (torch.cuda.mem_get_info(self.device)[0] + cached))
        return int(SHARE * DEFAULT_MEMORY)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that `precision` asks for."""
        import torch

        if self.precision == "fp32":
            return nullcontext()
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return torch.autocast(self.device.type, kind)

    def raw(self, batch: torch.Tensor) -> NDArray[np.float64]:
        """`logits` of a CPU batch on the detector's device, gradients off, as float64 (N,)."""
        import torch

        with torch.inference_mode(), self.autocast():
            scores: NDArray[np.float64] = self.logits(batch.to(self.device)).double().cpu().numpy()
        return scores

    def log_odds(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raw scores to log-odds by the weights' calibration; unchanged where there is none."""
        calibration = self.spec.calibration if self.spec else None
        return raw if calibration is None else calibration.scale * raw + calibration.offset

    def score(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Log-odds, (N,) float32; images of one input shape go through the network together."""
        raw = by_shape([self.transform(image) for image in images], self.raw)
        return self.log_odds(raw).astype("float32")


def by_shape(
    inputs: Sequence[torch.Tensor],
    forward: Callable[[torch.Tensor], NDArray[np.float64]],
    batch_size: int = 16,
) -> NDArray[np.float64]:
    """Run ``forward`` over inputs of mixed shapes, batched by shape (never padded); results in input order."""
    import numpy as np
    import torch

    buckets: dict[tuple[int, ...], list[int]] = {}
    for index, tensor in enumerate(inputs):
        buckets.setdefault(tuple(tensor.shape), []).append(index)
    out = np.empty(len(inputs), np.float64)
    for indices in buckets.values():
        for start in range(0, len(indices), batch_size):
            chunk = indices[start : start + batch_size]
            out[chunk] = forward(torch.stack([inputs[i] for i in chunk]))
    return out

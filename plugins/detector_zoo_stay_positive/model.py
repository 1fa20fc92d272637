"""Stay-Positive's detector: Corvi's network whose last layer has no negative weight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from torch import nn

from detector_zoo.detector import Weights
from detector_zoo.errors import WeightsError
from detector_zoo_corvi import Corvi

if TYPE_CHECKING:
    from detector_zoo.training.job import Job

__all__ = ["StayPositive"]

_KEY = "nonnegative"


class StayPositive(Corvi):
    """Stay-Positive (Rajan & Lee, ICML 2025, arXiv 2502.07778).

    Features are behind a ReLU, so without a negative weight nothing that speaks for a real image can lower the score.
    ``nonnegative: false`` in the weights' ``config`` marks those of a base detector, which has negative weights.
    """

    @classmethod
    def build(cls, config: Mapping[str, object]) -> nn.Module:
        """See `PositionwiseDetector.build`; ``nonnegative`` is true or false and does not change the network."""
        options = dict(config)
        if not isinstance(value := options.pop(_KEY, True), bool):
            raise WeightsError(f"config: {_KEY} is {value!r}, expected true or false")
        return super().build(options)

    @classmethod
    def from_weights(cls, weights: Weights) -> Self:
        """See `PositionwiseDetector.from_weights`.

        Raises:
            WeightsError: As there; or the last layer has a negative weight.
        """
        detector = super().from_weights(weights)
        last = weights.tensors["fc.weight"]
        negative = int((last < 0).sum())
        if weights.spec.config.get(_KEY, True) and negative:
            raise WeightsError(
                f"{weights.spec.name}: {negative} of the {last.numel()} entries of 'fc.weight' are negative, the "
                f"smallest {float(last.min()):.6g}: not weights of Stay-Positive",
                hint="import a base detector with --like stay_positive.rajan, or as corvi.mine",
            )
        return detector

    @classmethod
    def fit(cls, job: Job) -> Path:
        """See `detector_zoo.detector.Trainable`."""
        from detector_zoo_stay_positive.training import fit

        return fit(job)

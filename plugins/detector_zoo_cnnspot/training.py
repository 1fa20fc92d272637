"""How CNNSpot learns: binary cross-entropy on blurred and compressed crops (Wang et al., CVPR 2020, section 4)."""

from __future__ import annotations

from pathlib import Path

from detector_zoo.training.job import Job
from detector_zoo.training.positions import fit_positions
from detector_zoo_cnnspot.model import CNNSpot

__all__ = ["fit"]


def fit(job: Job) -> Path:
    """Train as ``recipes/`` say; returns the folder of the weights."""
    return fit_positions(job, CNNSpot)

"""How Corvi's network learns: binary cross-entropy on small crops, augmented strongly (Corvi et al., ICASSP 2023)."""

from __future__ import annotations

from pathlib import Path

from detector_zoo.training.job import Job
from detector_zoo.training.positions import fit_positions
from detector_zoo_corvi.model import Corvi

__all__ = ["fit"]


def fit(job: Job) -> Path:
    """Train as ``recipes/`` say; returns the folder of the weights."""
    return fit_positions(job, Corvi)

"""Weights as training leaves them, ``lite.safetensors`` and ``lite.yaml`` in a folder, without any registry."""

from __future__ import annotations

from pathlib import Path

import yaml
from safetensors.torch import load_file

from detector_zoo.detector import Weights
from detector_zoo.registry import Calibration, WeightSpec
from detector_zoo_mdmf.model import MDMF

__all__ = ["load_trained"]


def load_trained(folder: Path) -> MDMF:
    """Build the detector from a folder that `detector_zoo_mdmf.training` wrote."""
    fields = yaml.safe_load((folder / "lite.yaml").read_text(encoding="utf-8"))
    fields["calibration"] = Calibration(**fields["calibration"])
    return MDMF.from_weights(Weights(spec=WeightSpec(**fields), tensors=load_file(folder / "lite.safetensors")))

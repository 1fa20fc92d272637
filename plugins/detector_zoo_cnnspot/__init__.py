"""CNNSpot: a ResNet-50 on ProGAN images, blurred and compressed while it learnt (arXiv 1912.11035)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo, Paper

PAPER = Paper(
    title="CNN-Generated Images Are Surprisingly Easy to Spot... for Now",
    authors="Sheng-Yu Wang, Oliver Wang, Richard Zhang, Andrew Owens, Alexei A. Efros",
    year=2020,
    url="https://arxiv.org/abs/1912.11035",
    bibtex="""@inproceedings{wang2020cnnspot,
  title = {{CNN}-Generated Images Are Surprisingly Easy to Spot... for Now},
  author = {Wang, Sheng-Yu and Wang, Oliver and Zhang, Richard and Owens, Andrew and Efros, Alexei A.},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2020}
}""",
)


@hookimpl
def register_detectors(register: Callable[[DetectorInfo], None]) -> None:
    """Register CNNSpot."""
    register(
        DetectorInfo(
            name="cnnspot",
            summary="ResNet-50 trained on ProGAN images with blur and JPEG; the classic baseline",
            load="detector_zoo_cnnspot.model:CNNSpot",
            capabilities=frozenset({"explain", "localize", "train"}),
            default_tag="lite",
            paper=PAPER,
            card=Path(__file__).with_name("CARD.md"),
        )
    )

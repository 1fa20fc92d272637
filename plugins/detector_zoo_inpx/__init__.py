"""INP-X: classifiers of real images against edited ones with the original pixels put back (arXiv 2602.00192)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo, Paper

PAPER = Paper(
    title="AI-Generated Image Detectors Overrely on Global Artifacts: Evidence from Inpainting Exchange",
    authors="Elif Nebioglu, Emirhan Bilgic, Adrian Popescu",
    year=2026,
    url="https://arxiv.org/abs/2602.00192",
    bibtex="""@article{nebioglu2026inpx,
  title = {{AI}-Generated Image Detectors Overrely on Global Artifacts: Evidence from Inpainting Exchange},
  author = {Nebioglu, Elif and Bilgic, Emirhan and Popescu, Adrian},
  journal = {arXiv preprint arXiv:2602.00192},
  year = {2026}
}""",
)


@hookimpl
def register_detectors(register: Callable[[DetectorInfo], None]) -> None:
    """Register the INP-X classifiers."""
    register(
        DetectorInfo(
            name="inpx",
            summary="Classifiers trained on inpainted images whose untouched pixels were restored (INP-X)",
            load="detector_zoo_inpx.model:INPX",
            capabilities=frozenset({"localize", "train"}),
            default_tag="lite",
            paper=PAPER,
            card=Path(__file__).with_name("CARD.md"),
        )
    )

"""UFD-CLIP: a linear head on frozen CLIP features (arXiv 2302.10174)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo, Paper

PAPER = Paper(
    title="Towards Universal Fake Image Detectors that Generalize Across Generative Models",
    authors="Utkarsh Ojha, Yuheng Li, Yong Jae Lee",
    year=2023,
    url="https://arxiv.org/abs/2302.10174",
    bibtex="""@inproceedings{ojha2023universal,
  title = {Towards Universal Fake Image Detectors that Generalize Across Generative Models},
  author = {Ojha, Utkarsh and Li, Yuheng and Lee, Yong Jae},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2023}
}""",
)


@hookimpl
def register_detectors(register: Callable[[DetectorInfo], None]) -> None:
    """Register UFD-CLIP."""
    register(
        DetectorInfo(
            name="ufd_clip",
            summary="A linear head on a frozen image embedding, CLIP's or a small network's",
            load="detector_zoo_ufd_clip.model:UFD",
            capabilities=frozenset({"train"}),
            default_tag="lite",
            paper=PAPER,
            card=Path(__file__).with_name("CARD.md"),
        )
    )

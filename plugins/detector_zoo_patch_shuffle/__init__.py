"""Patch-shuffle: shuffled patches through one shared network, so that the scene cannot be read (NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo, Paper

PAPER = Paper(
    title="Breaking Semantic Artifacts for Generalized AI-generated Image Detection",
    authors="Chende Zheng, Chenhao Lin, Zhengyu Zhao, Hang Wang, Xu Guo, Shuai Liu, Chao Shen",
    year=2024,
    url="https://openreview.net/forum?id=NtNTfRTjE8",
    bibtex="""@inproceedings{zheng2024breaking,
  title = {Breaking Semantic Artifacts for Generalized {AI}-generated Image Detection},
  author = {Zheng, Chende and Lin, Chenhao and Zhao, Zhengyu and Wang, Hang and Guo, Xu and Liu, Shuai and Shen, Chao},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year = {2024}
}""",
)


@hookimpl
def register_detectors(register: Callable[[DetectorInfo], None]) -> None:
    """Register patch-shuffle."""
    register(
        DetectorInfo(
            name="patch_shuffle",
            summary="Shuffled patches through one shared network, so that the scene cannot be read",
            load="detector_zoo_patch_shuffle.model:PatchShuffle",
            capabilities=frozenset({"explain", "localize", "train"}),
            default_tag="lite",
            paper=PAPER,
            card=Path(__file__).with_name("CARD.md"),
        )
    )

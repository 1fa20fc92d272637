"""MDMF: patches of an image against a bank of real ones, by maximum mean discrepancy (arXiv 2605.09296)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo, Paper

PAPER = Paper(
    title=("Micro-Defects Expose Macro-Fakes: Detecting AI-Generated Images via Local Distributional Shifts"),
    authors="Boxuan Zhang, Jianing Zhu, Qifan Wang, Jiang Liu, Ruixiang Tang",
    year=2026,
    url="https://arxiv.org/abs/2605.09296",
    bibtex="""@article{zhang2026microdefects,
  title = {Micro-Defects Expose Macro-Fakes: Detecting {AI}-Generated Images via Local Distributional Shifts},
  author = {Zhang, Boxuan and Zhu, Jianing and Wang, Qifan and Liu, Jiang and Tang, Ruixiang},
  journal = {arXiv preprint arXiv:2605.09296},
  year = {2026}
}""",
)


@hookimpl
def register_detectors(register: Callable[[DetectorInfo], None]) -> None:
    """Register MDMF."""
    register(
        DetectorInfo(
            name="mdmf",
            summary="Patch signatures of the image against a bank of real ones, by maximum mean discrepancy",
            load="detector_zoo_mdmf.model:MDMF",
            capabilities=frozenset({"localize", "train"}),
            default_tag="lite",
            paper=PAPER,
            card=Path(__file__).with_name("CARD.md"),
        )
    )

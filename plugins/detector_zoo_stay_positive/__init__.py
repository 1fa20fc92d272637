"""Stay-Positive: a detector's last layer retrained so that no evidence of realness can lower a score (ICML 2025)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detector_zoo.hookspecs import hookimpl
from detector_zoo.info import DetectorInfo, Paper

PAPER = Paper(
    title="Stay-Positive: A Case for Ignoring Real Image Features in Fake Image Detection",
    authors="Anirudh Sundara Rajan, Yong Jae Lee",
    year=2025,
    url="https://arxiv.org/abs/2502.07778",
    bibtex="""@inproceedings{rajan2025staypositive,
  title = {Stay-Positive: A Case for Ignoring Real Image Features in Fake Image Detection},
  author = {Rajan, Anirudh Sundara and Lee, Yong Jae},
  booktitle = {International Conference on Machine Learning (ICML)},
  year = {2025}
}""",
)


@hookimpl
def register_detectors(register: Callable[[DetectorInfo], None]) -> None:
    """Register Stay-Positive."""
    register(
        DetectorInfo(
            name="stay_positive",
            summary="Corvi's or Rajan's network with a last layer that uses evidence of generation only",
            load="detector_zoo_stay_positive.model:StayPositive",
            capabilities=frozenset({"explain", "localize", "train"}),
            default_tag="lite",
            paper=PAPER,
            card=Path(__file__).with_name("CARD.md"),
        )
    )

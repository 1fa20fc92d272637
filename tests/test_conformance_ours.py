"""Our own plugins pass the suite that a stranger's has to pass: each whose default weights are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector_zoo import registry, weights
from detector_zoo.plugins import list_detectors
from detector_zoo.testing.properties import PROPERTIES, examine
from detector_zoo.testing.subject import Subject

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WITHOUT_WEIGHTS = [name for name, asked in PROPERTIES.items() if not asked.scores and name != "loads"]


def at_hand(name: str) -> bool:
    spec = registry.resolve(name)[1]
    return spec is None or weights.locate(spec) is not None


OURS = [info.name for info in list_detectors()]
# The generated examples are a reconstruction, an upscaling and local edits, on which most methods are at chance and say
# so in their cards: the direction of four of them would be luck. On a whole data set, it is the AUROC of the cards.
WITH_WEIGHTS = [name for name in PROPERTIES if name != "direction"]
CASES = [(name, asked) for name in OURS for asked in (WITH_WEIGHTS if at_hand(name) else WITHOUT_WEIGHTS)]


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    real, generated = sorted(EXAMPLES.glob("real_*.jpg")), sorted(EXAMPLES.glob("generated_*.jpg"))
    assert len(real) == len(generated) == 4
    return {name: Subject(name, real=real, generated=generated) for name in OURS}


@pytest.mark.parametrize(("name", "asked"), CASES)
def test_ours(name: str, asked: str, subjects: dict[str, Subject]) -> None:
    finding = examine(subjects[name], asked)
    assert finding.status in {"ok", "does not apply"}, f"{finding.claim}: {finding.detail}"


def test_some_of_ours_can_score() -> None:
    assert {name for name, asked in CASES if asked == "batch"} >= {"dummy", "mdmf"}

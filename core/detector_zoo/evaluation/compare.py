"""Two detectors, or two runs of one, on the images that both have scored: differences with paired intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.intervals import FEW, Metric
from detector_zoo.evaluation.metrics import PROBABILISTIC, TITLES, measure, paired
from detector_zoo.evaluation.results import DetectorResult, Results

__all__ = ["Comparison", "compare", "counterparts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Second minus first.

    Attributes:
        first: Name.
        second: Name.
        real: Real images that both scored.
        generated: Generated images that both scored.
        left_out: Images that only one of the two has scored, or that only one has.
        before: Metrics of the first on these images.
        after: Metrics of the second.
        difference: After minus before, with paired intervals; in some metrics less is better (EER, Brier, ECE).
    """

    first: str
    second: str
    real: int
    generated: int
    left_out: int
    before: dict[str, Metric]
    after: dict[str, Metric]
    difference: dict[str, Metric]

    @property
    def few(self) -> bool:
        """Whether a class has too few images for the intervals to be believed."""
        return min(self.real, self.generated) < FEW

    def to_dict(self) -> dict[str, Any]:
        """JSON's types."""
        return {**asdict(self), "few": self.few}

    def rows(self) -> list[list[str]]:
        """Metric, first, second, difference, and whether the difference's interval excludes 0."""
        return [
            [TITLES[name], str(self.before[name]), str(self.after[name]), _signed(d), _clear(d)]
            for name, d in self.difference.items()
        ]


def _signed(d: Metric) -> str:
    return f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"


def _clear(d: Metric) -> str:
    return "clear" if d.low > 0 or d.high < 0 else "may be chance"


def counterparts(first: Results, second: Results) -> Iterator[tuple[DetectorResult, DetectorResult]]:
    """Whom to compare: the only detector of each, or those of one name.

    Raises:
        DatasetError: It is not clear.
    """
    if len(first.detectors) == len(second.detectors) == 1:
        yield first.detectors[0], second.detectors[0]
        return
    theirs = {one.name: one for one in second.detectors}
    shared = [one for one in first.detectors if one.name in theirs]
    if not shared:
        raise DatasetError(
            "the two results have no detector of one name: "
            f"{', '.join(d.name for d in first.detectors)}; {', '.join(theirs)}",
            hint="name them: zoo compare FILE:NAME FILE:NAME",
        )
    yield from ((one, theirs[one.name]) for one in shared)


def compare(
    first: tuple[Results, DetectorResult],
    second: tuple[Results, DetectorResult],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare on the images, by content, that both have scored and on which neither abstains.

    Raises:
        DatasetError: They share no image of one of the classes, or disagree about an image's label.
    """
    ours, theirs = (_scored(*pair) for pair in (first, second))
    shared = [sha256 for sha256 in ours if sha256 in theirs]
    for sha256 in shared:
        if ours[sha256][0] != theirs[sha256][0]:
            raise DatasetError(f"image {sha256[:12]} has two labels in the two results")
    labels = np.array([ours[sha256][0] for sha256 in shared], bool)
    names = [one.name for _, one in (first, second)]
    if not labels.any() or labels.all():
        common = f"{int((~labels).sum())} real and {int(labels.sum())} generated images"
        raise DatasetError(f"{names[0]} and {names[1]} have {common} in common; metrics need both")
    groups = _groups(first[0], shared)
    columns = [np.array([side[sha256][1] for sha256 in shared]) for side in (ours, theirs)]
    thresholds = (first[1].threshold, second[1].threshold)
    calibrated = first[1].calibrated and second[1].calibrated
    wanted = tuple(name for name in TITLES if calibrated or name not in PROBABILISTIC)
    before, after = (
        measure(labels, column, threshold, wanted, groups=groups, resamples=resamples, seed=seed)
        for column, threshold in zip(columns, thresholds, strict=True)
    )
    return Comparison(
        first=names[0],
        second=names[1],
        real=int((~labels).sum()),
        generated=int(labels.sum()),
        left_out=len(ours.keys() ^ theirs.keys()),
        before=before,
        after=after,
        difference=paired(
            labels, columns[0], columns[1], thresholds, wanted, groups=groups, resamples=resamples, seed=seed
        ),
    )


def _groups(results: Results, shared: Sequence[str]) -> list[int] | None:
    """Of the images, by SHA-256; None where the results do not tell."""
    if not results.images.group:
        return None
    found = dict(zip(results.images.sha256, results.images.group, strict=True))
    return [found[sha256] for sha256 in shared]


def _scored(results: Results, one: DetectorResult) -> dict[str, tuple[bool, float]]:
    """By SHA-256: whether the image is generated, and its log-odds; abstentions left out."""
    abstained = set(one.abstained)
    return {
        sha256: (label == "generated", score)
        for index, (sha256, label, score) in enumerate(
            zip(results.images.sha256, results.images.label, one.log_odds, strict=True)
        )
        if score is not None and index not in abstained
    }

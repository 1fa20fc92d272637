"""What is left of a detector after re-encoding, resizing, blurring: `laundering`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector_zoo.errors import DatasetError, PluginError
from detector_zoo.evaluation.audits import Audit, Table
from detector_zoo.evaluation.bootstrap import Resampling, auroc_of, drop_of, mean_of
from detector_zoo.evaluation.in_memory import Reader, Watch, abstentions, decided, log_odds, require_both
from detector_zoo.evaluation.intervals import Metric
from detector_zoo.evaluation.perturbations import GRID, Perturbation, parse
from detector_zoo.evaluation.samples import Sample, source_of
from detector_zoo.loading import LoadedDetector

__all__ = ["Laundering", "Point", "laundering"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A detector after one perturbation.

    Attributes:
        perturbation: As it was asked for, ``jpeg:75``.
        name: Without the number: points of one name make a curve.
        value: The number, or None.
        auroc: Over the images that could be perturbed and scored, and on which the detector does not abstain.
        drop: AUROC without perturbation minus this one, of the images on which it abstains neither time; its interval
            is paired.
        abstained: Images on which it abstains.
        real: Mean log-odds of photographs, abstentions included.
        generated: Mean log-odds of generated images.
        failed: Images that could not be perturbed or scored, though they could be scored as they are.
        cause: Why the first of them failed.
    """

    perturbation: str
    name: str
    value: float | None
    auroc: Metric
    drop: Metric
    abstained: int
    real: Metric
    generated: Metric
    failed: int
    cause: str = ""


@dataclass(frozen=True, kw_only=True)
class Laundering(Audit):
    """Result of `laundering`.

    Attributes:
        points: In the order asked for, the unperturbed images first.
        left_out: Perturbations of the usual grid that this installation cannot do, and why.
    """

    name: ClassVar[str] = "laundering"
    points: tuple[Point, ...]
    left_out: tuple[str, ...] = ()

    def curves(self) -> dict[str, list[Point]]:
        """Points by name, each curve sorted by its number; the unperturbed images are in none."""
        found: dict[str, list[Point]] = {}
        for point in self.points[1:]:
            found.setdefault(point.name, []).append(point)
        return {name: sorted(curve, key=lambda point: point.value or 0.0) for name, curve in found.items()}

    def tables(self) -> list[Table]:
        """AUROC and both classes' mean log-odds, a row a perturbation."""
        rows = tuple((p.perturbation, p.auroc, p.drop, p.abstained, p.real, p.generated, p.failed) for p in self.points)
        head = ("perturbation", "AUROC", "drop", "abstained", "mean log-odds, real", "generated", "failed")
        note = "Intervals: 95 %, bootstrap over images; the drop's is paired."
        if self.left_out:
            note += f" Left out: {'; '.join(self.left_out)}."
        return [Table("Laundering", head, rows, note), self.origin.table()]


def laundering(
    samples: Sequence[Sample],
    detector: LoadedDetector,
    perturbations: Sequence[str] | None = None,
    *,
    equalise: bool = True,
    data: str = "",
    seed: int = 0,
    resamples: int = 2000,
    skip_bad: bool = False,
    watch: Watch = iter,
) -> Laundering:
    """Score every image under every perturbation: decoded once, perturbed in memory, a few images at a time.

    Args:
        samples: Of both classes.
        detector: Whose policy decides whether images are turned upright by EXIF before they are perturbed.
        perturbations: ``name`` or ``name:number``; None for `perturbations.GRID`, as far as it can be done here.
        equalise: Give both classes one codec history and one distribution of sizes first (`equalise_file`), so that
            no format is taken for a skill.
        data: What to call the data set.
        seed: Of the bootstrap. Perturbations are seeded by the files alone.
        resamples: Of the bootstrap.
        skip_bad: Record unreadable files and go on.
        watch: Sees the samples pass.

    Raises:
        DatasetError: A class is missing.
        ImageError: A file cannot be read, and bad ones are not skipped.
        ValueError: A perturbation is not known, or its number not accepted.
    """
    require_both(samples)
    chosen, left_out = _chosen(perturbations)
    reader = Reader(samples, skip_bad, watch, equalise)
    failed: dict[tuple[int, int], str] = {}

    def pictures() -> Iterator[tuple[tuple[int, int], Image.Image]]:
        for item in reader:
            upright = reader.picture(item, detector.orientation_policy)
            for row, perturbation in enumerate(chosen):
                try:
                    yield (row, item.index), perturbation(upright, item.decoded.sha256)
                except PluginError as error:
                    failed[row, item.index] = str(error)

    scores, unscored = log_odds(detector, pictures(), (len(chosen), len(samples)))
    failed |= unscored
    for (row, index), cause in failed.items():
        if row == 0:
            reader.fail(index, cause)
    labels = np.array([sample.generated for sample in samples])
    usable = np.isfinite(scores[0])
    if not (labels & usable).any() or not (~labels & usable).any():
        raise DatasetError("no image of one class could be scored", hint=next(iter(reader.failures), None))
    groups = [source_of(sample) for sample, use in zip(samples, usable, strict=True) if use]
    resampling = Resampling(labels[usable], groups, resamples=resamples, seed=seed)
    points = tuple(
        _point(
            perturbation,
            labels[usable],
            scores[:, usable],
            row,
            detector,
            resampling,
            next((cause for (at, index), cause in failed.items() if at == row and usable[index]), ""),
        )
        for row, perturbation in enumerate(chosen)
    )
    origin = reader.origin(detector, data, seed, resamples, inconclusive=abstentions(detector, scores[0]))
    return Laundering(origin=origin, points=points, left_out=tuple(left_out))


def _chosen(specs: Sequence[str] | None) -> tuple[list[Perturbation], list[str]]:
    """The perturbations, ``none`` first, and those of the usual grid that cannot be done here."""
    if specs is not None:
        return parse(["none", *specs]), []
    chosen, left_out = parse(["none"]), []
    for spec in GRID:
        try:
            chosen += parse([spec])
        except ValueError as error:
            left_out.append(str(error))
    return chosen, left_out


def _point(
    perturbation: Perturbation,
    labels: NDArray[np.bool_],
    scores: NDArray[np.float64],
    row: int,
    detector: LoadedDetector,
    resampling: Resampling,
    cause: str,
) -> Point:
    plain, after = decided(detector, scores[0]), decided(detector, scores[row])
    area, drop, real, generated = resampling.intervals(
        auroc_of(labels, after),
        drop_of(labels, plain, after),
        mean_of(scores[row], ~labels),
        mean_of(scores[row], labels),
    )
    return Point(
        perturbation=str(perturbation),
        name=perturbation.name,
        value=perturbation.value,
        auroc=area,
        drop=drop,
        abstained=abstentions(detector, scores[row]),
        real=real,
        generated=generated,
        failed=int((~np.isfinite(scores[row])).sum()),
        cause=cause,
    )

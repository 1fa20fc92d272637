"""`Results`: what an evaluation found, as typed and versioned JSON, as CSV and as Markdown.

The scores are in it, image by image, so that two results can be compared in pairs without the images.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.intervals import FEW, Metric
from detector_zoo.evaluation.metrics import TITLES
from detector_zoo.sources import printable

__all__ = [
    "SCHEMA",
    "SCHEMA_VERSION",
    "Counts",
    "Data",
    "DetectorResult",
    "Generator",
    "Images",
    "Results",
    "Source",
    "read",
    "write_text",
]

SCHEMA = "detector_zoo.results"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of the images; only scored ones are in a metric."""

    real: int
    generated: int
    scored_real: int
    scored_generated: int
    abstained_real: int
    abstained_generated: int
    errors: int
    missing: int

    @property
    def mark(self) -> str:
        """`` (few)`` where a class has too few scored images for the intervals to be believed."""
        return " (few)" if min(self.scored_real, self.scored_generated) < FEW else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """One generator's images against real ones.

    Attributes:
        name: As the data set calls it, or its source where it names none.
        generated: Scored images of it.
        real: Scored real images that they are compared with.
        against: ``own`` where the set has real images for this generator alone, else ``all``.
        abstained: Images of it on which the detector abstains.
        few: Whether there are too few images for the intervals to be believed.
        metrics: By name; none where nothing of it is scored.
    """

    name: str
    generated: int
    real: int
    against: str
    abstained: int
    few: bool
    metrics: dict[str, Metric]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One collection of real images, and the share of them that is called real."""

    name: str
    real: int
    few: bool
    real_accuracy: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorResult:
    """One detector on one data set.

    Attributes:
        name: ``method.tag``, with what tells it from others of that name.
        detector: Method.
        weights: Tag, or "".
        weights_sha256: Of the weights' file, or "".
        core_version: That scored.
        equalised: Whether the images were brought to one format before scoring.
        threshold: The weights' own, in log-odds.
        calibrated: Whether the scores were fitted to be log-odds.
        counts: Of images.
        metrics: Of the scored images, by name. Abstentions and errors are in none of them.
        with_abstentions: AUROC and AP when images on which the detector abstains are ranked by their scores too;
            empty where it abstains on none.
        oracle: Best threshold on these very images and its balanced accuracy: a bound, not a result.
        generators: Worst first, those of few images last; pooled as `Results.by` says.
        sources: Of real images, worst first.
        log_odds: An image each; None for an error or a row that is missing.
        abstained: Indices of images.
        errors: Index and cause.
        note: What a reader must know, or "".
    """

    name: str
    detector: str
    weights: str
    weights_sha256: str
    core_version: str
    equalised: bool
    threshold: float
    calibrated: bool
    counts: Counts
    metrics: dict[str, Metric]
    with_abstentions: dict[str, Metric]
    oracle: dict[str, float]
    generators: list[Generator]
    sources: list[Source]
    log_odds: list[float | None]
    abstained: list[int]
    errors: list[tuple[int, str]]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The data set.

    Attributes:
        place: As it was named.
        adapter: That read it.
        split: "" for all.
        sha256: Of the images, labels, generators and sources; not of names.
        bad: Images that were left out: name and cause.
    """

    place: str
    adapter: str
    split: str
    sha256: str
    bad: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images, column by column.

    Attributes:
        name: Path within the set.
        sha256: Of the file.
        label: ``real`` or ``generated``.
        generator: As the data set calls it.
        source: Likewise.
        group: A number that images of one photograph share, and that the bootstrap draws together; empty in results
            of older versions, which drew each image for itself.
    """

    name: list[str]
    sha256: list[str]
    label: list[str]
    generator: list[str]
    source: list[str]
    group: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """An evaluation.

    Attributes:
        created: ISO 8601, UTC.
        core_version: Of detector-zoo, as it computed the metrics.
        git: Commit, and whether files differ from it; None outside a checkout.
        environment: Versions by name.
        by: What generated images are told apart by: generator, source or kind.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.
        data: What it was measured on.
        images: Of the data set.
        detectors: In the order of the rows.
    """

    created: str
    core_version: str
    git: dict[str, Any] | None
    environment: dict[str, str]
    by: str
    seed: int
    resamples: int
    data: Data
    images: Images
    detectors: list[DetectorResult]

    def to_json(self) -> str:
        """One object; ``schema`` and ``schema_version`` say of what kind."""
        return json.dumps({"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1) + "\n"

    def to_csv(self) -> str:
        """One line a figure: detector, generator or source ("all" for everything), metric, value, interval, counts."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        head = ("detector", "weights_sha256", "data_sha256", "equalised", "subset", "name", "metric")
        writer.writerow((*head, "value", "low", "high", "real", "generated"))
        for one in self.detectors:
            start = (one.name, one.weights_sha256, self.data.sha256, str(one.equalised).lower())
            for subset, name, metrics, real, generated in _subsets(one):
                for metric, m in metrics.items():
                    writer.writerow((*start, subset, name, metric, m.value, m.low, m.high, real, generated))
        return stream.getvalue()

    def to_markdown(self) -> str:
        """Tables: the detectors, then each one's generators."""
        lines = [f"Data: {self.data.place}{f', split {self.data.split}' if self.data.split else ''}, "]
        lines[0] += f"`{self.data.sha256[:12]}`; 95 % intervals, {self.resamples} resamples, seed {self.seed}."
        for name, head, rows in self.tables():
            lines += ["", f"### {name}", "", _line(head), _line(["---"] * len(head)), *map(_line, rows)]
        return "\n".join(lines) + "\n"

    def tables(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Title, head and rows of text: the overview, then each detector's generators, worst first."""
        head = ["metric", *(one.name for one in self.detectors)]
        rows = [
            [title, *(str(one.metrics[name]) if name in one.metrics else "-" for one in self.detectors)]
            for name, title in TITLES.items()
        ]
        rows += [[title, *map(show, self.detectors)] for title, show in _FACTS]
        yield "Detectors", head, rows
        for one in self.detectors:
            if one.generators:
                yield f"{one.name}: by {self.by}, worst first", *_generators(one, self.by)


_FACTS: tuple[tuple[str, Callable[[DetectorResult], str]], ...] = (
    ("images", lambda one: "equalised" if one.equalised else "as found"),
    ("threshold (log-odds)", lambda one: f"{one.threshold:g}"),
    (
        "scored: real, generated",
        lambda one: f"{one.counts.scored_real}, {one.counts.scored_generated}{one.counts.mark}",
    ),
    ("abstained: real, generated", lambda one: f"{one.counts.abstained_real}, {one.counts.abstained_generated}"),
    ("AUROC, abstentions ranked too", lambda one: str(one.with_abstentions.get("auroc", "-"))),
    ("errors, missing", lambda one: f"{one.counts.errors}, {one.counts.missing}"),
    ("oracle balanced accuracy", lambda one: f"{one.oracle['balanced_accuracy']:.3f}" if one.oracle else "-"),
)


def _generators(one: DetectorResult, by: str) -> tuple[list[str], list[list[str]]]:
    head = [by, "AUROC", "found at threshold", "images", "abstained"]
    rows = []
    for g in one.generators:
        shown = [str(g.metrics.get(name, "-")) for name in ("auroc", "generated_accuracy")]
        rows.append([g.name, *shown, f"{g.generated}{' (few)' if g.few else ''}", str(g.abstained)])
    return head, rows


def _subsets(one: DetectorResult) -> Iterator[tuple[str, str, dict[str, Metric], int, int]]:
    yield "all", "all", one.metrics, one.counts.scored_real, one.counts.scored_generated
    for g in one.generators:
        yield "generator", g.name, g.metrics, g.real, g.generated
    for s in one.sources:
        yield "source", s.name, {"real_accuracy": s.real_accuracy}, s.real, 0


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def read(path: str | os.PathLike[str]) -> Results:
    """Read results.json, or the one in a report's folder.

    Raises:
        DatasetError: There is none, or it is not of this schema and version.
    """
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    name = printable(str(file))
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{name}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DatasetError(f"{name}: not JSON ({error})") from error
    if not isinstance(values, dict) or values.pop("schema", None) != SCHEMA:
        raise DatasetError(f"{name}: not the results of zoo eval")
    if (version := values.pop("schema_version", None)) != SCHEMA_VERSION:
        raise DatasetError(f"{name}: results of version {SCHEMA_VERSION} expected, the file says {version}")
    try:
        return _results(values)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DatasetError(f"{name}: damaged results ({type(error).__name__}: {error})") from error


def _results(values: dict[str, Any]) -> Results:
    data = Data(**{**values["data"], "bad": [tuple(pair) for pair in values["data"]["bad"]]})
    images = Images(**values["images"])
    detectors = [_detector(one) for one in values["detectors"]]
    columns = [one.log_odds for one in detectors] + [images.group] * bool(images.group)
    if any(len(column) != len(images.sha256) for column in columns):
        raise ValueError("scores or groups and images differ in number")
    return Results(**{**values, "data": data, "images": images, "detectors": detectors})


def _detector(one: dict[str, Any]) -> DetectorResult:
    changes = {
        "counts": Counts(**one["counts"]),
        "metrics": _metrics(one["metrics"]),
        "with_abstentions": _metrics(one["with_abstentions"]),
        "generators": [Generator(**{**g, "metrics": _metrics(g["metrics"])}) for g in one["generators"]],
        "sources": [Source(**{**s, "real_accuracy": Metric(**s["real_accuracy"])}) for s in one["sources"]],
        "errors": [(int(index), str(cause)) for index, cause in one["errors"]],
    }
    return DetectorResult(**{**one, **changes})


def _metrics(values: dict[str, Any]) -> dict[str, Metric]:
    return {name: Metric(**metric) for name, metric in values.items()}


def write_text(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        DatasetError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise DatasetError(f"{printable(str(path))}: cannot be written ({error.strerror})") from error

"""What every audit returns: typed figures, where they come from, and the same as tables and as JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import PurePath
from typing import Any, ClassVar

from detector_zoo.evaluation.intervals import Metric

__all__ = ["SCHEMA_VERSION", "Audit", "Cell", "Origin", "Table", "as_csv", "plain", "text"]

SCHEMA_VERSION = 1
"""Of `Audit.to_dict`."""

Cell = str | int | float | Metric | None


@dataclass(frozen=True, slots=True)
class Table:
    """Figures to show.

    Attributes:
        title: One line.
        head: Names of the columns.
        rows: As wide as the head; None where a figure is not defined.
        note: What a reader must know, or "".
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def text(self) -> list[list[str]]:
        """The rows as text."""
        return [[text(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the figures of an audit come from.

    Attributes:
        detector: ``method.tag``, "" where none was asked.
        weights_sha256: Of the detector's weights, "" without.
        threshold: The weights' own, log-odds.
        data: The data set as it was named.
        data_sha256: Of the images that were used: `detector_zoo.evaluation.datasets.DataSet.sha256`.
        equalised: Whether images were equalised before anything else was done to them.
        real: Photographs used.
        generated: Generated images used.
        inconclusive: Images on which the detector abstains as they are. Abstentions are in no figure of right and
            wrong (AUROC, accuracy), as in `zoo eval`; means of log-odds hold them.
        failures: One line for each image that could not be used; none of them is in any figure.
        seed: Of the bootstrap and of whatever else is drawn.
        resamples: Of the bootstrap.
        versions: Of Python, the core and the libraries that decode and compute.
        git: Commit of the code and whether it was changed since; None for an installed copy.
    """

    detector: str = ""
    weights_sha256: str = ""
    threshold: float = 0.0
    data: str = ""
    data_sha256: str = ""
    equalised: bool = False
    real: int = 0
    generated: int = 0
    inconclusive: int = 0
    failures: tuple[str, ...] = ()
    seed: int = 0
    resamples: int = 0
    versions: Mapping[str, str]
    git: Mapping[str, Any] | None

    def table(self) -> Table:
        """Counts and provenance."""
        rows: list[tuple[Cell, ...]] = [
            ("detector", self.detector or "none"),
            ("weights", self.weights_sha256[:12] or "none"),
            ("data", f"{self.data or '-'} ({self.data_sha256[:12]})"),
            ("images", f"{self.real} real, {self.generated} generated" if self.real + self.generated else "unlabelled"),
            ("formats", "equalised first" if self.equalised else "as they are"),
            ("inconclusive, in no AUROC or accuracy", self.inconclusive),
            ("failed, in no figure", len(self.failures)),
            ("bootstrap", f"{self.resamples} resamples, seed {self.seed}" if self.resamples else "none"),
            ("versions", ", ".join(f"{name} {number}" for name, number in self.versions.items())),
        ]
        return Table("What was measured", ("", ""), tuple(rows))


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Base of the results.

    Attributes:
        origin: Where the figures come from.
    """

    name: ClassVar[str]
    origin: Origin

    def tables(self) -> list[Table]:
        """The figures, most important first; the last table tells what was measured."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON's types only; a figure that is not defined is None."""
        facts = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        return {"audit": self.name, "schema_version": SCHEMA_VERSION, **facts}


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences to what JSON has; NaN and infinities to None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, PurePath) else value


def text(cell: Cell) -> str:
    """One cell for people."""
    if cell is None or (isinstance(cell, Metric) and math.isnan(cell.value)):
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 0.1 else f"{cell:.3f}"
    return str(cell)


def as_csv(audit: Audit) -> str:
    """One line a figure: audit, table, row (its cells of text), column, value, low, high."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("audit", "table", "row", "column", "value", "low", "high"))
    for table in audit.tables():
        for row in table.rows:
            label = " ".join(cell for cell in row if isinstance(cell, str))
            writer.writerows((audit.name, table.title, label, *figure) for figure in _figures(table.head, row))
    return stream.getvalue()


def _figures(head: Sequence[str], row: Sequence[Cell]) -> Iterator[tuple[Any, ...]]:
    for column, cell in zip(head, row, strict=True):
        if isinstance(cell, Metric):
            yield (column, *(plain(bound) for bound in (cell.value, cell.low, cell.high)))
        elif not isinstance(cell, str):
            yield column, plain(cell), None, None

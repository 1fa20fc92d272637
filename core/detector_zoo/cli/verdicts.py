"""The table that `zoo score` prints for people, row by row as the scores come in."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from detector_zoo.cli.table import terminal_width

if TYPE_CHECKING:
    from detector_zoo.predictions import Prediction

COLOURS = {"generated": "red", "real": "green", "inconclusive": "yellow"}
BAR = 10


class VerdictTable:
    """Prints image, detector, verdict, probability (as a bar and a number) and log-odds."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names`` are the detectors', for the width of their column."""
        self.detector_width = max(len("detector"), len("fuse-soft-or"), *map(len, names))
        width = terminal_width(100)
        self.path_width = min(max(width - self.detector_width - 44, 16), 60)
        head = f"{'image':<{self.path_width}}  {'detector':<{self.detector_width}}  {'verdict':<12}  "
        click.secho(f"{head}{'P(generated)':<{BAR + 6}}  log-odds", bold=True)

    def show(self, rows: Sequence[Prediction]) -> None:
        """Print one image's rows."""
        for row in rows:
            name = f"{row.detector}.{row.weights}" if row.weights and "+" not in row.weights else row.detector
            start = f"{_fit(row.path, self.path_width)}  {name:<{self.detector_width}}  "
            if row.error:
                click.echo(start + click.style(f"{'error':<12}  {row.error}", fg="magenta"))
                continue
            click.echo(start + _verdict(row) + (f"  ({row.note})" if row.note else ""))


def _verdict(row: Prediction) -> str:
    assert row.log_odds is not None  # noqa: S101 (a row without an error has a score)
    assert row.probability is not None  # noqa: S101
    label = click.style(f"{row.label:<12}", fg=COLOURS[row.label], bold=row.label == "generated")
    if row.calibrated:
        filled = round(row.probability * BAR)
        shown = f"{'█' * filled}{'░' * (BAR - filled)}  {row.probability:.2f}"
    else:
        shown = f"{'not calibrated':<{BAR + 6}}"
    return f"{label}  {shown}  {row.log_odds:+8.2f}"


def _fit(path: str, width: int) -> str:
    """A path in a column: control characters shown, the beginning cut where it is too long."""
    clean = "".join(c if unicodedata.category(c)[0] != "C" else "?" for c in path)
    return f"{clean:<{width}}" if len(clean) <= width else "…" + clean[1 - width :]

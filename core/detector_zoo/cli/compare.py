"""`zoo compare`: is one of two better, or is it chance?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from detector_zoo.evaluation.results import DetectorResult, Results


@click.command("compare")
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "json", "md"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@click.option("--resamples", type=click.IntRange(100), default=2000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
def command(first: str, second: str, layout: str, resamples: int, seed: int) -> None:
    """Compare two runs of zoo eval on the images that both scored: second minus first, with paired intervals.

    RUN is a results.json or a report's folder; RUN:DETECTOR names one of several detectors. Without names, the
    detectors of equal names are compared. Images on which one of the two abstains are left out.
    """
    from detector_zoo.cli.table import columns
    from detector_zoo.evaluation.compare import compare, counterparts

    one, other = _read(first), _read(second)
    found = [compare((one, a), (other, b), resamples=resamples, seed=seed) for a, b in counterparts(one, other)]
    if layout == "json":
        click.echo(json.dumps([comparison.to_dict() for comparison in found], indent=2))
        return
    for index, comparison in enumerate(found):
        head = ["metric", comparison.first, comparison.second, "difference", "verdict"]
        told = f"{comparison.real} real and {comparison.generated} generated images that both scored"
        if comparison.few:
            told += " (few: do not believe the intervals)"
        if comparison.left_out:
            told += f"; left out, as only one did: {comparison.left_out}"
        if index:
            click.echo()
        click.echo(told)
        if layout == "md":
            lines = [head, ["---"] * len(head), *comparison.rows()]
            click.echo("\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
        else:
            click.echo(columns([name.upper() for name in head], comparison.rows()))


def _read(text: str) -> Results:
    """Results, cut down to one detector where it is named."""
    from dataclasses import replace

    from detector_zoo.errors import DatasetError
    from detector_zoo.evaluation.results import read

    path, colon, name = text.rpartition(":")
    if not colon or Path(text).exists():
        return read(text)
    results = read(path)
    chosen: list[DetectorResult] = [one for one in results.detectors if name in (one.name, one.detector)]
    if len(chosen) != 1:
        known = ", ".join(one.name for one in results.detectors)
        raise DatasetError(f"{path}: {len(chosen)} detectors are called {name!r}; there are {known}")
    return replace(results, detectors=chosen)

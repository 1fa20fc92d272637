"""`zoo leaderboard`: one page of many results."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("leaderboard")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RESULTS...")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder.")
def command(results: tuple[Path, ...], output: Path) -> None:
    """Build a page from results of zoo eval, a table for each data set.

    RESULTS are results.json files or reports' folders. Runs are on one data set where its images, labels and
    generators are the same, whatever it was called.
    """
    from detector_zoo.errors import DatasetError
    from detector_zoo.evaluation.report import leaderboard
    from detector_zoo.evaluation.results import write_text

    page = leaderboard(results)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{output}: cannot be written ({error.strerror})") from error
    write_text(output / "index.html", page)
    click.echo(output / "index.html")

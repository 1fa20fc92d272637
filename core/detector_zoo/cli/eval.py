"""`zoo eval`: how far can this detector be believed, on this data?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from detector_zoo.cli import lock
from detector_zoo.cli.score import load_chosen
from detector_zoo.cli.sizes import size

if TYPE_CHECKING:
    from detector_zoo.detector import Precision
    from detector_zoo.evaluation.datasets import DataSet
    from detector_zoo.evaluation.evaluate import By
    from detector_zoo.evaluation.results import Results
    from detector_zoo.loading import LoadedDetector
    from detector_zoo.rows import Prediction

INTERRUPTED = 130
LAYOUTS = ("table", "json", "csv", "md")


@click.command("eval")
@click.argument("predictions", nargs=-1, metavar="[PREDICTIONS]...", type=click.Path(path_type=Path))
@click.option(
    "-d", "--detector", "detectors", multiple=True, metavar="NAME", help="Score with it first; repeatable, or all."
)
@click.option(
    "--weights",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Folder that `zoo train` wrote, instead of weights of the catalogue; with one --detector.",
)
@click.option("--data", "place", required=True, metavar="SET", help="Labelled data set: folder, manifest, hf:NAME.")
@click.option("--split", metavar="NAME", help="Only this split of the set.")
@click.option(
    "--equalise/--no-equalise",
    default=True,
    show_default=True,
    help="With --detector: give both classes one codec history and size before scoring.",
)
@click.option(
    "--by",
    type=click.Choice(["generator", "source", "kind"]),
    default="generator",
    show_default=True,
    help="What to tell generated images apart by.",
)
@click.option(
    "--fuse",
    "fusion",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Add one score of several detectors: a fitted fusion, or a report that holds one (docs/lite-report.json).",
)
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), help="Folder for the HTML report.")
@click.option(
    "--audit", "audits", multiple=True, type=click.Path(path_type=Path), help="Results of zoo audit for the report."
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write .json, .csv or .md.")
@click.option("--format", "layout", type=click.Choice(LAYOUTS), help="What to print. [default: table]")
@click.option(
    "--predictions",
    "kept",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --detector: where the scores go and an interrupted run goes on from. [default: beside the results]",
)
@click.option("--skip-bad", is_flag=True, help="Record images that cannot be used and go on.")
@click.option("--absolute-paths", is_flag=True, help="Let a manifest's paths lead out of its folder.")
@click.option("--resamples", type=click.IntRange(100), default=2000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
@lock.option
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps", help="Where to compute.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the forward pass.",
)
@click.option("--memory", callback=size, metavar="SIZE", help="What a forward pass may take, e.g. 500MB.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Images a forward pass.")
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Threads that decode.")
def command(
    predictions: tuple[Path, ...],
    detectors: tuple[str, ...],
    folder: Path | None,
    place: str,
    split: str | None,
    equalise: bool,
    by: By,
    fusion: Path | None,
    report: Path | None,
    audits: tuple[Path, ...],
    output: Path | None,
    layout: str | None,
    kept: Path | None,
    skip_bad: bool,
    absolute_paths: bool,
    resamples: int,
    seed: int,
    device: str,
    precision: Precision,
    memory: int | None,
    batch_size: int,
    workers: int,
) -> None:
    """Measure detectors on labelled images: from prediction files, or by scoring with --detector.

    Every figure has its 95 % interval. Files of zoo score are joined to the labels by the images' hashes; no model
    runs again. Images are equalised unless you say otherwise, because a set's formats often tell its classes
    (zoo audit format). Abstentions and errors are counted, and in no figure.
    """
    from detector_zoo.evaluation.datasets import load
    from detector_zoo.evaluation.evaluate import evaluate, merge
    from detector_zoo.evaluation.results import write_text

    if bool(predictions) == bool(detectors):
        raise click.UsageError("give prediction files, or detectors by --detector")
    if folder and (len(detectors) != 1 or detectors == ("all",)):
        raise click.UsageError("--weights is for one detector: name it with --detector")
    if output and output.suffix.lower() not in (".json", ".csv", ".md"):
        raise click.UsageError(f"{output}: results are written as .json, .csv or .md")
    if audits and not report:
        raise click.UsageError("--audit is for --report")
    if report:
        from detector_zoo.evaluation.report import require

        require()
    data = load(place, split=split, skip_bad=skip_bad, absolute_paths=absolute_paths)
    for bad in data.bad:
        click.echo(f"Left out: {bad.name}: {bad.cause}", err=True)
    loaded: list[LoadedDetector] = []
    if detectors:
        skipped: list[str] = []
        loaded = load_chosen(detectors, folder, None, skipped, device=device, memory=memory, precision=precision)
        for line in skipped:
            click.echo(f"Skipped: {line}", err=True)
        where = _predictions_file(kept, output, report, data, equalise)
        rows = _score(data, loaded, where, equalise, batch_size, workers)
    else:
        rows = merge(predictions)
    if fusion:
        from detector_zoo.evaluation.fusion import read

        rows = [*rows, *read(fusion).rows(rows)]
    results = evaluate(data, rows, by=by, resamples=resamples, seed=seed)
    if output:
        write_text(output, _as_text(results, output.suffix.lower()[1:]))
    if report:
        from detector_zoo.evaluation.report import write_report

        index = write_report(results, report, data=data, detectors=loaded, audits=audits)
        click.echo(index, err=True)
    if layout or not (output or report):
        click.echo(_as_text(results, layout or "table"), nl=False)
    errors = sum(one.counts.errors for one in results.detectors)
    missing = sum(one.counts.missing for one in results.detectors)
    if missing:
        click.echo(f"Images without a prediction: {missing}", err=True)
    if errors:
        click.echo(f"Images that could not be scored: {errors}", err=True)
        raise SystemExit(1)


def _predictions_file(
    kept: Path | None, output: Path | None, report: Path | None, data: DataSet, equalise: bool
) -> Path:
    """Where the scores are kept: as asked, beside the results, or in the zoo's cache under the data's hash."""
    if kept:
        return kept
    if report:
        report.mkdir(parents=True, exist_ok=True)
        return report / "predictions.parquet"
    if output:
        return output.with_suffix(".predictions.parquet")
    from detector_zoo.registry import zoo_home

    folder = zoo_home() / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{data.sha256[:16]}{'-equalised' if equalise else ''}.parquet"


def _score(
    data: DataSet, loaded: list[LoadedDetector], where: Path, equalise: bool, batch_size: int, workers: int
) -> list[Prediction]:
    from detector_zoo.evaluation.score_set import score_set
    from detector_zoo.scoring import Options

    with ExitStack() as stack:
        try:
            return score_set(
                data.samples,
                loaded,
                where,
                equalise=equalise,
                options=Options(batch_size=batch_size, workers=workers),
                watch=_progress(stack, len(data.samples)),
            )
        except KeyboardInterrupt:
            stack.close()
            click.echo(f"Interrupted; what is scored is kept in {where}, run the same command to go on", err=True)
            raise SystemExit(INTERRUPTED) from None


def _progress(stack: ExitStack, total: int) -> Callable[[Iterable[str]], Iterable[str]]:
    if not sys.stderr.isatty():
        return iter
    from rich.console import Console
    from rich.progress import Progress

    bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
    return lambda paths: bar.track(paths, total=total, description="scoring")


def _as_text(results: Results, layout: str) -> str:
    if layout == "json":
        return results.to_json()
    if layout == "csv":
        return results.to_csv()
    if layout == "md":
        return results.to_markdown()
    from detector_zoo.cli.table import columns

    data = results.data
    split = f", split {data.split}" if data.split else ""
    lines = [f"{data.place}{split} ({data.sha256[:12]}): 95 % intervals, {results.resamples} resamples"]
    for title, head, rows in results.tables():
        lines += ["", title, columns([name.upper() for name in head], rows)]
    for one in results.detectors:
        lines += [f"{one.name}: {note}" for note in [one.note] if note]
        if one.abstained:
            lines.append(
                f"{one.name}: images on which it abstains: {len(one.abstained)}; in no figure but the one that says so"
            )
    return "\n".join(lines) + "\n"

"""`zoo score`: paths in, verdicts out."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detector_zoo.cli import lock

if TYPE_CHECKING:
    from detector_zoo.detector import Precision
    from detector_zoo.predictions import Prediction

INTERRUPTED = 130


UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("IB", 1024))
}


def size(context: click.Context | None, parameter: click.Parameter | None, value: str | None) -> int | None:
    """An option's value to bytes: 500000000, 500MB, 1.5 GB, 512MiB.

    Raises:
        click.BadParameter: It is no size, or below a million bytes, where no tile would fit.
    """
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", value.strip(), re.IGNORECASE)
    if found is None or found[2].upper() not in UNITS:
        raise click.BadParameter(f"{value!r} is not a size such as 500MB or 2GB", context, parameter)
    number = int(float(found[1]) * UNITS[found[2].upper()])
    if number < 1_000_000:
        raise click.BadParameter(f"{value!r} is too little for any image", context, parameter)
    return number


@click.command("score")
@click.argument("paths", nargs=-1, metavar="PATHS...")
@click.option(
    "-d",
    "--detector",
    "detectors",
    multiple=True,
    default=("all",),
    metavar="NAME",
    help="method, method.tag, method.tag@variant, hub:org/name or hf:org/model of the Hub, or all: every detector "
    "whose weights are at hand. Repeatable. [default: all]",
)
@click.option(
    "--weights",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder that `zoo train` wrote, instead of weights of the catalogue; with one --detector.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File of `zoo calibrate`: a threshold fitted on photographs of your own; with one --detector.",
)
@lock.option
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps", help="Where to compute.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="bf16 and fp16 are faster on CUDA and change scores a little.",
)
@click.option(
    "--memory",
    callback=size,
    metavar="SIZE",
    help="What a forward pass may take, e.g. 500MB; large images go through in exact tiles, where the method can. "
    "[default: 2GB, on CUDA what is free]",
)
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Images a forward pass.")
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True, help="Threads that decode.")
@click.option("--threshold", type=float, help="Log-odds above which to say generated. [default: the weights' own]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write .parquet, .jsonl or .csv; an interrupted run goes on where it stopped.",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "json", "csv"]),
    help="What to print. [default: a table on a terminal, JSON Lines on a pipe, nothing with -o]",
)
@click.option("--resume/--no-resume", default=True, show_default=True, help="Keep the rows of an earlier run of -o.")
@click.option(
    "--heatmap",
    "heatmaps",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for overlays of the detectors that localize.",
)
@click.option("--fuse", type=click.Choice(["mean", "soft-or"]), help="Add a row an image: the log-odds fused.")
@click.option("--max-pixels", type=click.IntRange(1), metavar="N", help="Refuse larger images. [default: 180000000]")
def command(
    paths: tuple[str, ...],
    detectors: tuple[str, ...],
    folder: Path | None,
    calibration: Path | None,
    device: str,
    precision: Precision,
    memory: int | None,
    batch_size: int,
    workers: int,
    threshold: float | None,
    output: Path | None,
    layout: str | None,
    resume: bool,
    heatmaps: Path | None,
    fuse: str | None,
    max_pixels: int | None,
) -> None:
    """Score images: files, folders (recursively), globs, or - for a list of paths on standard input.

    Scores are log-odds; above the threshold means generated. A score is a signal, not proof: `zoo info` tells what
    a detector was measured on and where it fails. A file that cannot be scored is a row with its error, and makes
    the exit status 1 after everything else is done.
    """
    from detector_zoo import images, predictions, sources
    from detector_zoo.errors import ZooError
    from detector_zoo.loading import load, select
    from detector_zoo.scoring import Options, run

    if not paths:
        raise click.UsageError("no images given: name files, folders, globs, or - for a list on standard input")
    if output:
        predictions.check_output(output)
    if heatmaps:
        _make_folder(heatmaps)
    if layout is None and not output:
        layout = "table" if sys.stdout.isatty() else "json"
    options = Options(
        batch_size=batch_size,
        workers=workers,
        max_pixels=max_pixels or images.DEFAULT_MAX_PIXELS,
        heatmaps=heatmaps,
        fuse=fuse,
    )
    settings: dict[str, Any] = {
        "device": device,
        "threshold": threshold,
        "max_pixels": options.max_pixels,
        "memory": memory,
        "precision": precision,
    }
    if (folder or calibration) and (len(detectors) != 1 or detectors == ("all",)):
        raise click.UsageError("--weights and --calibration are for one detector: name it with --detector")
    if calibration and threshold is not None:
        raise click.UsageError("--calibration brings a threshold: leave --threshold out")
    if folder:
        from detector_zoo.training.artifact import load_detector

        loaded = [load_detector(folder, method=detectors[0], **settings)]
    else:
        names, skipped = select(detectors)
        for line in skipped:
            click.echo(f"Skipped: {line}", err=True)
        loaded = [load(name, **settings) for name in names]
    if calibration:
        from detector_zoo.training.calibration import applied

        loaded = [applied(calibration, loaded[0])]
    if heatmaps and not any("localize" in detector.info.capabilities for detector in loaded):
        raise ZooError("none of these detectors has a heatmap", hint="zoo list --capability localize")

    seen = errors = 0
    written = None
    try:
        with ExitStack() as stack:
            journal = stack.enter_context(predictions.Journal(output, resume=resume)) if output else None
            show = _printer(layout, [detector.name for detector in loaded])
            found: Iterable[str] = sources.walk(paths, stdin=sys.stdin)
            say: Callable[[str], None] = _to_stderr
            if sys.stderr.isatty() and (layout is None or not sys.stdout.isatty()):
                found, say = _progress(stack, found, paths)
            for rows in run(found, loaded, options, journal):
                seen += 1
                errors += any(row.error for row in rows)
                if layout != "table":  # which shows errors itself
                    for line in dict.fromkeys(f"{row.path}: {row.error}" for row in rows if row.error):
                        say(line)
                show(rows)
            if journal is not None:
                written = journal.finish()
    except KeyboardInterrupt:
        kept = f"; what is scored is kept, run the same command to go on with {output}" if output else ""
        click.echo(f"Interrupted after {seen} images{kept}", err=True)
        raise SystemExit(INTERRUPTED) from None
    if written is not None:
        click.echo(f"{output}: {written} rows", err=True)
    if errors:
        click.echo(f"{errors} of {seen} images could not be scored", err=True)
        raise SystemExit(1)


def _make_folder(folder: Path) -> None:
    from detector_zoo.errors import ZooError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".zoo-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ZooError(f"{folder}: cannot write heatmaps here: {error.strerror}") from error


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)


def _progress(
    stack: ExitStack, found: Iterable[str], paths: Sequence[str]
) -> tuple[Iterable[str], Callable[[str], None]]:
    """A bar with rate and remaining time on stderr: the paths counted as they pass, and a way to print above it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from detector_zoo import sources

    # Walking twice costs a directory listing; it buys a remaining time without holding the list of paths.
    total = None if "-" in paths else sum(1 for _ in sources.walk(paths))
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    stack.enter_context(bar)
    task = bar.add_task("scoring", total=total, rate="")

    def counted() -> Iterator[str]:
        for path in found:
            yield path
            speed = bar.tasks[0].speed
            bar.update(task, advance=1, rate=f"{speed:.1f} images/s" if speed else "")

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return counted(), say


def _printer(layout: str | None, names: Sequence[str]) -> Callable[[Sequence[Prediction]], None]:
    from detector_zoo import predictions
    from detector_zoo.cli.verdicts import VerdictTable

    if layout == "table":
        return VerdictTable(names).show
    if layout is None:
        return lambda rows: None
    write = predictions.csv_writer(sys.stdout) if layout == "csv" else _json_line

    def show(rows: Sequence[Prediction]) -> None:
        for row in rows:
            write(row)

    return show


def _json_line(row: Prediction) -> None:
    from detector_zoo import predictions

    click.echo(predictions.to_json(row))

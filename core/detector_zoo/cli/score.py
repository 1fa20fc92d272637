"""`zoo score`: paths in, verdicts out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detector_zoo.cli import lock
from detector_zoo.cli.bar import counted, scoring_bar, to_stderr
from detector_zoo.cli.sizes import size

if TYPE_CHECKING:
    from detector_zoo.detector import Precision
    from detector_zoo.loading import LoadedDetector
    from detector_zoo.predictions import Prediction

INTERRUPTED = 130


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
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Threads that decode; with --engine ray, processes that score. [default: 2; with ray, as many as fit]",
)
@click.option("--threshold", type=float, help="Log-odds above which to say generated. [default: the weights' own]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write .parquet, .jsonl or .csv, with --engine ray a folder; an interrupted run goes on where it stopped.",
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
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: on many processes or machines; PATHS may then be URLs (s3://, gs://, https://) and tar archives too.",
)
@click.option("--address", metavar="HOST:PORT|auto", help="Ray cluster. [default: one on this machine, for this run]")
@click.option("--gpus-per-worker", type=click.FloatRange(0), metavar="N", help="With ray; 0.25 lets four share one.")
@click.option(
    "--decoders",
    type=click.IntRange(0),
    metavar="N",
    help="With ray: processes that decode apart from those that score. [default: 0; with GPUs, as many as fit]",
)
@click.option("--part-size", type=click.IntRange(1), metavar="N", help="With ray: images a part. [default: 1024]")
def command(
    paths: tuple[str, ...],
    detectors: tuple[str, ...],
    folder: Path | None,
    calibration: Path | None,
    device: str,
    precision: Precision,
    memory: int | None,
    batch_size: int,
    workers: int | None,
    threshold: float | None,
    output: Path | None,
    layout: str | None,
    resume: bool,
    heatmaps: Path | None,
    fuse: str | None,
    max_pixels: int | None,
    engine: str,
    address: str | None,
    gpus_per_worker: float | None,
    decoders: int | None,
    part_size: int | None,
) -> None:
    """Score images: files, folders (recursively), globs, or - for a list of paths on standard input.

    Scores are log-odds; above the threshold means generated. A score is a signal, not proof: `zoo info` tells what
    a detector was measured on and where it fails. A file that cannot be scored is a row with its error, and makes
    the exit status 1 after everything else is done.
    """
    from detector_zoo import images, predictions, sources
    from detector_zoo.errors import ZooError
    from detector_zoo.scoring import Options, run

    if not paths:
        raise click.UsageError("no images given: name files, folders, globs, or - for a list on standard input")
    apart = {"address": address, "gpus-per-worker": gpus_per_worker, "decoders": decoders, "part-size": part_size}
    if engine == "ray":
        if output is None:
            raise click.UsageError("--engine ray writes a folder: name it with --output")
        for name, value in {"--heatmap": heatmaps, "--format": layout, "--workers 0": workers == 0}.items():
            if value:
                raise click.UsageError(f"{name} does not work with --engine ray")
    elif used := [name for name, value in apart.items() if value is not None]:
        raise click.UsageError(f"--{used[0]} is for --engine ray")
    elif output:
        predictions.check_output(output)
    if heatmaps:
        _make_folder(heatmaps)
    if layout is None and not output:
        layout = "table" if sys.stdout.isatty() else "json"
    options = Options(
        batch_size=batch_size,
        workers=2 if workers is None or engine == "ray" else workers,
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
    skipped: list[str] = []
    if engine == "ray":
        from detector_zoo.distributed import PART_IMAGES, Cluster

        assert output is not None  # noqa: S101 (refused above)
        names: Sequence[str] = detectors
        if "all" in detectors:
            # Every worker is to load what could be loaded here, whatever `all` stands for there; here on the CPU, as
            # the device is the workers'.
            here = {**settings, "device": "cpu", "precision": "fp32"}
            names = [detector.name for detector in load_chosen(detectors, None, None, skipped, **here)]
            _tell(skipped)
        # Absolute, as a worker may stand elsewhere.
        places = [path.absolute() if path else None for path in (folder, calibration)]
        cluster = Cluster(address=address, workers=workers, decoders=decoders, gpus=gpus_per_worker)
        _on_ray(
            paths,
            output,
            partial(load_chosen, names, places[0], places[1], **settings),
            options=options,
            cluster=cluster,
            part_images=part_size or PART_IMAGES,
            device=device,
            precision=precision,
            resume=resume,
        )
        return
    loaded = load_chosen(detectors, folder, calibration, skipped, **settings)
    _tell(skipped)
    if heatmaps and not any("localize" in detector.info.capabilities for detector in loaded):
        raise ZooError("none of these detectors has a heatmap", hint="zoo list --capability localize")

    seen = errors = 0
    written = None
    try:
        with ExitStack() as stack:
            journal = stack.enter_context(predictions.Journal(output, resume=resume)) if output else None
            show = _printer(layout, [detector.name for detector in loaded])
            found: Iterable[str] = sources.walk(paths, stdin=sys.stdin)
            say: Callable[[str], None] = to_stderr
            if sys.stderr.isatty() and (layout is None or not sys.stdout.isatty()):
                found, say = counted(stack, found, paths)
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


def _tell(skipped: Sequence[str]) -> None:
    for line in skipped:
        click.echo(f"Skipped: {line}", err=True)


def load_chosen(
    names: Sequence[str],
    folder: Path | None,
    calibration: Path | None,
    skipped: list[str] | None = None,
    **settings: Any,
) -> list[LoadedDetector]:
    """The detectors that were asked for; called in Ray's workers too.

    Args:
        names: See `detector_zoo.loading.load_all`.
        folder: What `zoo train` wrote, for the one detector that is named.
        calibration: What `zoo calibrate` wrote, likewise.
        skipped: See `detector_zoo.loading.load_all`.
        **settings: For `detector_zoo.load`.

    Raises:
        ZooError: One of them cannot be loaded.
    """
    if folder:
        from detector_zoo.training.artifact import load_detector

        loaded = [load_detector(folder, method=names[0], **settings)]
    else:
        from detector_zoo.loading import load_all

        loaded = load_all(names, [] if skipped is None else skipped, **settings)
    if calibration:
        from detector_zoo.training.calibration import applied

        loaded = [applied(calibration, loaded[0])]
    return loaded


def _on_ray(paths: Sequence[str], output: Path, load: Callable[..., list[LoadedDetector]], **settings: Any) -> None:
    """Score into a folder of parts, and report as the local engine does."""
    from detector_zoo import distributed

    seen = 0
    with ExitStack() as stack:
        bar = scoring_bar(stack, None) if sys.stderr.isatty() else None
        say = bar[1] if bar else to_stderr

        def report(images: int, errors: Sequence[str]) -> None:
            nonlocal seen
            seen += images
            for line in errors:
                say(line)
            if bar:
                bar[0](images)

        try:
            found = distributed.score(paths, output, load, stdin=sys.stdin, report=report, **settings)
        except KeyboardInterrupt:
            kept = f"the parts that are complete are kept, run the same command to go on with {output}"
            say(f"Interrupted after {seen} images; {kept}")
            raise SystemExit(INTERRUPTED) from None
    click.echo(f"{output}: {found.rows} rows", err=True)
    if found.errors:
        click.echo(f"{found.errors} of {found.images} images could not be scored", err=True)
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

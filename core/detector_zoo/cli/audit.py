"""`zoo audit`: what else could a score be answering to?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from detector_zoo.cli import lock

if TYPE_CHECKING:
    from detector_zoo.evaluation.audits import Audit
    from detector_zoo.evaluation.samples import Sample
    from detector_zoo.loading import LoadedDetector

F = TypeVar("F", bound=Callable[..., Any])


@click.group("audit")
def command() -> None:
    """Ask what else a score could be answering to: the file, the scene, the editor, the decoder.

    Every audit prints tables, and writes all its figures with counts, seed and versions by -o results.json.
    """


def _stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_detector = click.option("-d", "--detector", required=True, metavar="NAME", help="method, or method.tag.")
_data = click.option("--data", "place", required=True, metavar="SET", help="Labelled data set: folder or manifest.")
_equalise = click.option(
    "--equalise/--no-equalise",
    default=True,
    show_default=True,
    help="Give both classes one codec history and sizes first.",
)
_output = _stack(
    lock.option,
    click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps", help="Where to compute."),
    click.option(
        "--format",
        "layout",
        type=click.Choice(["table", "json", "csv"]),
        default="table",
        show_default=True,
        help="What to print.",
    ),
    click.option(
        "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures: .json or .csv."
    ),
    click.option("--skip-bad", is_flag=True, help="Record files that cannot be used and go on."),
)
_sampling = _stack(
    click.option("--absolute-paths", is_flag=True, help="Let a manifest's paths lead out of its folder."),
    click.option("--split", metavar="NAME", help="Only this split of the set."),
    click.option("--kind", metavar="NAME", help="Of the generated images only this kind, such as inpaint."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N images a class, drawn by --seed."),
    click.option("--seed", default=0, show_default=True, help="Of whatever is drawn."),
    click.option("--resamples", type=click.IntRange(20), default=2000, show_default=True, help="Of the bootstrap."),
)


@dataclass(slots=True)
class _Run:
    """The options that every audit has; built from the keyword arguments that are left over."""

    layout: str
    output: Path | None
    skip_bad: bool
    device: str
    absolute_paths: bool = False
    split: str | None = None
    kind: str | None = None
    limit: int | None = None
    seed: int = 0
    resamples: int = 2000
    bad: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.output is None:
            return
        if self.output.suffix.lower() not in (".json", ".csv"):
            raise click.UsageError(f"{self.output}: results are written as .json or .csv")
        if not self.output.parent.is_dir():
            raise click.UsageError(f"{self.output}: there is no directory {self.output.parent}")

    def samples(self, place: str) -> list[Sample]:
        """The labelled images of a set; what is bad in it is remembered, where bad ones are skipped."""
        from detector_zoo.errors import DatasetError
        from detector_zoo.evaluation.datasets import load
        from detector_zoo.evaluation.in_memory import subset

        found = load(place, split=self.split, skip_bad=self.skip_bad, absolute_paths=self.absolute_paths)
        self.bad = tuple(f"{bad.name}: {bad.cause}" for bad in found.bad)
        kept = [s for s in found.samples if self.kind in (None, s.kind) or not s.generated]
        if not any(s.generated for s in kept) and any(s.generated for s in found.samples):
            kinds = ", ".join(sorted({s.kind for s in found.samples if s.generated})) or "none"
            raise DatasetError(f"{place}: no generated image of kind {self.kind!r}", hint=f"it has {kinds}")
        return subset(kept, self.limit, self.seed)

    def load(self, name: str) -> LoadedDetector:
        from detector_zoo.loading import load

        return load(name, device=self.device)

    def common(self, place: str) -> dict[str, Any]:
        """What every function of a labelled set takes."""
        return {
            "data": " ".join(filter(None, (place, self.split, self.kind))),
            "seed": self.seed,
            "resamples": self.resamples,
            "skip_bad": self.skip_bad,
            "watch": _watch,
        }

    def show(self, audit: Audit) -> None:
        """Print and write the figures; tell on stderr which images are not in them."""
        from detector_zoo.evaluation.audits import as_csv
        from detector_zoo.evaluation.results import write_text

        failures = (*self.bad, *audit.origin.failures)
        audit = replace(audit, origin=replace(audit.origin, failures=failures))
        as_json = json.dumps(audit.to_dict(), indent=2) + "\n"
        if self.layout == "table":
            click.echo(_tables(audit))
        else:
            click.echo(as_json if self.layout == "json" else as_csv(audit), nl=False)
        if self.output is not None:
            write_text(self.output, as_json if self.output.suffix.lower() == ".json" else as_csv(audit))
        for line in failures:
            click.echo(line, err=True)


def _tables(audit: Audit) -> str:
    from textwrap import fill

    from detector_zoo.cli.table import columns, terminal_width

    parts = []
    for table in audit.tables():
        head, *rows = [list(table.head), *table.text()] if any(table.head) else table.text()
        note = fill(table.note, terminal_width())
        parts.append("\n".join(filter(None, (table.title, columns(head, rows), note))))
    return "\n\n".join(parts)


def _watch(items: Iterable[Any]) -> Iterable[Any]:
    """A progress bar on a terminal's stderr."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, "auditing", console=console, transient=True) if console.is_terminal else items


@command.command("format")
@_data
@click.option("-d", "--detector", metavar="NAME", help="Also score this detector before and after equalising.")
@_sampling
@_output
def format_command(place: str, detector: str | None, **options: Any) -> None:
    """Can codec, quantisation, size, chroma subsampling or metadata alone tell the classes?

    A classifier that sees no pixel is cross-validated on the files as they are, and once all of them are equalised
    (the same codec history and sizes for both classes). Of a detector it tells how much of its AUROC above chance
    goes away with the formats.
    """
    from detector_zoo.evaluation.format_audit import format_audit

    run = _Run(**options)
    samples = run.samples(place)
    run.show(format_audit(samples, run.load(detector) if detector else None, **run.common(place)))


@command.command("laundering")
@_data
@_detector
@click.option(
    "-p",
    "--perturbation",
    "perturbations",
    multiple=True,
    metavar="NAME[:NUMBER]",
    help="Instead of the whole grid: jpeg:75, blur:1, screenshot, ... Repeatable.",
)
@_equalise
@_sampling
@_output
def laundering_command(
    place: str, detector: str, perturbations: tuple[str, ...], equalise: bool, **options: Any
) -> None:
    """Score images after re-encoding, resizing, cropping, blur, noise, a screenshot, an upload.

    Each image is decoded once and perturbed in memory. Installed plugins can add perturbations.
    """
    from detector_zoo.evaluation.laundering import laundering
    from detector_zoo.evaluation.perturbations import parse

    run = _Run(**options)
    try:
        parse(perturbations)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    samples = run.samples(place)
    run.show(laundering(samples, run.load(detector), perturbations or None, equalise=equalise, **run.common(place)))


@command.command("exchange")
@click.option(
    "--triples", "place", required=True, metavar="SET", help="Edits with their originals and masks: folder or manifest."
)
@_detector
@click.option(
    "--jpeg",
    "quality",
    type=click.IntRange(1, 100),
    metavar="Q",
    help="Give every version a last JPEG of quality Q.",
)
@click.option("--maps/--no-maps", default=True, show_default=True, help="Measure the heatmap, where there is one.")
@_sampling
@_output
def exchange_command(place: str, detector: str, quality: int | None, maps: bool, **options: Any) -> None:
    """Does it see the edit, or what the editor did to the rest of the picture?

    Scores inpainted pictures, and the same with the original's pixels put back outside the mask (Inpainting
    Exchange), hard and with soft edges. Also the share of the heatmap inside the mask, and the spectra.
    """
    from detector_zoo.evaluation.exchange_audit import exchange_audit

    run = _Run(**options)
    samples = run.samples(place)
    run.show(exchange_audit(samples, run.load(detector), quality=quality, maps=maps, **run.common(place)))


@command.command("localization")
@click.option("--data", "place", required=True, metavar="SET", help="Edits with their masks: folder or manifest.")
@_detector
@click.option("--threshold", type=float, help="Of the heatmap. [default: the middle of each map's own range]")
@_sampling
@_output
def localization_command(place: str, detector: str, threshold: float | None, **options: Any) -> None:
    """Does the heatmap lie on the edit? mIoU, pixel AP and AUROC, share of energy inside the mask."""
    from detector_zoo.evaluation.localization import localization

    run = _Run(**options)
    samples = run.samples(place)
    run.show(localization(samples, run.load(detector), threshold=threshold, **run.common(place)))


@command.command("semantics")
@_data
@_detector
@click.option(
    "--side",
    "sides",
    type=click.IntRange(1),
    multiple=True,
    metavar="PIXELS",
    help="Of patches. [default: 16 32 64]",
)
@click.option(
    "--content",
    metavar="COLUMN",
    help="What pictures show: source, kind, group, folder, or a column of the CSV manifest.",
)
@click.option("--pair", metavar="A,B", help="The two contents to compare, where there are more.")
@_equalise
@_sampling
@_output
def semantics_command(
    place: str,
    detector: str,
    sides: tuple[int, ...],
    content: str | None,
    pair: str | None,
    equalise: bool,
    **options: Any,
) -> None:
    """Does the score follow how a picture was made, or what it shows?

    Scores pictures with their patches shuffled. With --content, on a set with two contents: does the score follow
    the label within each, and does it follow the content within each label?
    """
    from detector_zoo.evaluation.semantics import SIDES, contents_of, semantics

    run = _Run(**options)
    names = pair.split(",") if pair else None
    if names is not None and (len(names) != 2 or content is None):
        raise click.UsageError("--pair takes two contents, A,B, of the column that --content names")
    samples = run.samples(place)
    run.show(
        semantics(
            samples,
            run.load(detector),
            contents=contents_of(samples, content, place) if content else None,
            pair=(names[0].strip(), names[1].strip()) if names else None,
            sides=sides or SIDES,
            equalise=equalise,
            **run.common(place),
        )
    )


@command.command("invariance")
@click.argument("paths", nargs=-1, required=True, metavar="PATHS...")
@_detector
@click.option(
    "--batch", "batches", type=click.IntRange(2), multiple=True, metavar="N", help="Batch sizes. [default: 2 8]"
)
@_output
def invariance_command(paths: tuple[str, ...], detector: str, batches: tuple[int, ...], **options: Any) -> None:
    """What moves a score that should not? Batch, device, decoder, one pixel, a lossless re-save, EXIF orientation."""
    from detector_zoo import sources
    from detector_zoo.evaluation.invariance import BATCHES, invariance

    run = _Run(**options)
    found = list(sources.walk(paths))
    loaded = run.load(detector)
    run.show(
        invariance(
            found,
            loaded,
            others=_elsewhere(loaded, detector),
            batches=batches or BATCHES,
            data=" ".join(paths),
            skip_bad=run.skip_bad,
            watch=_watch,
        )
    )


def _elsewhere(loaded: LoadedDetector, name: str) -> dict[str, LoadedDetector]:
    """The same detector on the machine's other devices."""
    from detector_zoo.detector import TorchDetector
    from detector_zoo.errors import ZooError
    from detector_zoo.loading import load

    found: dict[str, LoadedDetector] = {}
    if isinstance(loaded.detector, TorchDetector):
        for device in {"cpu", "cuda", "mps"} - {loaded.detector.device.type}:
            with suppress(ZooError):  # this machine has none
                found[device] = load(name, device=device)
    return found

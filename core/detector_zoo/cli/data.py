"""`zoo data`: make training data, and look at data sets. A subcommand is a module ``data_<name>`` beside this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from detector_zoo.evaluation.samples import Sample
    from detector_zoo.training.manifest_out import Done

SUBCOMMANDS = ("check", "reconstruct", "edit", "train-inpainter", "exchange")
INTERRUPTED = 130

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class _Data(click.Group):
    """Loads a subcommand's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*SUBCOMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        module = import_module(f"detector_zoo.cli.data_{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command


@click.group("data", cls=_Data)
def command() -> None:
    """Make training data from photographs, and look at data sets.

    Pictures are written as PNG, with a manifest.csv that the other commands read. Nothing of their format is equal
    yet to that of other images: training and evaluation give both classes one codec history when they read them.
    """


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order in which help shows them."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


set_options = options(
    click.option("--data", "place", required=True, metavar="SET", help="Folder or manifest; its real images are used."),
    click.option("--split", metavar="NAME", help="Only this split of the set."),
)
out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder; what an earlier run of the same settings left there is kept.",
)
autoencoder_options = options(
    click.option("--revision", metavar="COMMIT", help="Of a repository. [default: what main is now]"),
    click.option("--subfolder", default="", metavar="NAME", help="Of a repository or folder, such as vae."),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16"]),
        default="fp32",
        show_default=True,
        help="Of the autoencoder; bf16 is faster where the processor has it.",
    ),
)
crop_options = options(
    click.option("--size", type=click.IntRange(64), default=384, show_default=True, help="Longest side of the crops."),
    click.option("--crops", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="A photograph."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Photographs, the first by sha256."),
    click.option(
        "--reduced",
        type=click.FloatRange(0, 1),
        default=0.5,
        show_default=True,
        metavar="SHARE",
        help="Of the crops that are taken from a reduced photograph, which has lost its codec's traces.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every draw."),
)
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps", help="Where to compute."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    default=lambda: min(4, os.cpu_count() or 1),
    help="Threads; they change no result. [default: one a core, at most 4]",
)
skip_bad_option = click.option("--skip-bad", is_flag=True, help="Leave out what cannot be used, and say so.")


def say(line: str) -> None:
    """One line on stderr."""
    click.echo(line, err=True)


def read_set(place: str, split: str | None, skip_bad: bool) -> list[Sample]:
    """The samples of a set; what is left out is said."""
    from detector_zoo.evaluation.datasets import load

    found = load(place, split=split, skip_bad=skip_bad)
    for one in found.bad:
        say(f"{one.name}: {one.cause}")
    return found.samples


@contextmanager
def going_on(out: Path) -> Iterator[None]:
    """Turns an interrupt into one line that says what to do, and status 130."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"Interrupted; what is made is kept, run the same command to go on with {out}")
        raise SystemExit(INTERRUPTED) from None


def progress(label: str) -> Callable[[Sequence[T]], Generator[T]]:
    """Wraps work in a bar with the remaining time, on stderr where that is a terminal; it goes with the last item."""

    def track(work: Sequence[T]) -> Generator[T]:
        if not sys.stderr.isatty():
            yield from work
            return
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(work, label, console=Console(stderr=True), transient=True)

    return track


@contextmanager
def tracking(label: str) -> Iterator[Callable[[Sequence[T]], Iterable[T]]]:
    """`progress` whose bar is gone at the end of the block, so that it does not get between an error and its hint."""
    with ExitStack() as stack:
        yield lambda work: stack.enter_context(closing(progress(label)(work)))


def report(out: Path, done: Done) -> None:
    """Say what a run did; the manifest's path goes to stdout."""
    left_out = f", {done.skipped} left out" if done.skipped else ""
    say(f"{done.made} made, {done.kept} kept{left_out}; {done.rows} rows")
    click.echo(out / "manifest.csv")

"""The bar of `zoo score` on stderr, with rate and remaining time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack

import click


def to_stderr(line: str) -> None:
    """Print a line where there is no bar."""
    click.echo(line, err=True)


def counted(
    stack: ExitStack, found: Iterable[str], paths: Sequence[str]
) -> tuple[Iterable[str], Callable[[str], None]]:
    """A bar on stderr: the paths counted as they pass, and a way to print above it."""
    from detector_zoo import sources

    # Walking twice costs a directory listing; it buys a remaining time without holding the list of paths.
    advance, say = scoring_bar(stack, None if "-" in paths else sum(1 for _ in sources.walk(paths)))

    def one_by_one() -> Iterator[str]:
        for path in found:
            yield path
            advance(1)

    return one_by_one(), say


def scoring_bar(stack: ExitStack, total: int | None) -> tuple[Callable[[int], None], Callable[[str], None]]:
    """A bar with rate and remaining time on stderr: a way to advance it, and one to print above it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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

    def advance(images: int) -> None:
        speed = bar.tasks[0].speed
        bar.update(task, advance=images, rate=f"{speed:.1f} images/s" if speed else "")

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return advance, say

"""Telling people how far a training is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["shown"]


@contextmanager
def shown(steps: int, done: int, *, quiet: bool = False) -> Iterator[Callable[[int, str], None]]:
    """A bar with the remaining time on a terminal, elsewhere a line a validation; on standard error.

    Args:
        steps: Of the whole run.
        done: Before it began, or went on.
        quiet: Say nothing.

    Yields:
        What to call with a step's number and, after a validation, its result.
    """
    if quiet:
        yield lambda step, text: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task("training", total=steps, completed=done)

            def update(step: int, text: str) -> None:
                bar.update(task, completed=step)
                if text:
                    console.print(f"step {step}: {text}", markup=False, highlight=False)

            yield update
        return
    begun = time.monotonic()

    def line(step: int, text: str) -> None:
        if text:
            each = (time.monotonic() - begun) / max(1, step - done)
            left = round(each * (steps - step) / 60)
            print(f"step {step} of {steps}: {text} ({each:.2f} s a step, {left} min left)", file=sys.stderr, flush=True)

    yield line

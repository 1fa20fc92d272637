"""Plain columns for terminals and pipes.

Written by hand because `zoo list` must answer in little more than the time that click and yaml take to load
(benchmarks/startup.py), which a table library's import exceeds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from detector_zoo.plain import plain


def terminal_width(default: int = 120) -> int:
    """Columns of the terminal: COLUMNS, or what standard output says, or ``default`` on a pipe."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns if sys.__stdout__ else default
    except (OSError, ValueError):
        return default


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns; the last one wraps at the width of the terminal. Cells may hold text of strangers."""
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = max(terminal_width() - indent, 24)
    lines = []
    for row in (head, *rows):
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        for i, part in enumerate(_wrapped(row[-1], room)):
            lines.append(((start if i == 0 else " " * indent) + part).rstrip())
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield line

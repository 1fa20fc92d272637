"""What the workers send, put together: pieces to slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from detector_zoo.distributed.parts import Count

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Assembly", "assembled"]


@dataclass(slots=True)
class Assembly:
    """A slice of which some pieces are there.

    Attributes:
        number: Of the slice; of the end of the run, how many slices there are.
        digest: Of the slice.
        total: Images of the slice, 0 of the end; -1 until the last piece is there.
        indices: Places in the slice of the images of ``tables``.
        tables: Their rows.
    """

    number: int
    digest: str
    total: int = -1
    indices: list[int] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every image of the slice is there once.

        As many as there should be is not enough: Ray keeps the pieces of a task that died and hands on the rest from
        its second run, and where that cut them elsewhere an image is lost and another one there twice.
        """
        return len(self.indices) == self.total and sorted(self.indices) == list(range(self.total))

    def rows(self) -> tuple[pa.Table, Count]:
        """The rows of a complete slice in the order of its images, and how much that is."""
        import numpy as np
        import pyarrow as pa

        rows = pa.concat_tables(self.tables)
        each = len(rows) // self.total
        order = np.argsort(np.array(self.indices, np.int64))
        rows = rows.take(pa.array((order[:, None] * each + np.arange(each)).ravel()))
        bad = np.array([bool(error) for error in rows["error"].to_pylist()]).reshape(self.total, -1).any(axis=1)
        return rows, Count(self.total, len(rows), int(bad.sum()))


def assembled(pieces: Iterator[Mapping[str, Any]], report: Callable[[int, Sequence[str]], None]) -> Iterator[Assembly]:
    """Slices, each as soon as it is complete; then those that are not, whose pieces do not fit together.

    Args:
        pieces: See `detector_zoo.distributed.stages`, in any order.
        report: Called with each piece: its images, and a line for each error in it.
    """
    import pyarrow as pa

    open_: dict[int, Assembly] = {}
    for piece in pieces:
        number = piece["number"]
        assembly = open_.setdefault(number, Assembly(number, piece["digest"]))
        with pa.ipc.open_stream(piece["rows"]) as stream:
            table = stream.read_all()
        assembly.indices += piece["indices"]
        assembly.tables.append(table)
        assembly.total = max(assembly.total, piece["total"])
        report(len(piece["indices"]), _errors(table))
        if assembly.complete:
            yield open_.pop(number)
    yield from open_.values()


def _errors(table: pa.Table) -> list[str]:
    bad = [(path, error) for path, error in zip(*(table[name].to_pylist() for name in ("path", "error")), strict=True)]
    return list(dict.fromkeys(f"{path}: {error}" for path, error in bad if error))

"""What runs in Ray's workers: list, then score; or list, decode, and score apart.

Between the stages everything goes in small tables: a share of a slice (see `detector_zoo.distributed.inputs`), or a
piece, which is the rows of some of a share's images. The detectors are loaded once a process, when it starts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from detector_zoo.distributed.inputs import Share, Slice, is_remote, open_share, slices
from detector_zoo.distributed.ordered import in_order
from detector_zoo.errors import ZooError
from detector_zoo.rows import to_table
from detector_zoo.scoring import Item, Options, Source, prepare, run, score_prepared
from detector_zoo.sources import printable

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from detector_zoo.loading import LoadedDetector
    from detector_zoo.predictions import Prediction

__all__ = ["Decode", "Job", "Score", "ScorePrepared", "lister"]

_SHARE = 256
"""Images that a worker takes at a time: so few that none waits long for the last and that a thousand are not one
worker's alone, so many that handing them out costs little."""
_PIECE = 512
"""Images of which the rows travel together."""
_PACK_BYTES = 16 * 2**20
"""Prepared images that travel together."""
_ATTEMPTS = 10
_REMOTE_THREADS = 16
"""A read over the network waits; its processor does not."""


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker needs to know.

    Attributes:
        load: Makes the detectors; takes ``device`` and ``precision`` to override. Called in the worker.
        options: How to run.
        directory: Where relative paths begin; None where there are none.
        threads: That torch may use in a worker.
        attempts: Handle of the `Attempts` of the run.
    """

    load: Callable[..., Sequence[LoadedDetector]]
    options: Options
    directory: str | None
    threads: int
    attempts: Any

    @contextmanager
    def attempt(self, work: Hashable, names: Sequence[str]) -> Iterator[None]:
        """Count an attempt at some work until it is done.

        Args:
            work: What it is known by in every process.
            names: Its images; without any, nothing is counted.

        Raises:
            ZooError: There were too many: one of the images kills the process that looks at it.
        """
        import ray

        if names and ray.get(self.attempts.begin.remote(work)) > _ATTEMPTS:
            first, last = printable(names[0]), printable(names[-1])
            raise ZooError(
                f"workers died {_ATTEMPTS} times at one of {first} ... {last}",
                hint="what is scored is kept; find the file with --engine local, and leave it out",
            )
        yield
        self.attempts.done.remote(work)


class Attempts:
    """Counts, for all workers, how often work was begun. Ray begins it again for ever where a worker dies."""

    def __init__(self) -> None:
        self.begun: Counter[Hashable] = Counter()

    def begin(self, work: Hashable) -> int:
        """Once more; how often that makes."""
        self.begun[work] += 1
        return self.begun[work]

    def done(self, work: Hashable) -> None:
        """Forget it: there may be millions."""
        self.begun.pop(work, None)


def lister(
    arguments: Sequence[str], size: int, stdin: str | None, directory: str | None, kept: Mapping[int, str]
) -> Callable[[Any], Iterator[pa.Table]]:
    """The stage that lists: one empty input to a table for each share of what is not ``kept``, and one for the end.

    Args:
        arguments: See `detector_zoo.distributed.inputs.walk`.
        size: Of a slice.
        stdin: A file with what standard input said.
        directory: See `Job`.
        kept: Digests of the slices that are done.
    """

    def listed(_: Any) -> Iterator[pa.Table]:
        if directory is not None:
            os.chdir(directory)
        number = 0
        with open(stdin or os.devnull, encoding="utf-8", errors="surrogateescape", newline="") as stream:
            for part in slices(arguments, size, stream):
                number = part.number + 1
                if kept.get(part.number) != part.digest:
                    yield from map(_share_table, part.shares(_SHARE))
        yield from map(_share_table, Slice(number, ()).shares(_SHARE))  # the end: no names

    return listed


def _share_table(share: Share) -> pa.Table:
    import pyarrow as pa

    names = pa.array([[os.fsencode(name) for name in share.names]], pa.list_(pa.binary()))
    return pa.table({**{name: [value] for name, value in asdict(share).items()}, "names": names})


def _shares(table: pa.Table) -> Iterator[Share]:
    for row in table.to_pylist():
        yield Share(**row | {"names": tuple(map(os.fsdecode, row["names"]))})


def _piece(share: Share, scored: Sequence[tuple[int, Sequence[Prediction]]], count: int = -1) -> pa.Table:
    """Rows of some images of a share.

    Args:
        share: What it is a piece of.
        scored: Rows, with the image's place in the share.
        count: Images of the share, with the last of its pieces.
    """
    import pyarrow as pa

    rows = to_table([row for _, rows in scored for row in rows])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return pa.table(
        {
            "number": [share.number],
            "digest": [share.digest],
            # How many images the slice has is known where it ends.
            "total": [share.first + count if share.last and count >= 0 else -1],
            "indices": pa.array([[share.first + index for index, _ in scored]], pa.list_(pa.int64())),
            "rows": pa.array([sink.getvalue().to_pybytes()], pa.binary()),
        }
    )


def _options(job: Job, share: Share) -> Options:
    slow = not share.archive and any(map(is_remote, share.names))
    return replace(job.options, workers=_REMOTE_THREADS) if slow else job.options


class _Worker:
    """A process with the detectors."""

    def __init__(self, job: Job, **changes: str) -> None:
        import torch

        self.job = job
        self._detectors: Sequence[LoadedDetector] = ()
        self._error: ZooError | None = None
        torch.set_num_threads(job.threads)
        try:
            if job.directory is not None:
                os.chdir(job.directory)
            self._detectors = job.load(**changes)
        except ZooError as error:
            self._error = error  # what is raised here, Ray hands on as text alone
        except OSError as error:
            self._error = ZooError(f"a worker cannot go to {job.directory} ({error.strerror})")

    @property
    def detectors(self) -> Sequence[LoadedDetector]:
        if self._error:
            raise self._error
        return self._detectors


class Score(_Worker):
    """Shares to pieces: the whole pipeline, in one process."""

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Score a share, or several."""
        for share in _shares(table):
            with self.job.attempt((share.number, share.first), share.names):
                scored: list[tuple[int, Sequence[Prediction]]] = []
                count = 0
                for rows in run(open_share(share), self.detectors, _options(self.job, share)):
                    if len(scored) == _PIECE:
                        yield _piece(share, scored)
                        scored = []
                    scored.append((count, rows))
                    count += 1
                yield _piece(share, scored, count)


class Decode(_Worker):
    """Shares to packs of prepared images: what goes before the forward pass, on processors."""

    def __init__(self, job: Job) -> None:
        # A detector's transform comes with its network, which has nothing to do here.
        super().__init__(job, device="cpu", precision="fp32")

    def __call__(self, table: pa.Table) -> Iterator[dict[str, Any]]:
        """Decode a share, or several."""
        for share in _shares(table):
            with self.job.attempt((share.number, share.first), share.names):
                pack: list[Item] = []
                size = count = 0
                for item in _prepared(share, self.detectors, _options(self.job, share)):
                    if size >= _PACK_BYTES or len(pack) == _PIECE:
                        yield _pack(share, pack)
                        pack, size = [], 0
                    count += 1
                    pack.append(item)
                    size += _size(item)
                yield _pack(share, pack, count)


def _prepared(share: Share, detectors: Sequence[LoadedDetector], options: Options) -> Iterator[Item]:
    """A share's images, prepared, in their order.

    Of a task that runs again Ray drops as many packs as it has; so they have to be cut alike, whatever thread is first.
    """
    alone = replace(options, workers=0)

    def one(job: tuple[int, str | Source]) -> tuple[Item, int]:
        index, source = job
        (item,) = prepare([source], detectors, alone)
        item.index = index
        return item, _size(item)

    jobs = enumerate(open_share(share))
    return in_order(jobs, one, workers=max(1, options.workers), ahead=options.batch_size, limit=options.memory)


def _size(item: Item) -> int:
    """Bytes of what is prepared; where that is no tensor, of the image's pixels."""
    pixels = 3 * item.facts.get("width", 0) * item.facts.get("height", 0)
    return sum(getattr(prepared, "nbytes", pixels) for prepared in item.inputs.values())


def _pack(share: Share, items: list[Item], count: int = -1) -> dict[str, Any]:
    import numpy as np

    cell: NDArray[np.object_] = np.empty(1, object)
    # The names went with the items; a pack of pixels need not bring them once more.
    cell[0] = (replace(share, names=()), items, count)
    return {"pack": cell}


class ScorePrepared(_Worker):
    """Packs of prepared images to pieces: the forward pass, on a GPU."""

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> Iterator[pa.Table]:
        """Score a pack, or several."""
        for share, items, count in batch["pack"]:
            work = (share.number, share.first, items[0].index if items else count)
            with self.job.attempt(work, [item.path for item in items]):
                yield _piece(share, list(score_prepared(items, self.detectors, self.job.options)), count)

"""A folder of made images that grows: atomic files, a note a job of what it holds, and a manifest at the end.

::

    OUT/recipe.json      how everything in it was made; a run with other settings is refused
    OUT/<kind>/*.png     lossless pictures, masks among them
    OUT/rows/*.json      one a job: its rows, and the sha256 of each file; written last, so that it marks the job done
    OUT/manifest.csv     the rows of the last complete run

Pictures are PNG because the codec is to tell nothing: `detector_zoo.evaluation.equalise` gives both classes one
history when they are read, drawn anew for each use. An image that was written as JPEG here could not be given it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector_zoo.errors import DatasetError, ImageError

__all__ = ["COLUMNS", "Done", "OutputFolder", "Picture", "Row", "write_atomically"]

COLUMNS = (
    "path",
    "label",
    "split",
    "generator",
    "kind",
    "source",
    "licence",
    "redistributable",
    "width",
    "height",
    "codec",
    "cut",
    "note",
    "sha256",
    "group",
    "original",
    "mask",
)
"""Of ``manifest.csv``. Paths are relative to it, with ``/``, and stay below it."""

T = TypeVar("T")

Job = tuple[str, Callable[[], "Sequence[Picture]"]]
"""The stem of a job's files, and what makes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is known of a picture beside its pixels; the fields are columns of the manifest.

    Attributes:
        label: ``real`` or ``generated``; a splice of two photographs is real.
        kind: ``photo``, ``recon``, ``edit-latent``, ``edit-latent-exchange``, ``splice``, ...
        group: sha256 of the photograph that the picture is, or was made from.
        generator: The network that made it, "" for none.
        split: Of the photograph.
        source: Collection of the photograph.
        cut: Where the picture lies in the photograph.
        note: ``key=value`` pairs, separated by "; ".
        original: Path of the untouched picture, relative to the manifest; "" for an untouched one.
        mask: Path of the mask, likewise; "" for none.
    """

    label: str
    kind: str
    group: str
    generator: str = ""
    split: str = ""
    source: str = ""
    cut: str = ""
    note: str = ""
    original: str = ""
    mask: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A file to write.

    Attributes:
        path: Relative to the folder.
        pixels: (H, W, 3) uint8, or (H, W) bool for a mask.
        row: Its line of the manifest; a mask has none.
    """

    path: str
    pixels: NDArray[np.uint8] | NDArray[np.bool_]
    row: Row | None = None


@dataclass(slots=True)
class Done:
    """What a run did: jobs made now, jobs kept from earlier, jobs given up, and rows in the manifest."""

    made: int = 0
    kept: int = 0
    skipped: int = 0
    rows: int = 0


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there; its folder is made.

    Raises:
        DatasetError: It cannot be written.
    """
    # Named after the target, so that what a killed run left is overwritten by the next.
    staging = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content)
        staging.replace(path)
    except OSError as error:
        with suppress(OSError):
            staging.unlink(missing_ok=True)
        raise DatasetError(f"{path}: cannot be written: {error.strerror}") from error


class OutputFolder:
    """A folder that jobs write to, one run at a time; a context manager that holds its lock.

    Args:
        root: Made if missing.
        recipe: Settings that the content depends on, JSON values.

    Raises:
        DatasetError: The folder was made with another recipe, is not one of these folders, is being written to by
            another process, or cannot be written to.
    """

    def __init__(self, root: Path, recipe: Mapping[str, Any]) -> None:
        from filelock import FileLock, Timeout

        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(root / ".lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise DatasetError(f"{root}: another run is writing here") from error
        except OSError as error:
            raise DatasetError(f"{root}: cannot be written to: {error.strerror}") from error
        try:
            self._claim(json.loads(json.dumps(recipe)))
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def run(self, jobs: Iterable[Job], bad: Callable[[str], None] | None = None, workers: int = 1) -> Done:
        """Do the jobs that are not done, and write the manifest of all of them, in their order.

        Args:
            jobs: Consumed as they are done; of those that are, nothing is held.
            bad: Told in one line why a job was given up; with None the first such job ends the run.

            workers: Threads; jobs must not share anything that they change. torch computes in one thread each,
                because its results depend on how many it has, and must not depend on ``workers``.

        Returns:
            Counts.

        Raises:
            DatasetError: A job cannot be done, or a file cannot be written.
            ImageError: A picture cannot be read.
        """
        done = Done()
        staging = self.root / ".manifest.csv.tmp"
        with staging.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for result in _in_order(self._do, jobs, workers):
                try:
                    rows, kept = result()
                except (DatasetError, ImageError) as error:
                    if bad is None:
                        raise
                    bad(str(error))
                    done.skipped += 1
                    continue
                done.kept += kept
                done.made += not kept
                writer.writerows(rows)
                done.rows += len(rows)
        staging.replace(self.root / "manifest.csv")
        return done

    def _do(self, job: Job) -> tuple[list[dict[str, Any]], bool]:
        """The rows of a job, and whether they were there."""
        stem, make = job
        rows = self._kept(stem)
        return (self._write(stem, make()), False) if rows is None else (rows, True)

    def _claim(self, recipe: dict[str, Any]) -> None:
        path = self.root / "recipe.json"
        try:
            known = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            if any(entry.name != ".lock" for entry in self.root.iterdir()):
                raise DatasetError(
                    f"{self.root}: holds files that were not made by this command", hint="name an empty or a new folder"
                ) from None
            write_atomically(path, json.dumps(recipe, indent=2).encode() + b"\n")
            return
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path}: cannot be read as a recipe") from error
        for key in recipe if recipe.keys() == known.keys() else ("command",):
            if known.get(key) != recipe.get(key):
                raise DatasetError(
                    f"{self.root}: was made with {key} {known.get(key)!r}, this run has {recipe.get(key)!r}",
                    hint="name another folder, or go on with the settings in its recipe.json",
                )

    def _note(self, stem: str) -> Path:
        return self.root / "rows" / f"{stem}.json"

    def _kept(self, stem: str) -> list[dict[str, Any]] | None:
        """The rows of a job whose files are all there and whole."""
        try:
            note = json.loads(self._note(stem).read_text("utf-8"))
            for path, sha256 in note["files"].items():
                if hashlib.sha256((self.root / path).read_bytes()).hexdigest() != sha256:
                    return None
        except (OSError, ValueError):
            return None
        rows: list[dict[str, Any]] = note["rows"]
        return rows

    def _write(self, stem: str, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        files, rows = {}, []
        for picture in pictures:
            content = _png(picture.pixels)
            write_atomically(self.root / picture.path, content)
            files[picture.path] = hashlib.sha256(content).hexdigest()
            if picture.row is not None:
                height, width = picture.pixels.shape[:2]
                facts = {"path": picture.path, "width": width, "height": height, "sha256": files[picture.path]}
                # The licence is the photograph's, which only the data set that it came from can tell.
                rows.append(asdict(picture.row) | facts | {"codec": "png", "licence": "", "redistributable": "no"})
        write_atomically(self._note(stem), json.dumps({"files": files, "rows": rows}).encode())
        return rows


def _in_order(work: Callable[[Job], T], jobs: Iterable[Job], workers: int) -> Iterator[Callable[[], T]]:
    """Each job's result, or its exception, by a call; in the order of the jobs, few of which are under way at once."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[T]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(work, job))
            if len(pending) > workers:
                yield pending.popleft().result
        while pending:
            yield pending.popleft().result
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _png(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == np.bool_ else pixels)
    # Level 1 writes photographs three times as fast as level 6 and a tenth larger.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

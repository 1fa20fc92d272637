"""Paths in, scores out: the one pipeline that every command uses.

Decoding and transforms run in threads (Pillow, numpy and torch release the interpreter's lock where it counts)
beside the forward pass of the calling thread. An image is read, hashed and decoded once, however many detectors
score it. Inputs are batched by shape and never padded, so that batching cannot change a score. What is in flight
is bounded in bytes, not in images: memory does not grow with the number of paths.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from detector_zoo import __version__, fusion, heatmaps, images, sources
from detector_zoo.detector import Localizer, Precision, probability, verdict
from detector_zoo.errors import ImageError, PluginError, ZooError
from detector_zoo.loading import LoadedDetector, load
from detector_zoo.predictions import Journal, Prediction
from detector_zoo.workers import Budget, stream

__all__ = ["Item", "Options", "Source", "prepare", "run", "score", "score_prepared"]

MAX_AGE_BATCHES = 4
"""An image waits for companions of its shape until this many batches of later ones have been prepared."""
COMMIT_ROWS = 64
COMMIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run the pipeline; none of these changes a score.

    Attributes:
        batch_size: Images of one shape per forward pass, at most.
        workers: Threads that decode and transform; 0 does it in the calling thread.
        memory: Bytes of prepared inputs in flight, beyond the one image that each worker holds.
        max_pixels: Refuse larger images.
        heatmaps: Folder for overlays of the detectors that localize; None writes none.
        fuse: ``mean`` or ``soft-or`` adds a row an image.
    """

    batch_size: int = 16
    workers: int = 2
    memory: int = 512 * 2**20
    max_pixels: int = images.DEFAULT_MAX_PIXELS
    heatmaps: Path | None = None
    fuse: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """An image that is not simply a file: what its rows call it, and how its bytes are had.

    Attributes:
        name: The ``path`` of its rows.
        read: Returns the bytes, or raises `ImageError`; called once, in a worker's thread.
    """

    name: str
    read: Callable[[], bytes]


def score(
    paths: Iterable[str | Path],
    detectors: Sequence[str] = ("mdmf",),
    *,
    device: str = "auto",
    threshold: float | None = None,
    memory: int | None = None,
    precision: Precision = "fp32",
    options: Options | None = None,
) -> Iterator[Prediction]:
    """Score files, lazily and in order: one `Prediction` an image and detector, errors included.

    Args:
        paths: Files; see `detector_zoo.sources.walk` for directories and globs.
        detectors: Names, ``method`` or ``method.tag``.
        device: As in `load`.
        threshold: In log-odds; by default each detector's own.
        memory: As in `load`.
        precision: As in `load`.
        options: How to run.

    Raises:
        UnknownDetectorError: No such detector or tag.
        WeightsError: Weights cannot be had.
    """
    options = options or Options()
    loaded = [
        load(
            name,
            device=device,
            threshold=threshold,
            max_pixels=options.max_pixels,
            memory=memory,
            precision=precision,
        )
        for name in detectors
    ]
    for rows in run((str(path) for path in paths), loaded, options):
        yield from rows


def run(
    paths: Iterable[str | Source],
    detectors: Sequence[LoadedDetector],
    options: Options,
    journal: Journal | None = None,
) -> Iterator[list[Prediction]]:
    """Run the pipeline: for each path, in order, its rows (one a detector, then the fused one).

    With a journal, rows that it holds are taken from there (judged anew by today's threshold, without decoding),
    and new ones are committed to it every `COMMIT_ROWS` rows or `COMMIT_SECONDS`, and when the run ends or breaks.
    """
    pipeline = _Pipeline(detectors, options, journal)
    ready: dict[int, tuple[list[Prediction], list[Prediction]]] = {}
    next_index = 0
    uncommitted: list[Prediction] = []
    last_commit = time.monotonic()
    try:
        for item in pipeline.scored(pipeline.prepared(paths)):
            ready[item.index] = pipeline.finish(item)
            while next_index in ready:
                rows, fresh = ready.pop(next_index)
                next_index += 1
                if journal is not None:
                    uncommitted += fresh
                yield rows
            due = len(uncommitted) >= COMMIT_ROWS or time.monotonic() - last_commit > COMMIT_SECONDS
            if journal is not None and due:
                journal.add(uncommitted)
                uncommitted, last_commit = [], time.monotonic()
    finally:
        if journal is not None:
            journal.add(uncommitted)


def prepare(paths: Iterable[str | Source], detectors: Sequence[LoadedDetector], options: Options) -> Iterator[Item]:
    """The first half of `run`, without journal and heatmaps: read, decode and transform, as they come."""
    pipeline = _Pipeline(detectors, options, None)
    for item in pipeline.prepared(paths):
        if item is not None:
            yield pipeline.release(item)


def score_prepared(
    items: Iterable[Item], detectors: Sequence[LoadedDetector], options: Options
) -> Iterator[tuple[int, list[Prediction]]]:
    """The second half of `run`: items of `prepare` to their index and rows, as they come."""
    pipeline = _Pipeline(detectors, options, None)
    for item in pipeline.scored(items):
        yield item.index, pipeline.finish(item)[0]


@dataclass(slots=True)
class Item:
    """One image on its way through the pipeline."""

    index: int
    path: str
    sha256: str = ""
    decoded: images.DecodedImage | None = None
    known: dict[int, Prediction] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    inputs: dict[int, Any] = field(default_factory=dict)
    raw: dict[int, float] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    held: int = 0


class _Pipeline:
    def __init__(self, detectors: Sequence[LoadedDetector], options: Options, journal: Journal | None) -> None:
        self.detectors = detectors
        self.options = options
        self.journal = journal
        self.budget = Budget(options.memory)
        # Items that wait for companions: by detector and by shape of the input.
        self.buckets: dict[tuple[int, Any], list[Item]] = {}
        self.mapped = {
            which for which, d in enumerate(detectors) if options.heatmaps and isinstance(d.detector, Localizer)
        }

    def prepared(self, paths: Iterable[str | Source]) -> Iterator[Item | None]:
        """Items that wait for the forward pass, as they come; None where a worker waits for room."""
        ahead = self.options.batch_size
        return stream(enumerate(paths), self.prepare, self.budget, workers=self.options.workers, ahead=ahead)

    def scored(self, items: Iterable[Item | None]) -> Iterator[Item]:
        """Items whose every score is in."""
        batch_size = self.options.batch_size
        newest = 0
        for item in items:
            if item is None:  # a worker waits for room
                if self.buckets:
                    yield from self.forward(max(self.buckets, key=self.bytes_in))
                continue
            newest = max(newest, item.index)
            if not item.inputs:
                yield self.release(item)
                continue
            for which, prepared in item.inputs.items():
                self.buckets.setdefault((which, getattr(prepared, "shape", None)), []).append(item)
            oldest = newest - MAX_AGE_BATCHES * batch_size
            due = [key for key, b in self.buckets.items() if len(b) >= batch_size or b[0].index <= oldest]
            for key in due:
                yield from self.forward(key)
        for key in list(self.buckets):
            yield from self.forward(key)

    def prepare(self, job: tuple[int, str | Source]) -> tuple[Item, int]:
        """In a worker: read, look up, decode, transform. Returns the item and the bytes that it holds."""
        index, source = job
        item = Item(index, source if isinstance(source, str) else source.name)
        try:
            data = images.read_file(source) if isinstance(source, str) else source.read()
            item.sha256 = hashlib.sha256(data).hexdigest()
            for which, detector in enumerate(self.detectors):
                self.look_up(item, which, detector)
            if len(item.known) < len(self.detectors) or any(self.lacks_map(item, which) for which in self.mapped):
                self.decode(item, data)
        except ImageError as error:
            cause = str(error).removeprefix(f"{sources.printable(item.path)}: ")
            item.errors = {which: cause for which in range(len(self.detectors)) if which not in item.known}
        return item, item.held

    def look_up(self, item: Item, which: int, detector: LoadedDetector) -> None:
        """Take a row from the journal: of this file, or of the same content under another name."""
        if self.journal is None:
            return
        found = self.journal.find(item.sha256, detector.info.name, detector.tag, detector.weights_sha256, item.path)
        if found is None or found.raw is None:
            return
        item.known[which] = replace(found, path=item.path, **_judged(detector, found.raw))
        if item.known[which] != found:
            item.changed.add(which)

    def decode(self, item: Item, data: bytes) -> None:
        decoded = images.decode(data, name=item.path, sha256=item.sha256, max_pixels=self.options.max_pixels)
        width, height = decoded.image.size
        item.facts = {"width": width, "height": height, "format": decoded.format, "note": decoded.note}
        for which, detector in enumerate(self.detectors):
            if which in item.known:
                continue
            try:
                prepared = detector.prepare(decoded)
            except ZooError as error:
                item.errors[which] = str(error)
                continue
            item.inputs[which] = prepared
            item.held += getattr(prepared, "nbytes", 3 * width * height)
        if any(self.lacks_map(item, which) for which in self.mapped):
            item.decoded = decoded
            item.held += 3 * width * height

    def lacks_map(self, item: Item, which: int) -> bool:
        return which not in item.errors and not self.map_path(item, which).exists()

    def map_path(self, item: Item, which: int) -> Path:
        assert self.options.heatmaps is not None  # noqa: S101 (only asked for members of self.mapped)
        return heatmaps.target(self.options.heatmaps, item.path, item.sha256, self.detectors[which].name)

    def bytes_in(self, key: tuple[int, Any]) -> int:
        return sum(item.held for item in self.buckets[key])

    def forward(self, key: tuple[int, Any]) -> Iterator[Item]:
        """Score one bucket; yields the items that now have all their scores."""
        which = key[0]
        waiting = self.buckets.pop(key)
        for start in range(0, len(waiting), self.options.batch_size):
            chunk = waiting[start : start + self.options.batch_size]
            self.score_chunk(which, chunk)
            for item in chunk:
                del item.inputs[which]
                if not item.inputs:
                    yield self.release(item)

    def score_chunk(self, which: int, chunk: Sequence[Item]) -> None:
        try:
            raw = self.detectors[which].forward([item.inputs[which] for item in chunk])
        except ZooError as error:
            if len(chunk) > 1:  # one image must not take its companions with it
                for item in chunk:
                    self.score_chunk(which, [item])
            else:
                chunk[0].errors[which] = str(error)
            return
        for item, value in zip(chunk, raw.tolist(), strict=True):
            item.raw[which] = value

    def release(self, item: Item) -> Item:
        self.budget.release(item.held)
        item.held = 0
        return item

    def finish(self, item: Item) -> tuple[list[Prediction], list[Prediction]]:
        """An item's rows in the order of the detectors, and those of them that the journal lacks."""
        rows, fresh = [], []
        for which, detector in enumerate(self.detectors):
            row = item.known.get(which)
            if row is None:
                row = Prediction(
                    path=item.path,
                    sha256=item.sha256,
                    detector=detector.info.name,
                    weights=detector.tag,
                    weights_sha256=detector.weights_sha256,
                    core_version=__version__,
                    **item.facts,
                    **({"error": item.errors[which]} if which in item.errors else _judged(detector, item.raw[which])),
                )
            rows.append(row)
            if which not in item.known or which in item.changed:
                fresh.append(row)
        if item.decoded:
            self.draw(item.decoded, item, rows)
            item.decoded = None
        if self.options.fuse:
            rows.append(self.fuse(self.options.fuse, rows))
            fresh.append(rows[-1])
        return rows, fresh

    def draw(self, decoded: images.DecodedImage, item: Item, rows: list[Prediction]) -> None:
        """Write the overlays that are missing; a detector that fails at it leaves a note in its row."""
        for which in self.mapped:
            if self.lacks_map(item, which):
                detector = self.detectors[which]
                image = decoded.oriented(detector.orientation_policy)
                try:
                    heat = detector.map_of(image)
                except PluginError as error:
                    notes = [rows[which].note, f"no heatmap: {error}"]
                    rows[which] = replace(rows[which], note="; ".join(filter(None, notes)))
                    continue
                heatmaps.save(heatmaps.overlay(image, heat), self.map_path(item, which))

    def fuse(self, rule: str, rows: Sequence[Prediction]) -> Prediction:
        """The row of all detectors together; an error where one of them has no score."""
        missing = [row for row in rows if row.log_odds is None]
        changes: dict[str, Any]
        if missing:
            same = len({row.error for row in rows}) == 1
            cause = rows[0].error if same else f"no score to fuse from {', '.join(row.detector for row in missing)}"
            changes = dict.fromkeys(_JUDGED) | {"label": "", "error": cause}
        else:
            fused = fusion.RULES[rule]([row.log_odds for row in rows if row.log_odds is not None])
            thresholds = {detector.threshold for detector in self.detectors}
            # Detectors with thresholds of their own share none: the fused odds are then judged at even odds.
            threshold = thresholds.pop() if len(thresholds) == 1 else 0.0
            changes = {
                "log_odds": fused,
                "raw": fused,
                "probability": probability(fused),
                "label": verdict(fused, threshold, max(detector.inconclusive for detector in self.detectors)),
                "threshold": threshold,
                "calibrated": all(row.calibrated for row in rows),
            }
        return replace(
            rows[0],
            detector=f"fuse-{rule}",
            weights="+".join(detector.name for detector in self.detectors),
            weights_sha256="+".join(detector.weights_sha256[:12] for detector in self.detectors),
            **changes,
        )


_JUDGED = ("log_odds", "probability", "raw", "label", "threshold", "calibrated")


def _judged(detector: LoadedDetector, raw: float) -> dict[str, Any]:
    """The fields of a row that follow from a raw score."""
    judged = asdict(detector.judge(raw))
    return {name: judged[name] for name in _JUDGED}

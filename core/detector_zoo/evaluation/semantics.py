"""Does the score follow how a picture was made, or what it shows? `semantics`: patch shuffling and label inversion."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.audits import Audit, Cell, Table
from detector_zoo.evaluation.bootstrap import Figure, Resampling, auroc_of, drop_of, mean_of
from detector_zoo.evaluation.in_memory import Reader, Watch, abstentions, decided, log_odds, require_both
from detector_zoo.evaluation.intervals import Metric
from detector_zoo.evaluation.samples import Sample, source_of
from detector_zoo.loading import LoadedDetector

Floats = NDArray[np.float64]

__all__ = ["SIDES", "Inversion", "Semantics", "Shuffled", "contents_of", "semantics", "shuffle_patches"]

SIDES = (16, 32, 64)
"""Sides of the patches that are shuffled, pixels."""

_FIELDS = ("source", "kind", "split", "group", "generator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffled:
    """Scores after shuffling patches, against the same pictures unshuffled.

    Attributes:
        side: Of the patches, pixels.
        auroc: After shuffling, of the images on which the detector does not abstain then.
        drop: AUROC before minus after, paired, of those on which it abstains neither time.
        abstained: Images on which it abstains after shuffling.
        real: Mean change of the photographs' log-odds, abstentions included.
        generated: Mean change of the generated images'.
        absolute: Mean absolute change over all.
        correlation: Pearson's r of the scores before and after; NaN where either is constant.
    """

    side: int
    auroc: Metric
    drop: Metric
    abstained: int
    real: Metric
    generated: Metric
    absolute: Metric
    correlation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inversion:
    """What the score follows on a set with two contents, A and B.

    A detector of how pictures are made has all four label figures alike and both content figures near 0.5. One of
    content has ``a_against_b`` and ``b_against_a`` on both sides of 0.5.

    Attributes:
        contents: The two, A first.
        counts: Images by content and label, ``A real``, ``A generated``, ``B real``, ``B generated``.
        unknown: Images without a content, in no figure here. Neither are those on which the detector abstains, which
            the counts hold.
        label_in_a: AUROC of the label among images of A.
        label_in_b: Among images of B.
        label: Among images of equal content, pooled.
        a_against_b: Generated A against real B: what a detector trained on such a set would be tested on.
        b_against_a: Generated B against real A.
        gap: ``a_against_b`` minus ``b_against_a``, paired: 0 where content plays no part.
        content_in_real: AUROC of the content (B scores higher) among photographs.
        content_in_generated: Among generated images.
    """

    contents: tuple[str, str]
    counts: dict[str, int]
    unknown: int
    label_in_a: Metric
    label_in_b: Metric
    label: Metric
    a_against_b: Metric
    b_against_a: Metric
    gap: Metric
    content_in_real: Metric
    content_in_generated: Metric


@dataclass(frozen=True, kw_only=True)
class Semantics(Audit):
    """Result of `semantics`.

    Attributes:
        auroc: Unshuffled, of the pictures cropped to whole patches.
        shuffled: By side of the patches.
        inversion: None where no contents were given.
    """

    name: ClassVar[str] = "semantics"
    auroc: Metric
    shuffled: tuple[Shuffled, ...]
    inversion: Inversion | None

    def tables(self) -> list[Table]:
        """Shuffling, then label against content."""
        rows: list[tuple[Cell, ...]] = [("unshuffled", self.auroc, None, self.origin.inconclusive, *[None] * 4)]
        rows += [
            (f"patches of {s.side} px", s.auroc, s.drop, s.abstained, s.real, s.generated, s.absolute, s.correlation)
            for s in self.shuffled
        ]
        head = ("", "AUROC", "drop", "abstained", "change of log-odds, real", "generated", "absolute", "correlation")
        note = (
            "Shuffling takes the scene away and keeps each patch's pixels. It also makes edges between patches, so "
            "that a change alone does not tell which of the two a detector answers to; a score that stays follows "
            "no scene."
        )
        found = [Table("Patch shuffling", head, tuple(rows), note)]
        if self.inversion:
            found.append(_inversion_table(self.inversion))
        return [*found, self.origin.table()]


def _inversion_table(inversion: Inversion) -> Table:
    a, b = inversion.contents
    rows: tuple[tuple[Cell, ...], ...] = (
        (f"label, within {a}", inversion.label_in_a),
        (f"label, within {b}", inversion.label_in_b),
        ("label, within equal content", inversion.label),
        (f"generated {a} against real {b}", inversion.a_against_b),
        (f"generated {b} against real {a}", inversion.b_against_a),
        ("difference of these two", inversion.gap),
        (f"content ({b} higher), within real", inversion.content_in_real),
        (f"content ({b} higher), within generated", inversion.content_in_generated),
    )
    counts = ", ".join(f"{count} {cell}" for cell, count in inversion.counts.items())
    note = f"{counts}; {inversion.unknown} of unknown content. A score that follows content alone changes sides."
    return Table("Label against content: AUROC", ("", ""), rows, note)


def shuffle_patches(image: Image.Image, side: int, sha256: str) -> Image.Image:
    """Cut a picture into squares and put them together in random order.

    Args:
        image: RGB; what does not fill a square at the right and the bottom is cut off.
        side: Pixels.
        sha256: Of the file; with the side it seeds the order.

    Raises:
        ValueError: There are fewer than two squares.
    """
    columns, rows = image.width // side, image.height // side
    if columns * rows < 2:
        raise ValueError(f"{image.width} x {image.height} has fewer than two patches of {side} pixels")
    digest = hashlib.sha256(f"{sha256} {side}".encode()).digest()
    order = np.random.default_rng(np.frombuffer(digest, np.uint32)).permutation(rows * columns)
    pixels = np.asarray(image)[: rows * side, : columns * side]
    patches = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    shuffled = patches[order].reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return Image.fromarray(shuffled.reshape(rows * side, columns * side, 3))


def contents_of(samples: Sequence[Sample], column: str, place: str | Path) -> list[str]:
    """What each sample shows, "" where nobody says.

    Args:
        samples: Read from ``place``.
        column: ``source``, ``kind``, ``split``, ``group`` or ``generator`` of the samples; or ``folder``, the name
            of the folder that a file lies in; or another column of the CSV manifest.
        place: The data set: its manifest, or the folder with ``manifest.csv``.

    Raises:
        DatasetError: There is no such column, or the manifest cannot be read.
    """
    if column in _FIELDS:
        return [str(getattr(sample, column)) for sample in samples]
    if column == "folder":
        return [sample.path.parent.name for sample in samples]
    manifest = Path(place) / "manifest.csv" if Path(place).is_dir() else Path(place)
    if manifest.suffix.lower() != ".csv" or not manifest.is_file():
        known = ", ".join((*_FIELDS, "folder"))
        raise DatasetError(f"no content column {column!r}: {place} has no CSV manifest", hint=f"without: {known}")
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            names = reader.fieldnames or []
            if column not in names or "path" not in names:
                raise DatasetError(f"{manifest}: no column {column!r}", hint=f"it has {', '.join(names) or 'none'}")
            found = {(manifest.parent / row["path"]).resolve(): row[column] or "" for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{manifest}: cannot be read ({error})") from error
    return [found.get(sample.path.resolve(), "") for sample in samples]


def semantics(
    samples: Sequence[Sample],
    detector: LoadedDetector,
    *,
    contents: Sequence[str] | None = None,
    pair: tuple[str, str] | None = None,
    sides: Sequence[int] = SIDES,
    equalise: bool = True,
    data: str = "",
    seed: int = 0,
    resamples: int = 2000,
    skip_bad: bool = False,
    watch: Watch = iter,
) -> Semantics:
    """Score pictures with their patches shuffled, and ask whether scores follow label or content.

    Args:
        samples: Of both classes.
        detector: Scores every picture unshuffled, and shuffled at every side.
        contents: (N,), what each sample shows, as from `contents_of`; None leaves that part out.
        pair: The two contents to compare; None where there are just two.
        sides: Of the patches. Pictures are cropped to whole patches of all of them first.
        equalise: Give both classes one codec history and one distribution of sizes first (`equalise_file`), so that
            no format is taken for a skill.
        data: What to call the data set.
        seed: Of the bootstrap. Patches are shuffled by the files' hashes alone.
        resamples: Of the bootstrap.
        skip_bad: Record unreadable files and go on.
        watch: Sees the samples pass.

    Raises:
        DatasetError: A class is missing, there are not just two contents, or no picture is large enough.
        ImageError: A file cannot be read, and bad ones are not skipped.
        ValueError: A side is below 1.
    """
    if not sides or min(sides) < 1:
        raise ValueError("sides of patches are at least 1 pixel")
    require_both(samples)
    chosen = _pair(contents, pair) if contents is not None else None
    reader = Reader(samples, skip_bad, watch, equalise)
    unit = lcm(*sides)

    def pictures() -> Iterator[tuple[tuple[int, int], Image.Image]]:
        for item in reader:
            image = reader.picture(item, detector.orientation_policy)
            width, height = (side // unit * unit for side in image.size)
            if width * height < 2 * unit * unit:
                reader.fail(item.index, f"{image.width} x {image.height} is too small to shuffle patches of {unit}")
                continue
            whole = image.crop((0, 0, width, height))
            yield (0, item.index), whole
            for row, side in enumerate(sides, 1):
                yield (row, item.index), shuffle_patches(whole, side, item.decoded.sha256)

    scores, errors = log_odds(detector, pictures(), (len(sides) + 1, len(samples)))
    for index, cause in {index: cause for (_, index), cause in errors.items()}.items():
        reader.fail(index, cause)
    used = sorted(reader.hashes)
    kept = [samples[index] for index in used]
    if len({sample.generated for sample in kept}) < 2:
        raise DatasetError("no image of one class could be scored", hint=next(iter(reader.failures), None))
    labels, scores = np.array([sample.generated for sample in kept]), scores[:, used]
    resampling = Resampling(labels, [source_of(sample) for sample in kept], resamples=resamples, seed=seed)
    inversion = None
    if chosen is not None and contents is not None:
        inversion = _inversion(
            labels, decided(detector, scores[0]), [contents[index] for index in used], chosen, resampling
        )
    shuffled = [
        _shuffled(side, labels, scores[0], scores[row], detector, resampling) for row, side in enumerate(sides, 1)
    ]
    return Semantics(
        origin=reader.origin(detector, data, seed, resamples, inconclusive=abstentions(detector, scores[0])),
        auroc=resampling.intervals(auroc_of(labels, decided(detector, scores[0])))[0],
        shuffled=tuple(shuffled),
        inversion=inversion,
    )


def _pair(contents: Sequence[str], pair: tuple[str, str] | None) -> tuple[str, str]:
    known = sorted(set(contents) - {""})
    if pair is None:
        if len(known) != 2:
            raise DatasetError(
                f"label inversion compares two contents, the column has {len(known)}: {', '.join(known[:8])}",
                hint="name two: --pair A,B",
            )
        return known[0], known[1]
    for name in pair:
        if name not in known:
            raise DatasetError(f"no image of content {name!r}", hint=f"there are {', '.join(known[:8])}")
    return pair


def _shuffled(
    side: int,
    labels: NDArray[np.bool_],
    before: Floats,
    after: Floats,
    detector: LoadedDetector,
    resampling: Resampling,
) -> Shuffled:
    change = after - before
    area, drop, real, generated, absolute = resampling.intervals(
        auroc_of(labels, decided(detector, after)),
        drop_of(labels, decided(detector, before), decided(detector, after)),
        mean_of(change, ~labels),
        mean_of(change, labels),
        mean_of(np.abs(change)),
    )
    constant = np.ptp(before) == 0 or np.ptp(after) == 0
    return Shuffled(
        side=side,
        auroc=area,
        drop=drop,
        abstained=abstentions(detector, after),
        real=real,
        generated=generated,
        absolute=absolute,
        correlation=float("nan") if constant else float(np.corrcoef(before, after)[0, 1]),
    )


def _inversion(
    labels: NDArray[np.bool_], scores: Floats, contents: Sequence[str], pair: tuple[str, str], resampling: Resampling
) -> Inversion:
    shown = np.array(contents)
    is_a, is_b = shown == pair[0], shown == pair[1]

    def among(chosen: NDArray[np.bool_], positive: NDArray[np.bool_], within: NDArray[np.bool_] | None) -> Figure:
        return auroc_of(positive, np.where(chosen, scores, np.nan), within)

    either = is_a | is_b
    first = among((is_a & labels) | (is_b & ~labels), labels, None)
    second = among((is_b & labels) | (is_a & ~labels), labels, None)
    figures = resampling.intervals(
        among(is_a, labels, None),
        among(is_b, labels, None),
        among(either, labels, is_b),
        first,
        second,
        first - second,
        among(either & ~labels, is_b, None),
        among(either & labels, is_b, None),
    )
    names = (
        "label_in_a",
        "label_in_b",
        "label",
        "a_against_b",
        "b_against_a",
        "gap",
        "content_in_real",
        "content_in_generated",
    )
    counts = {
        f"{name} {kind}": int((chosen & of).sum())
        for name, chosen in zip(pair, (is_a, is_b), strict=True)
        for kind, of in (("real", ~labels), ("generated", labels))
    }
    return Inversion(
        contents=pair,
        counts=counts,
        unknown=int((~either).sum()),
        **dict(zip(names, figures, strict=True)),
    )

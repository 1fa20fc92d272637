"""What a data set holds, and what in it would make a measurement lie: `check`.

A leak is one content under two labels, or one content, one picture (perceptual hash) or one group in two splits. One
picture under two labels is no leak: an edit beside its original, or a reconstruction, is how aligned pairs look; it
is counted. A share of codecs or sizes that differs between the classes is no leak either, but a shortcut: see
`zoo audit format`, which measures it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector_zoo import images
from detector_zoo.errors import ImageError
from detector_zoo.evaluation.copies import near, perceptual_hash
from detector_zoo.evaluation.datasets import Bad, DataSet
from detector_zoo.evaluation.samples import Sample

__all__ = ["Check", "Pair", "check"]

Watch = Callable[[Iterable[Sample]], Iterable[Sample]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that are one.

    Attributes:
        kind: ``content`` (same bytes), ``picture`` (perceptual hash), ``group`` (the set says so).
        first: Path within the set.
        second: Path within the set.
        across: ``classes``, ``splits``, ``classes and splits`` or "" for neither.
        leak: Whether it makes a measurement lie.
    """

    kind: str
    first: str
    second: str
    across: str
    leak: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What `check` found; counts are by class and split, ``(label, split)``.

    Attributes:
        images: Number by class and split.
        formats: Number of each format by class.
        sizes: Of the images' shorter sides in pixels, by class: smallest, quartiles, largest.
        same_size: Share of a class's images that have its commonest size.
        generators: Number of images of each.
        bad: Images that cannot be used.
        pairs: Images that are one.
    """

    images: dict[tuple[str, str], int]
    formats: dict[str, dict[str, int]]
    sizes: dict[str, tuple[int, int, int, int, int]]
    same_size: dict[str, tuple[str, float]]
    generators: dict[str, int]
    bad: list[Bad]
    pairs: list[Pair]

    @property
    def leaks(self) -> list[Pair]:
        """The pairs that make a measurement lie."""
        return [pair for pair in self.pairs if pair.leak]

    def to_dict(self) -> dict[str, Any]:
        """JSON's types; counts by class and split become rows."""
        counts = [{"label": label, "split": split, "images": n} for (label, split), n in self.images.items()]
        return {**asdict(self), "images": counts, "leaks": len(self.leaks)}


def check(data: DataSet, *, watch: Watch = iter) -> Check:
    """Decode every image of a set and compare all with all.

    Args:
        data: As `datasets.collect` read it, conflicts included.
        watch: Sees the samples pass.

    Raises:
        ZooError: The library for perceptual hashes is not installed.
    """
    bad = list(data.bad)
    kept: list[Sample] = []
    hashes: list[int] = []
    formats: dict[str, Counter[str]] = {}
    sizes: dict[str, list[tuple[int, int]]] = {}
    phash = perceptual_hash()
    for sample in watch(data.samples):
        try:
            decoded = images.decode(sample.path)
        except ImageError as error:
            bad.append(Bad(data.name(sample), str(error)))
            continue
        kept.append(sample)
        hashes.append(phash(decoded.oriented("apply")))
        formats.setdefault(sample.label, Counter())[decoded.format] += 1
        sizes.setdefault(sample.label, []).append(decoded.image.size)
    return Check(
        images=dict(sorted(Counter((s.label, s.split) for s in kept).items())),
        formats={label: dict(counts.most_common()) for label, counts in sorted(formats.items())},
        sizes={label: _quartiles(found) for label, found in sorted(sizes.items())},
        same_size={label: _commonest(found) for label, found in sorted(sizes.items())},
        generators=dict(Counter(s.generator for s in kept if s.generated).most_common()),
        bad=bad,
        pairs=list(_pairs(kept, np.array(hashes, np.uint64), [data.name(sample) for sample in kept])),
    )


def _quartiles(sizes: Sequence[tuple[int, int]]) -> tuple[int, int, int, int, int]:
    low, first, middle, third, high = (int(q) for q in np.percentile([min(s) for s in sizes], (0, 25, 50, 75, 100)))
    return low, first, middle, third, high


def _commonest(sizes: Sequence[tuple[int, int]]) -> tuple[str, float]:
    (size, count) = Counter(sizes).most_common(1)[0]
    return f"{size[0]}x{size[1]}", count / len(sizes)


def _pairs(samples: Sequence[Sample], hashes: NDArray[np.uint64], names: Sequence[str]) -> Iterator[Pair]:
    for i, j in near(hashes):
        one, other = samples[i], samples[j]
        content = one.sha256 == other.sha256
        classes, splits = one.label != other.label, one.split != other.split
        yield Pair(
            "content" if content else "picture",
            names[i],
            names[j],
            _across(classes, splits),
            splits or (content and classes),
        )
    first: dict[str, int] = {}
    for j, sample in enumerate(samples):
        i = first.setdefault(sample.group, j) if sample.group else j
        if samples[i].split != sample.split:
            yield Pair("group", names[i], names[j], _across(samples[i].label != sample.label, True), True)


def _across(classes: bool, splits: bool) -> str:
    return " and ".join(word for word, there in (("classes", classes), ("splits", splits)) if there)

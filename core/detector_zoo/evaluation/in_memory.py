"""Scores of pictures that exist only in memory, and the files that they are made from, a few at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector_zoo import images
from detector_zoo.errors import DatasetError, ImageError, ZooError
from detector_zoo.evaluation.audits import Origin
from detector_zoo.evaluation.datasets import DataSet
from detector_zoo.evaluation.equalise import equalise_file
from detector_zoo.evaluation.provenance import environment, git_state
from detector_zoo.evaluation.samples import Sample
from detector_zoo.loading import LoadedDetector

__all__ = ["Loaded", "Reader", "abstentions", "as_decoded", "decided", "log_odds", "require_both", "score", "subset"]

Key = TypeVar("Key")
Watch = Callable[[Iterable[Any]], Iterable[Any]]
"""Sees the samples pass; `zoo audit` draws its progress bar so."""

_WAITING_BATCHES, _WAITING_BYTES = 4, 256 * 2**20
"""Prepared pictures that wait for companions of their shape, at most."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One file of a data set, read."""

    index: int
    sample: Sample
    data: bytes
    decoded: images.DecodedImage


@dataclass(slots=True)
class Reader:
    """Reads samples one after another and keeps account of them.

    Attributes:
        samples: What to read.
        skip_bad: Record an unreadable file and go on, instead of stopping.
        watch: Sees the samples pass.
        equalise: Whether `picture` gives equalised images.
        failures: One line for each that could not be used.
    """

    samples: Sequence[Sample]
    skip_bad: bool = False
    watch: Watch = iter
    equalise: bool = False
    failures: list[str] = field(default_factory=list)
    hashes: dict[int, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Loaded]:
        """The readable samples, decoded.

        Raises:
            ImageError: A file cannot be read, and bad ones are not to be skipped.
        """
        for index, sample in self.watch(list(enumerate(self.samples))):
            try:
                data = images.read_file(sample.path)
                digest = hashlib.sha256(data).hexdigest()
                decoded = images.decode(data, name=str(sample.path), sha256=digest)
            except ImageError as error:
                if not self.skip_bad:
                    raise ImageError(str(error), hint=error.hint or "--skip-bad records it and goes on") from error
                self.failures.append(str(error))
                continue
            self.hashes[index] = digest
            yield Loaded(index, sample, data, decoded)

    def picture(self, item: Loaded, policy: str) -> Image.Image:
        """The image to work on: equalised, or as it is, turned by the detector's policy on EXIF orientation."""
        return equalise_file(item.sample.path) if self.equalise else item.decoded.oriented(policy)

    def fail(self, item: int, cause: str) -> None:
        """Record that a sample cannot be used after all."""
        self.failures.append(f"{self.samples[item].path}: {cause}")
        self.leave_out(item)

    def leave_out(self, item: int) -> None:
        """Count a sample as not used, without its being a failure."""
        self.hashes.pop(item, None)

    def origin(self, detector: LoadedDetector | None, data: str, seed: int, resamples: int, **counts: int) -> Origin:
        """What was used so far."""
        used = [replace(self.samples[index], sha256=sha256) for index, sha256 in self.hashes.items()]
        return Origin(
            detector=detector.name if detector else "",
            weights_sha256=detector.weights_sha256 if detector else "",
            threshold=detector.threshold if detector else 0.0,
            data=data,
            data_sha256=DataSet(data, "", "", used).sha256,
            real=sum(not sample.generated for sample in used),
            generated=sum(sample.generated for sample in used),
            failures=tuple(self.failures),
            seed=seed,
            resamples=resamples,
            versions=environment(),
            git=git_state(),
            equalised=self.equalise,
            **counts,
        )


def as_decoded(image: Image.Image) -> images.DecodedImage:
    """A picture in memory, upright as it is, for `LoadedDetector.prepare`."""
    return images.DecodedImage(image, "", "array", 1, "")


def score(
    detector: LoadedDetector, pictures: Iterable[tuple[Key, Image.Image]], batch_size: int = 16
) -> Iterator[tuple[Key, float | str]]:
    """Score pictures, batched by shape; memory does not grow with their number.

    Args:
        detector: Sees each picture as it is: orientation was dealt with when it was made.
        pictures: Each with a key of the caller's, RGB.
        batch_size: Of one forward pass.

    Yields:
        Key, and log-odds or why there is none; in the order in which they come.
    """
    waiting: dict[Any, list[tuple[Key, Any]]] = {}
    held: dict[Any, int] = {}
    for key, picture in pictures:
        try:
            prepared = detector.prepare(as_decoded(picture))
        except ZooError as error:
            yield key, str(error)
            continue
        shape = getattr(prepared, "shape", None)
        waiting.setdefault(shape, []).append((key, prepared))
        held[shape] = held.get(shape, 0) + getattr(prepared, "nbytes", 3 * picture.width * picture.height)
        full = sum(held.values()) > _WAITING_BYTES or sum(map(len, waiting.values())) >= _WAITING_BATCHES * batch_size
        if full or len(waiting[shape]) >= batch_size:
            largest = max(held, key=held.__getitem__) if full else shape
            del held[largest]
            yield from _forward(detector, waiting.pop(largest), batch_size)
    for members in waiting.values():
        yield from _forward(detector, members, batch_size)


def _forward(
    detector: LoadedDetector, members: Sequence[tuple[Key, Any]], batch_size: int
) -> Iterator[tuple[Key, float | str]]:
    for start in range(0, len(members), batch_size):
        chunk = members[start : start + batch_size]
        try:
            raw = detector.forward([prepared for _, prepared in chunk])
        except ZooError as error:
            if len(chunk) == 1:
                yield chunk[0][0], str(error)
            else:  # one picture must not take its companions with it
                yield from _forward(detector, chunk, 1)
            continue
        for (key, _), value in zip(chunk, raw.tolist(), strict=True):
            yield key, detector.judge(value).log_odds


def abstentions(detector: LoadedDetector, scores: NDArray[np.float64]) -> int:
    """Of log-odds, NaN apart, how many the detector calls inconclusive."""
    return int((np.abs(scores - detector.threshold) < detector.inconclusive).sum())


def decided(detector: LoadedDetector, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds, NaN where the detector abstains: what figures of right and wrong are made of."""
    return np.where(np.abs(scores - detector.threshold) < detector.inconclusive, np.nan, scores)


def log_odds(
    detector: LoadedDetector, pictures: Iterable[tuple[tuple[int, int], Image.Image]], shape: tuple[int, int]
) -> tuple[NDArray[np.float64], dict[tuple[int, int], str]]:
    """Score pictures whose keys are places in a matrix: log-odds, NaN where there are none, and why."""
    scores = np.full(shape, np.nan)
    errors: dict[tuple[int, int], str] = {}
    for key, value in score(detector, pictures):
        if isinstance(value, str):
            errors[key] = value
        else:
            scores[key] = value
    return scores, errors


def subset(samples: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most ``limit`` samples a class, in their order; drawn by the hash of seed and file name."""
    if limit is None:
        return list(samples)
    places = sorted(
        range(len(samples)), key=lambda i: (hashlib.sha256(f"{seed} {samples[i].path.name}".encode()).digest(), i)
    )
    kept = [[i for i in places if samples[i].generated is kind][:limit] for kind in (False, True)]
    return [samples[i] for i in sorted(kept[0] + kept[1])]


def require_both(samples: Sequence[Sample]) -> None:
    """Refuse a set on which classes cannot be compared.

    Raises:
        DatasetError: It lacks real or generated images.
    """
    for wanted, kind in ((False, "real"), (True, "generated")):
        if not any(sample.generated is wanted for sample in samples):
            raise DatasetError(f"the data set has no {kind} image; both classes are needed")

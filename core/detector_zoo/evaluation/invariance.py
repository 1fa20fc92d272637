"""What changes a score that should not: batches, devices, decoders, a pixel, a re-save. `invariance`."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector_zoo import images
from detector_zoo.detector import Score
from detector_zoo.errors import DatasetError, ZooError
from detector_zoo.evaluation.audits import Audit, Table
from detector_zoo.evaluation.in_memory import Loaded, Reader, Watch, as_decoded
from detector_zoo.evaluation.samples import Sample
from detector_zoo.loading import LoadedDetector

__all__ = ["BATCHES", "Change", "Invariance", "invariance"]

BATCHES = (2, 8)
"""Sizes of the batches that an image is scored in, as their last."""

_FLIPS = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
# How to turn the stored pixels so that the tag makes them upright again.
_STORED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How one variation moves scores.

    Attributes:
        variation: What was done.
        images: That it could be done to.
        mean: Mean absolute change, log-odds.
        largest: Largest absolute change, log-odds.
        flips: Images whose verdict is another.
        worst: The image with the largest change, "" where none changed.
    """

    variation: str
    images: int
    mean: float
    largest: float
    flips: int
    worst: str


@dataclass(frozen=True, kw_only=True)
class Invariance(Audit):
    """Result of `invariance`.

    Attributes:
        images: That were scored.
        changes: The largest change first.
        unmeasured: Variations that could not be tried on any image, and why.
        orientation: ``apply`` or ``ignore``: what the detector does with EXIF orientation.
    """

    name: ClassVar[str] = "invariance"
    images: int
    changes: tuple[Change, ...]
    unmeasured: Mapping[str, str]
    orientation: str

    def tables(self) -> list[Table]:
        """Changes, the largest first."""
        head = ("variation", "images", "largest change", "mean", "other verdict", "worst image")
        rows = tuple((c.variation, c.images, c.largest, c.mean, c.flips, c.worst) for c in self.changes)
        note = (
            f"Absolute changes of the log-odds over {self.images} images; a batch and a lossless re-save should change "
            "nothing, a device, a decoder and a pixel little."
        )
        if self.orientation == "ignore":
            note += " This detector ignores EXIF orientation, as its authors did: there it sees the turned picture."
        if self.unmeasured:
            note += " Not measured: " + "; ".join(f"{name} ({why})" for name, why in self.unmeasured.items()) + "."
        return [Table("Invariance", head, rows, note), self.origin.table()]


def invariance(
    paths: Sequence[str | Path],
    detector: LoadedDetector,
    *,
    others: Mapping[str, LoadedDetector] | None = None,
    batches: Sequence[int] = BATCHES,
    data: str = "",
    skip_bad: bool = False,
    watch: Watch = iter,
) -> Invariance:
    """Score every image in ways that should make no difference.

    In a batch with its own mirror images; on other devices; by other decoders (torchvision, OpenCV, where they are
    installed); without its outermost row or column; saved as PNG; turned, with the EXIF orientation that turns it
    back.

    Args:
        paths: Images; no labels are asked for.
        detector: On its usual device.
        others: The same detector on other devices, by their names.
        batches: Sizes of batches.
        data: What to call the images.
        skip_bad: Record unreadable files and go on.
        watch: Sees the images pass.

    Raises:
        DatasetError: No image could be scored.
        ImageError: A file cannot be read, and bad ones are not skipped.
        ValueError: A batch is smaller than 2.
    """
    if any(size < 2 for size in batches):
        raise ValueError("a batch of fewer than 2 images is no batch")
    # The label is never looked at.
    reader = Reader([Sample(path=Path(path), label="real") for path in paths], skip_bad, watch)
    moves: dict[str, list[tuple[float, bool, str]]] = {}
    reasons = {} if others else {"device": "no other device was given"}
    for item in reader:
        try:
            known = _references(detector, item)
        except ZooError as error:
            reader.fail(item.index, str(error))
            continue
        for name, reference, variation in _variations(item, detector, others or {}, batches):
            try:
                found = variation()
            except (_Impossible, ZooError) as error:
                reasons.setdefault(name, str(error))
                continue
            was = known[reference]
            move = abs(found.log_odds - was.log_odds), found.label != was.label, str(item.sample.path)
            moves.setdefault(name, []).append(move)
    if not moves:
        raise DatasetError("no image could be scored", hint=next(iter(reader.failures), None))
    changes = [_change(name, found) for name, found in moves.items()]
    origin = reader.origin(detector, data, 0, 0)
    return Invariance(
        origin=replace(origin, real=0),
        images=origin.real,
        changes=tuple(sorted(changes, key=lambda change: (-change.largest, change.variation))),
        unmeasured={name: why for name, why in reasons.items() if name not in moves},
        orientation=detector.orientation_policy,
    )


class _Impossible(Exception):  # noqa: N818  never leaves this module
    """Why a variation cannot be done to an image."""


def _judge(detector: LoadedDetector, prepared: Sequence[Any]) -> Score:
    """The verdict on the last of a batch."""
    return detector.judge(float(detector.forward(prepared)[-1]))


def _references(detector: LoadedDetector, item: Loaded) -> dict[str, Score]:
    """What variations are compared with: the file as it is, and the same picture upright without a tag."""
    plain = _judge(detector, [detector.prepare(item.decoded)])
    if item.decoded.orientation == 1:
        return {"plain": plain, "upright": plain}
    upright = as_decoded(item.decoded.oriented("apply"))
    return {"plain": plain, "upright": _judge(detector, [detector.prepare(upright)])}


def _variations(
    item: Loaded, detector: LoadedDetector, others: Mapping[str, LoadedDetector], batches: Sequence[int]
) -> Iterator[tuple[str, str, Callable[[], Score]]]:
    """Name, reference, and how to get the verdict."""
    decoded = item.decoded
    seen = decoded.oriented(detector.orientation_policy)

    def judged(
        make: Callable[..., images.DecodedImage], *arguments: Any, by: LoadedDetector = detector
    ) -> Callable[[], Score]:
        return lambda: _judge(by, [by.prepare(make(*arguments))])

    def in_batch(size: int) -> Score:
        companions = [as_decoded(seen.transpose(_FLIPS[i % len(_FLIPS)])) for i in range(size - 1)]
        return _judge(detector, [detector.prepare(picture) for picture in (*companions, as_decoded(seen))])

    for size in batches:
        yield f"batch of {size}", "plain", partial(in_batch, size)
    for name, other in others.items():
        yield f"device {name}", "plain", judged(lambda: decoded, by=other)
    for name, decoder in _DECODERS.items():
        yield f"decoder {name}", "plain", judged(_decoded_by, decoder, item)
    width, height = seen.size
    for name, box in (
        ("left", (1, 0, width, height)),
        ("top", (0, 1, width, height)),
        ("right", (0, 0, width - 1, height)),
        ("bottom", (0, 0, width, height - 1)),
    ):
        yield f"without the {name} line of pixels", "plain", judged(_cut, seen, box)
    yield "saved as PNG", "plain", judged(_tagged, seen, 1)
    upright = decoded.oriented("apply")
    for tag, turn in _STORED.items():
        yield f"EXIF orientation {tag}", "upright", judged(_tagged, upright.transpose(turn), tag)


def _cut(image: Image.Image, box: tuple[int, int, int, int]) -> images.DecodedImage:
    if min(image.size) < 2:
        raise _Impossible("only one pixel wide or high")
    return as_decoded(image.crop(box))


def _tagged(image: Image.Image, orientation: int) -> images.DecodedImage:
    return images.decode(_png(image, orientation))


def _png(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    if orientation != 1:
        exif[_ORIENTATION] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif, compress_level=1)
    return buffer.getvalue()


def _decoded_by(decoder: Callable[[bytes], NDArray[np.uint8] | None], item: Loaded) -> images.DecodedImage:
    try:
        pixels = decoder(item.data)
    except ImportError as error:
        raise _Impossible(f"{error.name} is not installed, or lacks it") from error
    except RuntimeError as error:  # torchvision's answer to a format that it does not know
        raise _Impossible("it does not read this format") from error
    if pixels is None:
        raise _Impossible("it does not read this format")
    return replace(item.decoded, image=Image.fromarray(pixels))


def _torchvision(data: bytes) -> NDArray[np.uint8] | None:
    import torch
    from torchvision.io import ImageReadMode, decode_image

    with warnings.catch_warnings():
        # torchvision 0.29 announces that this will go away; then the import above fails, and the result tells it.
        warnings.simplefilter("ignore", DeprecationWarning)
        pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def _opencv(data: bytes) -> NDArray[np.uint8] | None:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else np.ascontiguousarray(pixels[..., ::-1])


_DECODERS = {"torchvision": _torchvision, "OpenCV": _opencv}


def _change(name: str, moves: Sequence[tuple[float, bool, str]]) -> Change:
    largest, _, worst = max(moves)
    return Change(
        variation=name,
        images=len(moves),
        mean=float(np.mean([move for move, *_ in moves])),
        largest=largest,
        flips=sum(flipped for _, flipped, _ in moves),
        worst=worst if largest else "",
    )

"""Exchanged images from (original, inpainted, mask) triples, and the soft-edged variant that serves as a control."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.exchange import exchange, soft_exchange
from detector_zoo.evaluation.samples import Sample
from detector_zoo.images import decode
from detector_zoo.training.manifest_out import Done, OutputFolder, Picture, Row

__all__ = ["EXCHANGED", "FEATHERS", "blend", "exchange_triples", "stem", "triples"]

EXCHANGED = "-exchange"
"""Ends the kind of an image in which the original stands again outside the mask."""

FEATHERS = (0, 5)
"""Sides of the Gaussian that softens a mask's edge, pixels; 0 leaves it hard."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def blend(
    original: NDArray[np.uint8], edited: NDArray[np.uint8], mask: NDArray[np.bool_], feather: int
) -> NDArray[np.uint8]:
    """Exchange, with a hard edge or with one softened by a Gaussian, alpha * edited + (1 - alpha) * original.

    Args:
        original: (H, W, 3).
        edited: (H, W, 3).
        mask: (H, W), true where the edit is.
        feather: 0: outside the mask the original, bit for bit; 5: the same further than two pixels from the mask.

    Raises:
        ValueError: The sizes differ, or ``feather`` is none of `FEATHERS`.
    """
    if feather not in FEATHERS:
        raise ValueError(f"feather {feather} is none of {FEATHERS}")
    return soft_exchange(original, edited, mask) if feather else exchange(original, edited, mask)


def triples(samples: Iterable[Sample]) -> list[Sample]:
    """The generated images that have a mask and an original and are not exchanged yet, ordered by `stem`.

    Raises:
        DatasetError: There is none.
    """
    found = {
        stem(sample): sample
        for sample in samples
        if sample.generated and sample.original and sample.mask and not sample.kind.endswith(EXCHANGED)
    }
    if not found:
        raise DatasetError(
            "no (original, inpainted, mask) triple in the set",
            hint="folders original/, inpainted/ and mask/ with equal stems, or a manifest with columns path, "
            "label, original and mask",
        )
    return [found[name] for name in sorted(found)]


def exchange_triples(
    samples: Iterable[Sample],
    out: Path,
    *,
    feather: int = 0,
    generator: str = "",
    track: Callable[[Sequence[Sample]], Iterable[Sample]] = iter,
    bad: Callable[[str], None] | None = None,
    workers: int = 1,
) -> Done:
    """Write ``original/``, ``inpainted/``, ``exchanged/`` and ``mask/<stem>-<sha256>.png``, and their manifest.

    The first three are rows of it; originals are labelled real, the others generated, of kind ``<kind>`` and
    ``<kind>-exchange``. What an earlier run with the same settings left in ``out`` is kept.

    Args:
        samples: Of a data set, each with its sha256; `triples` are taken.
        out: See `OutputFolder`.
        feather: See `blend`.
        generator: Name of the network for samples that have none.
        track: Wraps the triples, for a progress bar.
        bad: Told in one line which triple is left out; with None that is an error.
        workers: Threads; they change no result.

    Raises:
        DatasetError: Sizes differ, a mask has values besides black and white or is all of one, or ``out`` cannot be
            used.
        ImageError: A file cannot be read.
    """
    found = triples(samples)
    with OutputFolder(out, {"command": "exchange", "feather": feather, "generator": generator}) as folder:
        jobs = ((stem(triple), partial(_exchanged, triple, feather, generator)) for triple in track(found))
        return folder.run(jobs, bad, workers)


def stem(sample: Sample) -> str:
    """What the files of a triple are called: the name of the inpainted one, and a piece of its hash."""
    return f"{sample.path.stem}-{sample.sha256[:8]}"


def _exchanged(triple: Sample, feather: int, generator: str) -> list[Picture]:
    if triple.original is None or triple.mask is None:
        raise ValueError(f"{triple.path} is no triple")
    photograph = decode(triple.original)
    original, inpainted = (np.asarray(x.oriented("apply")) for x in (photograph, decode(triple.path)))
    mask = _mask(triple.mask)
    for path, found in ((triple.path, inpainted), (triple.mask, mask)):
        if found.shape[:2] != original.shape[:2]:
            height, width = original.shape[:2]
            raise DatasetError(
                f"{path}: {found.shape[1]} x {found.shape[0]} pixels, but {triple.original} has {width} x {height}"
            )
    paths = {part: f"{part}/{stem(triple)}.png" for part in ("original", "inpainted", "mask", "exchanged")}
    # A group that is no hash is a name within its set, which another set may use too.
    group = triple.group if _SHA256.fullmatch(triple.group) else photograph.sha256
    known = {"group": group, "split": triple.split, "source": triple.source}
    made = known | {"generator": triple.generator or generator, "original": paths["original"], "mask": paths["mask"]}
    kind, note = triple.kind or "inpaint", f"area={mask.mean():.3f}"
    return [
        Picture(paths["original"], original, Row(label="real", kind="photo", **known)),
        Picture(paths["mask"], mask),
        Picture(paths["inpainted"], inpainted, Row(label="generated", kind=kind, note=note, **made)),
        Picture(
            paths["exchanged"],
            blend(original, inpainted, mask, feather),
            Row(label="generated", kind=kind + EXCHANGED, note=f"{note}; feather={feather}", **made),
        ),
    ]


def _mask(path: Path) -> NDArray[np.bool_]:
    pixels = np.asarray(decode(path).oriented("apply"))
    values = np.unique(pixels)
    if not set(values.tolist()) <= {0, 255} or (pixels != pixels[..., :1]).any():
        between = values[(values > 0) & (values < 255)]
        what = f"has values such as {between[0]}" if len(between) else "has colours"
        raise DatasetError(f"{path}: not a binary mask, it {what}", hint="masks are black and white, saved lossless")
    if len(values) < 2:
        raise DatasetError(f"{path}: the mask is all {'white' if values[0] else 'black'}")
    return pixels[..., 0] > 0

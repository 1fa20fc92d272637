"""The pictures that are scored: equalised, cut alike within a pair, laundered."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from benchmarks.photographs import photograph
from PIL import Image

from detector_zoo.evaluation import equalise
from detector_zoo.evaluation.equalised import copy_of
from detector_zoo.evaluation.perturbations import Perturbation
from detector_zoo.evaluation.samples import Sample

EDITED = "-exchange"
"""Ends the kind of a local edit: outside the mask it has the photograph's own pixels."""
CONTROL = "splice"
"""Kind of an edit with nothing generated in it."""


def whole(samples: Sequence[Sample]) -> list[Sample]:
    """Samples of whole pictures, each as the equalised copy that `zoo eval` scores."""
    return _each(lambda s: replace(s, path=copy_of(s)), samples)


def aligned(samples: Sequence[Sample], folder: Path) -> list[Sample]:
    """Samples equalised with one draw for all of a photograph, masks cut with them, as files in a folder.

    Two pictures of a photograph then differ in what was done to them and in nothing else: same cut, same codecs.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def copy(sample: Sample) -> Sample:
        path, mask = folder / f"{sample.sha256}.jpg", folder / f"{sample.sha256}.mask.png"
        seed = np.frombuffer(hashlib.sha256(photograph(sample).encode()).digest(), np.uint32)
        if not path.exists():
            with Image.open(sample.path) as image:
                lossless = image.format != "JPEG"
                picture = image.convert("RGB")
            cut = equalise.equalise(
                picture, has_jpeg_history=not lossless, rng=np.random.default_rng(seed), final_quality=None
            )
            buffer = io.BytesIO()
            cut.save(buffer, "JPEG", quality=equalise.FINAL_QUALITY, subsampling=2)
            _write(path, buffer)
        if sample.mask is not None and not mask.exists():
            with Image.open(sample.mask) as image:
                area = image.convert("RGB")
            # The history of codecs has a stream of its own: without it the cut is the same.
            cut = equalise.equalise(area, has_jpeg_history=True, rng=np.random.default_rng(seed), final_quality=None)
            buffer = io.BytesIO()
            cut.convert("L").save(buffer, "PNG")
            _write(mask, buffer)
        return replace(sample, path=path, mask=mask if sample.mask is not None else None)

    return _each(copy, samples)


def laundered(samples: Sequence[Sample], perturbation: Perturbation, folder: Path) -> list[Sample]:
    """The same pictures after a perturbation, as lossless files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)

    def copy(sample: Sample) -> Sample:
        path = folder / f"{sample.sha256}.png"
        if not path.exists():
            with Image.open(sample.path) as image:
                picture = perturbation(image.convert("RGB"), sample.sha256)
            buffer = io.BytesIO()
            picture.save(buffer, "PNG", compress_level=1)
            _write(path, buffer)
        return replace(sample, path=path)

    return _each(copy, samples)


def _each(copy: Callable[[Sample], Sample], samples: Sequence[Sample]) -> list[Sample]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(copy, samples))


def _write(path: Path, buffer: io.BytesIO) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(buffer.getvalue())
    partial.replace(path)

"""Equalised copies of a data set's images, as files that the pipeline can score.

Each copy is the JPEG file that `equalise` ends in, so its pixels are those of `equalise_file`, bit for bit. It is
kept in the zoo's cache under the SHA-256 of the original, ``<sha256>.equalised.jpg``: a prediction row of it has the
copy's own hash as its key, as every row has, and tells by its path's name which image it was made from.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePath

import PIL
from PIL import features

from detector_zoo import images
from detector_zoo.evaluation import equalise
from detector_zoo.evaluation.samples import Sample
from detector_zoo.registry import zoo_home

__all__ = ["copy_of", "original_of"]

_NAME = re.compile(r"([0-9a-f]{64})\.equalised\.jpg")


def original_of(path: str) -> str:
    """The SHA-256 of the image that a copy was made from; "" for any other path."""
    found = _NAME.fullmatch(PurePath(path).name)
    return found[1] if found else ""


def copy_of(sample: Sample) -> Path:
    """The equalised copy of an image, made if it is not there.

    Raises:
        ImageError: The image cannot be read.
    """
    path = zoo_home() / "equalised" / _recipe() / sample.sha256[:2] / f"{sample.sha256}.equalised.jpg"
    if not path.exists():
        # Decoded here by the zoo's own rules first, so that a file that must be refused is refused with its cause.
        images.decode(sample.path)
        content = equalise.equalised_jpeg(sample.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        partial.write_bytes(content)
        partial.replace(path)
    return path


def _recipe() -> str:
    """A name for all that decides the pixels: the constants, and the codec's version."""
    constants = (equalise.FIRST_GENERATION, equalise.SIDES, equalise.FINAL_QUALITY)
    codec = (PIL.__version__, features.version("jpg"), features.version("libjpeg_turbo"))
    return hashlib.sha256(repr((constants, codec)).encode()).hexdigest()[:12]

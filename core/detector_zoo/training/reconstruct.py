"""Aligned pairs (Rajan et al., ICLR 2025, arXiv 2410.11835): a crop and its reconstruction, pixel over pixel.

A pair has content, size and position in common, so that only the autoencoder's trace tells its halves apart; as long
as both go through the same augmentation later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from detector_zoo.evaluation.samples import Sample
from detector_zoo.training.autoencoder import Autoencoder, Precision, to_batch, to_pixels
from detector_zoo.training.crops import Photograph, cut, draws, photographs
from detector_zoo.training.manifest_out import Done, OutputFolder, Picture, Row

__all__ = ["reconstruct"]

Work = tuple[Photograph, int]
"""A photograph and the number of a crop of it."""


def reconstruct(
    samples: Iterable[Sample],
    autoencoder: Autoencoder,
    out: Path,
    *,
    size: int = 384,
    crops: int = 1,
    limit: int | None = None,
    reduced: float = 0.5,
    seed: int = 0,
    precision: Precision = "fp32",
    track: Callable[[Sequence[Work]], Iterable[Work]] = iter,
    bad: Callable[[str], None] | None = None,
    workers: int = 1,
) -> Done:
    """Write pairs: ``real/<photo>-<crop>.png`` and ``recon/<photo>-<crop>.png``, and their manifest.

    What an earlier run with the same settings left in ``out`` is kept; the same photographs give the same files
    whatever their order, on one kind of processor.

    Args:
        samples: Of a data set; its real photographs are used.
        autoencoder: See `load_autoencoder`.
        out: See `OutputFolder`.
        size: Longest side of the crops, pixels.
        crops: A photograph.
        limit: Photographs to use, the first by sha256; None for all.
        reduced: Share of the crops that are taken from a reduced photograph. A crop at the original scale has its
            codec's traces, which a reconstruction lacks: where no crop is reduced, they too tell a pair's halves.
        seed: Of every draw.
        precision: That ``autoencoder`` computes in, for the recipe.
        track: Wraps the jobs, for a progress bar.
        bad: Told in one line which photograph is left out; with None that is an error.
        workers: Threads; they change no result.

    Raises:
        DatasetError: No photograph, one that is too small, or ``out`` cannot be used.
        ImageError: A photograph cannot be read.
    """
    photos = photographs(samples, bad)[:limit]
    recipe = {
        "command": "reconstruct",
        "autoencoder": autoencoder.name,
        "weights": autoencoder.hashes,
        "precision": precision,
        "size": size,
        "reduced": reduced,
        "seed": seed,
    }

    def pair(photo: Photograph, index: int, stem: str) -> list[Picture]:
        rng = draws(seed, photo.sha256, index)
        crop = cut(photo, rng, size=size, multiple=autoencoder.factor, reduced=reduced)
        with torch.inference_mode():
            made = to_pixels(autoencoder.decode(autoencoder.encode(to_batch(crop.pixels))))
        sample = photo.sample
        known = {"group": photo.group, "split": sample.split, "source": sample.source, "cut": crop.cut}
        original = f"real/{stem}.png"
        recon = Row(label="generated", kind="recon", generator=autoencoder.name, original=original, **known)
        return [
            Picture(original, crop.pixels, Row(label="real", kind="photo", **known)),
            Picture(f"recon/{stem}.png", made, recon),
        ]

    work = [(photo, index) for photo in photos for index in range(crops)]
    with OutputFolder(out, recipe) as folder:
        stems = ((photo, index, f"{photo.sha256[:16]}-{index}") for photo, index in track(work))
        return folder.run(((stem, partial(pair, photo, index, stem)) for photo, index, stem in stems), bad, workers)

"""Aligned pairs that the report measures: a photograph's crop and what a generator makes of it, pixel over pixel.

`zoo data reconstruct` and `zoo data edit` make pairs to learn from; these keep the draws that reported figures rest on.

A pair has the same content, size and history, so that only the generator's trace tells its halves apart:

- ``recon``: through the tiny autoencoder TAEF2, encoder and decoder;
- ``variant``: the same with a decoder whose weights were disturbed, so that not one decoder's trace is learnt;
- ``edit``: latents inside a mask replaced by another photo's, by shuffled ones or by noise; decoded; and
  the original pixels put back outside the mask (the exchange of INP-X, arXiv 2602.00192);
- ``upscale``: halved and brought back by a super-resolution network.

Half of the crops are reduced before anything else, which wipes out the photograph's own JPEG history.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from detector_zoo.convert import read_tensors
from detector_zoo.evaluation.equalise import equalise
from detector_zoo.evaluation.samples import Sample
from detector_zoo.networks.state import load_strictly
from detector_zoo.training.autoencoder import TinyAutoencoder, to_batch, to_pixels
from detector_zoo.training.upscaler import Upscaler

__all__ = ["KINDS", "Pair", "equalised_pair", "make_pairs"]

KINDS = ("recon", "variant", "edit", "upscale")
SIDE = 384
UPSCALERS = ("spanx2_ch48", "2xHFA2kSPAN_27k", "realesr-animevideov3-x2")
VARIANTS = 6
VARIANT_NOISE = 0.04
"""Standard deviation of the relative noise on a variant decoder's weights: costs one to three dB of PSNR."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A crop and its regenerations, as PNG files in ``folder``.

    Attributes:
        row: sha256 of the photograph.
        reduced: Whether the crop was reduced first.
        folder: Holds ``original.png``, one ``<kind>.png`` a kind of `KINDS`, and ``mask.png`` of the edit.
    """

    row: str
    reduced: bool
    folder: Path


def _crop(image: Image.Image, reduced: bool, rng: np.random.Generator) -> NDArray[np.uint8]:
    if reduced:
        factor = rng.uniform(0.5, 0.85)
        factor = max(factor, 192 / min(image.size))
        size = (max(16, round(image.width * factor)), max(16, round(image.height * factor)))
        resample = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX)[rng.integers(3)]
        image = image.resize(size, resample)
    width, height = (min(SIDE, side) // 16 * 16 for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return np.asarray(image.crop((left, top, left + width, top + height)))


def random_mask(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """(H, W) bool: the union of one to three ellipses or boxes, 8 to 45 % of the area, in cells of 8 px."""
    height, width = size[0] // 8, size[1] // 8
    while True:
        canvas = Image.new("1", (width, height))
        draw = ImageDraw.Draw(canvas)
        for _ in range(rng.integers(1, 4)):
            w, h = rng.uniform(0.2, 0.6) * width, rng.uniform(0.2, 0.6) * height
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + w, y + h), fill=1)
        mask = np.asarray(canvas, bool)
        if 0.08 <= mask.mean() <= 0.45:
            return mask.repeat(8, 0).repeat(8, 1)


def _autoencoder(folder: Path) -> TinyAutoencoder:
    model = TinyAutoencoder()
    for part in ("encoder", "decoder"):
        file = folder / f"taef2_{part}.pth"
        load_strictly(getattr(model, part), read_tensors(file), file.name)
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _variants(model: TinyAutoencoder) -> list[TinyAutoencoder]:
    generator = torch.Generator().manual_seed(0)
    out = []
    for _ in range(VARIANTS):
        variant = copy.deepcopy(model)
        for parameter in variant.decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + VARIANT_NOISE * noise)
        out.append(variant)
    return out


def edited_latents(z: Tensor, donor: Tensor, mask: NDArray[np.bool_], rng: np.random.Generator) -> Tensor:
    """Replace (1, 32, h, w) latents inside ``mask`` (8 h, 8 w) by the donor's, by shuffled ones or by noise."""
    inside = torch.from_numpy(mask[::8, ::8].copy())
    new = z.clone()
    choice = rng.random()
    if choice < 0.6:
        height, width = z.shape[-2:]
        tiled = donor.repeat(1, 1, -(-height // donor.shape[-2]), -(-width // donor.shape[-1]))
        new[..., inside] = tiled[..., :height, :width][..., inside]
    elif choice < 0.8:
        cells = z[..., inside]
        new[..., inside] = cells[..., torch.from_numpy(rng.permutation(cells.shape[-1]))]
    else:
        cells = z[..., inside]
        noise = torch.from_numpy(rng.standard_normal(cells.shape)).float()
        new[..., inside] = cells + 0.5 * cells.std() * noise
    return new


def make_pairs(rows: Sequence[Sample], weights: Path, out: Path) -> list[Pair]:
    """Make the pairs of every photograph in ``rows``, two crops each; those already in ``out`` are kept.

    Args:
        rows: Photographs.
        weights: Folder of the autoencoder's files.
        out: Work folder; gets one folder a crop.
    """
    model = _autoencoder(weights)
    variants = _variants(model)
    upscale = Upscaler()
    previous: Path | None = None
    pairs = []
    for row in rows:
        for reduced in (False, True):
            folder = out / f"{row.sha256[:16]}-{'reduced' if reduced else 'native'}"
            pairs.append(Pair(row.sha256, reduced, folder))
            if not (folder / "done").exists():
                seed = hashlib.sha256(f"{row.sha256}{reduced}".encode()).digest()
                rng = np.random.default_rng(np.frombuffer(seed, np.uint32))
                with Image.open(row.path) as image:
                    original = _crop(image.convert("RGB"), reduced, rng)
                donor = original[:, ::-1] if previous is None else _pixels(previous / "original.png")
                folder.mkdir(parents=True, exist_ok=True)
                variant = variants[rng.integers(VARIANTS)]
                for name, pixels in _regenerate(original, donor, model, variant, upscale, rng):
                    Image.fromarray(pixels).save(folder / f"{name}.png", compress_level=1)
                (folder / "done").touch()
            previous = folder
    return pairs


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def _laid(pixels: NDArray[np.uint8]) -> Tensor:
    return to_batch(pixels).contiguous(memory_format=torch.channels_last)


def _regenerate(
    original: NDArray[np.uint8],
    donor: NDArray[np.uint8],
    model: TinyAutoencoder,
    variant: TinyAutoencoder,
    upscale: Upscaler,
    rng: np.random.Generator,
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Named images made of one crop; ``donor`` is the one whose latents may be spliced in."""
    mask = random_mask(original.shape[:2], rng)
    # Half precision, as generators run in practice; it moves no pixel by more than the rounding to 8 bit does.
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        z, lent = (model.encoder(_laid(pixels)).float() for pixels in (original, donor))
        edited = edited_latents(z, lent, mask, rng)
        recon, spliced = (to_pixels(y[None].float()) for y in model.decoder(torch.cat([z, edited])))
        noise = torch.from_numpy(rng.standard_normal(z.shape)).float()
        varied = to_pixels(variant.decoder(z + 0.1 * rng.random() * noise).float())
    resample = (Image.Resampling.BICUBIC, Image.Resampling.BOX)[rng.integers(2)]
    small = Image.fromarray(original).resize((original.shape[1] // 2, original.shape[0] // 2), resample)
    upscaled = upscale(np.asarray(small), UPSCALERS[rng.integers(3)])
    edit = np.where(mask[..., None], spliced, original)
    return [
        ("original", original),
        ("recon", recon),
        ("variant", varied),
        ("edit", edit),
        ("mask", mask.astype(np.uint8) * 255),
        ("upscale", upscaled),
    ]


def equalised_pair(pair: Pair, kind: str) -> tuple[Image.Image, Image.Image]:
    """A pair's original and its regeneration, equalised with the same crop."""
    digest = hashlib.sha256(f"{pair.row}{pair.reduced}{kind}".encode()).digest()
    seed = np.frombuffer(digest, np.uint32)
    out = []
    for name in ("original", kind):
        with Image.open(pair.folder / f"{name}.png") as image:
            history = name == "original" and not pair.reduced
            out.append(equalise(image.convert("RGB"), has_jpeg_history=history, rng=np.random.default_rng(seed)))
    return out[0], out[1]

"""Training samples: crops of photographs, of generated images and of aligned pairs, all laundered alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from detector_zoo.evaluation.equalise import first_generation, reencode
from detector_zoo_mdmf.manifest import Row
from detector_zoo_mdmf.pairs import KINDS, Pair
from detector_zoo_mdmf.tiles import Tiling

__all__ = ["Batches", "Sampler", "launder"]

Pixels = NDArray[np.uint8]
MAX_SIDE = 640

KIND_WEIGHTS = {"recon": 0.35, "variant": 0.25, "edit": 0.25, "upscale": 0.15}
GENERATED_WEIGHTS = {
    "comfyui-examples": 0.42,
    "sdnext-reference": 0.40,
    "inpaint-anything": 0.06,
    "sr-esrgan": 0.04,
    "sr-bsrgan": 0.04,
    "sr-realsr_jpeg": 0.04,
}
RESAMPLE = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)


@dataclass(frozen=True, slots=True)
class _Image:
    """Decoded pixels (H, W, 3), and whether they were JPEG-compressed before."""

    pixels: Pixels
    compressed: bool


def _read(row: Row) -> _Image:
    """Decode; large images are cut to their middle, WebP ones reduced, which wipes their codec's trace out."""
    with Image.open(row.path) as file:
        image = file.convert("RGB")
    if row.codec == "webp":
        image = image.reduce(2) if min(image.size) >= 512 else image.resize([side * 2 // 3 for side in image.size])
    width, height = (min(MAX_SIDE, side) for side in image.size)
    left, top = (image.width - width) // 16 * 8, (image.height - height) // 16 * 8
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return _Image(pixels, row.codec == "jpg")


def launder(image: Image.Image, compressed: bool, size: int, rng: np.random.Generator) -> Image.Image:
    """One random life on the web: first JPEG, resize, blur, crop, last codec, flip.

    The draws do not depend on the image, so that two generators of one seed launder a pair's halves alike,
    except that only the half without a JPEG behind it gets one.

    Args:
        image: RGB; sides of at least ``size`` are wanted, smaller ones are reflected.
        compressed: Whether it was JPEG-compressed before.
        size: Side of the crop that comes back.
        rng: Source of every draw.
    """
    first, draws = rng.spawn(2)
    u = draws.random(8)
    scale = draws.uniform(0.5, 1.2) if u[0] < 0.3 else 1.0
    need = int(np.ceil(size / scale)) + 8
    # Cutting first saves the codecs most of their work; the margin leaves the last crop an offset of its own.
    need_w, need_h = min(need, image.width), min(need, image.height)
    left, top = int(u[1] * (image.width - need_w + 1)) // 8 * 8, int(u[2] * (image.height - need_h + 1)) // 8 * 8
    image = image.crop((left, top, left + need_w, top + need_h))
    if not compressed:
        image = first_generation(image, first)
    if scale != 1.0:
        resized = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(resized, RESAMPLE[draws.integers(3)])
    if u[3] < 0.12:
        image = image.filter(ImageFilter.GaussianBlur(draws.uniform(0.3, 1.2)))
    if image.width < size or image.height < size:
        pixels = np.asarray(image)
        pad = [(0, max(0, size - side)) for side in pixels.shape[:2]]
        image = Image.fromarray(np.pad(pixels, [*pad, (0, 0)], "symmetric"))
    left, top = int(u[4] * (image.width - size + 1)), int(u[5] * (image.height - size + 1))
    image = image.crop((left, top, left + size, top + size))
    quality = int(draws.triangular(60, 97, 101))
    if u[6] < 0.72:
        image = reencode(image, "jpeg", min(quality, 100), int(draws.integers(3)))
    elif u[6] < 0.84:
        image = reencode(image, "webp", min(quality, 100))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if u[7] < 0.5 else image


class Sampler:
    """Draws batches of laundered crops.

    Args:
        rows: Train rows of both classes.
        pairs: Aligned pairs.
        tiling: Levels the crops as it does the detector's tiles: what it takes away must not be learnt from.
        size: Side of the levelled crops.
        stride: Pixels a token, for the labels.
        counts: Pairs, photographs and generated images a batch.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        pairs: Sequence[Pair],
        tiling: Tiling,
        *,
        size: int,
        stride: int,
        counts: tuple[int, int, int],
    ) -> None:
        self.tiling, self.counts = tiling, counts
        self.side, self.tokens = round(size * tiling.shrink), size // stride
        real = [row for row in rows if not row.generated]
        # LaMa's images are photographs outside an unknown mask: no label would be right for all their patches.
        fake = [row for row in rows if row.generated and not row.generator.startswith("LaMa")]
        self.real, self.fake = [_read(row) for row in real], [_read(row) for row in fake]
        self.real_p = _balanced([row.source for row in real], {})
        self.fake_p = _balanced([row.source for row in fake], GENERATED_WEIGHTS)
        webp = {row.sha256 for row in real if row.codec == "webp"}
        self.pairs = [p for p in pairs if p.reduced or p.row not in webp]
        self.halves = [{name: _png(pair, name) for name in ("original", *KINDS, "mask")} for pair in self.pairs]
        self.pair_p = _balanced([pair.source for pair in self.pairs], {})

    def batch(self, seed: int) -> tuple[Tensor, Tensor]:
        """Images (N, 3, S, S) uint8 and token labels (N, S / stride, S / stride): share of generated pixels."""
        rng = np.random.default_rng(seed)
        paired, real, fake = self.counts
        images: list[Pixels] = []
        labels: list[NDArray[np.float32]] = []
        kinds = rng.choice(len(KINDS), paired, p=[KIND_WEIGHTS[kind] for kind in KINDS])
        for index, kind in zip(rng.choice(len(self.pairs), paired, p=self.pair_p), kinds, strict=True):
            self._add_pair(int(index), KINDS[kind], int(rng.integers(2**31)), images, labels)
        for pool, p, count, label in ((self.real, self.real_p, real, 0), (self.fake, self.fake_p, fake, 1)):
            for index in rng.choice(len(pool), count, p=p):
                chosen = pool[index]
                images.append(self._crop(chosen.pixels, chosen.compressed, rng))
                labels.append(np.full((self.tokens, self.tokens), label, np.float32))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(labels))

    def _add_pair(
        self, index: int, kind: str, seed: int, images: list[Pixels], labels: list[NDArray[np.float32]]
    ) -> None:
        halves, reduced = self.halves[index], self.pairs[index].reduced
        for name in ("original", kind):
            rng = np.random.default_rng(seed)
            # An edit still holds the photograph's own pixels, with their history, as the original does.
            compressed = not reduced and (name == "original" or (kind == "edit" and seed % 2 == 0))
            images.append(self._crop(halves[name], compressed, rng))
        labels.append(np.zeros((self.tokens, self.tokens), np.float32))
        if kind == "edit":
            mask = Image.fromarray(halves["mask"])
            labels.append(self._mask_labels(mask, seed))
        else:
            labels.append(np.ones((self.tokens, self.tokens), np.float32))

    def _crop(self, pixels: Pixels, compressed: bool, rng: np.random.Generator) -> Pixels:
        return np.asarray(self.tiling.level(launder(Image.fromarray(pixels), compressed, self.side, rng)))

    def _mask_labels(self, mask: Image.Image, seed: int) -> NDArray[np.float32]:
        laundered = launder(mask.convert("RGB"), True, self.side, np.random.default_rng(seed)).convert("L")
        shares = laundered.resize((self.tokens, self.tokens), Image.Resampling.BOX)
        return np.asarray(shares, np.float32) / np.float32(255)


class Batches(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Batches by number, for loading in worker processes."""

    def __init__(self, sampler: Sampler, count: int, seed: int) -> None:
        self.sampler, self.count, self.seed = sampler, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.sampler.batch(self.seed * 1_000_003 + index)


def _png(pair: Pair, name: str) -> Pixels:
    with Image.open(pair.folder / f"{name}.png") as image:
        return np.asarray(image)


def _balanced(sources: Sequence[str], weights: dict[str, float]) -> NDArray[np.float64]:
    """Probabilities: by ``weights`` among the sources listed there, else by the root of a source's size."""
    counts = {source: sources.count(source) for source in set(sources)}
    p = np.array([weights.get(s, counts[s] ** 0.5) / counts[s] for s in sources])
    normalised: NDArray[np.float64] = p / p.sum()
    return normalised

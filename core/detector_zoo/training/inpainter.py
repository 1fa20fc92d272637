"""A small inpainting network: a source of local edits that anyone can train from photographs in minutes.

Architecture: a U-Net of gated convolutions (Yu et al., ICCV 2019, arXiv 1806.03589), from 2x2 blocks of pixels to 8x
down, with dilated ones at the bottom. It starts from a smooth fill, is given noise beside image and mask, and renders
the whole image; so there is a whole one, as an inpainting pipeline has before the exchange.

Objective: L1, weighted inside the mask; the local energy of detail at three scales, without which the fill is a blur
that any detector of sharpness finds; and the hinge loss of a spectrally normalised patch discriminator (SN-PatchGAN,
same paper).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from detector_zoo.convert import is_safetensors, one_line, read_safetensors, sha256_of
from detector_zoo.errors import DatasetError, ImageError, WeightsError
from detector_zoo.networks.state import load_strictly
from detector_zoo.training.autoencoder import to_batch, to_pixels
from detector_zoo.training.crops import Photograph, cut, draws
from detector_zoo.training.manifest_out import write_atomically
from detector_zoo.training.masks import random_mask

__all__ = ["FACTOR", "Inpainter", "InpainterNet", "Settings", "load_inpainter", "train_inpainter"]

FACTOR = 8
"""Sides of images must be multiples of it."""

METADATA = "detector_zoo_inpainter"
"""Key of the safetensors file's metadata that holds the settings, as JSON."""

HOLE, DETAIL, ADVERSARIAL = 3.0, 6.0, 0.05
"""Weights of the L1 inside the mask (outside: 1), of the energy of detail, and of the adversarial loss."""

WARM_UP = 0.3
"""Share of the steps without the adversarial loss."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the network is trained.

    Attributes:
        steps: Of the optimiser.
        size: Side of the training crops, pixels, a multiple of 8.
        batch: Crops a step.
        width: Channels at half the resolution.
        rate: Adam's learning rate, of both networks; falls to 0 on a cosine.
        pool: Crops held in memory; each step exchanges one for a new one.
        seed: Of weights, crops, masks and noise.
        precision: ``bf16`` computes in bfloat16 where that loses little.
    """

    steps: int = 1500
    size: int = 128
    batch: int = 4
    width: int = 24
    rate: float = 8e-4
    pool: int = 128
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"


class _Gated(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * outputs, 3, stride, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        features, gate = self.conv(x).chunk(2, dim=1)
        return F.elu(features) * torch.sigmoid(gate)


class InpainterNet(nn.Module):
    """Renders an image from what is outside its mask.

    Args:
        width: Channels at half the resolution.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.enter = _Gated(4 * 5, w)
        self.down = nn.ModuleList([_Gated(w, 2 * w, 2), _Gated(2 * w, 4 * w, 2)])
        self.bottom = nn.ModuleList([_Gated(4 * w, 4 * w, dilation=d) for d in (1, 2, 4, 8, 1)])
        self.up = nn.ModuleList([_Gated(6 * w, 2 * w), _Gated(3 * w, w)])
        self.leave = nn.Conv2d(w, 4 * 3, 3, padding=1)

    def forward(self, image: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Image (N, 3, H, W) in [0, 1], mask (N, 1, H, W) of 0 and 1, noise like the mask: (N, 3, H, W), unbounded."""
        start = _smooth_fill(image, mask)
        x = self.enter(F.pixel_unshuffle(torch.cat([2 * start - 1, mask, noise * mask], 1), 2))
        skips = []
        for layer in self.down:
            skips.append(x)
            x = layer(x)
        for layer in self.bottom:
            x = x + layer(x)
        for layer, skip in zip(self.up, reversed(skips), strict=True):
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1))
        return start + F.pixel_shuffle(self.leave(x), 2).float()


def _smooth_fill(image: Tensor, mask: Tensor) -> Tensor:
    """The image with its hole filled from the averages around it, coarse to fine (push-pull)."""
    levels = [(image * (1 - mask), 1 - mask)]
    while max(levels[-1][0].shape[2:]) > 1:
        colour, known = (F.avg_pool2d(x, 2, ceil_mode=True) for x in levels[-1])
        levels.append((colour, known))
    colour, known = levels.pop()
    filled = colour / known.clamp(min=1e-6)
    for colour, known in reversed(levels):
        coarse = F.interpolate(filled, size=colour.shape[2:], mode="bilinear", align_corners=False)
        filled = colour + (1 - known) * coarse
    return filled


def _detail(image: Tensor) -> list[Tensor]:
    """The mean absolute difference from a 3x3 average, in windows of 16 pixels, at three scales."""
    energies = []
    for _ in range(3):
        fine = (image - F.avg_pool2d(image, 3, stride=1, padding=1)).abs()
        energies.append(F.avg_pool2d(fine, 16, stride=4, padding=8))
        image = F.avg_pool2d(image, 2)
    return energies


@dataclass(frozen=True, slots=True)
class Inpainter:
    """A trained network, ready to run.

    Attributes:
        name: What a manifest calls it.
        sha256: Of its file.
    """

    name: str
    sha256: str
    net: InpainterNet
    device: str

    def __call__(
        self, pixels: NDArray[np.uint8], mask: NDArray[np.bool_], rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Render an image.

        Args:
            pixels: (H, W, 3), sides multiples of `FACTOR`.
            mask: (H, W), true where nothing of ``pixels`` is seen.
            rng: Source of the noise.

        Returns:
            (H, W, 3): the whole image as the network renders it, also outside the mask.
        """
        hole = torch.from_numpy(mask.copy())[None, None].float()
        noise = torch.from_numpy(rng.standard_normal(mask.shape, np.float32))[None, None]
        with torch.inference_mode():
            return to_pixels(self.net(*(x.to(self.device) for x in (to_batch(pixels), hole, noise))))


def load_inpainter(path: Path, device: str = "cpu") -> Inpainter:
    """Read what `train_inpainter` wrote.

    Raises:
        WeightsError: It is something else, damaged, or cannot be read.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise WeightsError(f"{path}: no such file", hint="zoo data train-inpainter makes one")
    if not is_safetensors(path):
        raise WeightsError(f"{path}: not safetensors")
    state = read_safetensors(path)
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA)
    try:
        width = int(json.loads(text or "")["width"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not an inpainting network of this program") from error
    net = InpainterNet(width)
    load_strictly(net, state, str(path))
    sha256 = sha256_of(path)
    return Inpainter(f"inpainter-{sha256[:8]}", sha256, net.eval().requires_grad_(False).to(device), device)


def train_inpainter(
    photos: Sequence[Photograph],
    out: Path,
    settings: Settings,
    *,
    device: str = "cpu",
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
    bad: Callable[[str], None] | None = None,
) -> float:
    """Train on photographs and write the network; on one machine and number of threads a seed gives one file.

    Args:
        photos: Of the training split, as `crops.photographs` orders them.
        out: A safetensors file, written at the end and at once.
        settings: See `Settings`.
        device: A torch device.
        track: Wraps the steps, for a progress bar.
        bad: Told in one line which photograph is left out; with None that is an error.

    Returns:
        Mean absolute error inside the masks over the last tenth of the steps, [0, 1].

    Raises:
        DatasetError: No photograph is as large as a crop, or ``out`` cannot be written.
        ImageError: A photograph cannot be read.
    """
    from safetensors.torch import save

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net, critic = InpainterNet(settings.width), _critic(settings.width)
    net.to(device)
    critic.to(device)
    half = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.precision == "bf16")
    optimisers = [torch.optim.Adam(m.parameters(), settings.rate, (0.5, 0.9)) for m in (net, critic)]
    rng = draws(settings.seed, "inpainter")
    crops = _crops(photos, settings, bad)
    pool = [next(crops) for _ in range(min(settings.pool, len(photos)))]
    errors: list[float] = []
    for step in track(range(settings.steps)):
        pool[step % len(pool)] = next(crops)
        image, mask, noise = (x.to(device) for x in _batch(pool, settings, rng))
        with half:
            rendered = net(image, mask, noise)
        filled = torch.lerp(image, rendered, mask)
        difference = (rendered - image).abs()
        loss = (difference * (1 + (HOLE - 1) * mask)).mean()
        for have, want in zip(_detail(filled), _detail(image), strict=True):
            loss = loss + DETAIL * (have - want).abs().mean()
        if step >= WARM_UP * settings.steps:
            with half:
                real = critic(torch.cat([image, mask], 1))
                fake = critic(torch.cat([filled.detach(), mask], 1))
            _step(optimisers[1], (F.relu(1 - real) + F.relu(1 + fake)).mean())
            with half:
                verdict = critic(torch.cat([filled, mask], 1))
            loss = loss - ADVERSARIAL * verdict.mean()
        _step(optimisers[0], loss)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = settings.rate * (1 + math.cos(math.pi * (step + 1) / settings.steps)) / 2
        if step >= 0.9 * settings.steps - 1:
            errors.append(float(((difference * mask).sum() / (3 * mask.sum())).detach()))
    data = hashlib.sha256("\n".join(photo.sha256 for photo in photos).encode()).hexdigest()
    facts = {METADATA: json.dumps(asdict(settings) | {"photographs": len(photos), "data": data})}
    write_atomically(out, save({key: value.cpu().contiguous() for key, value in net.state_dict().items()}, facts))
    return float(np.mean(errors))


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _critic(width: int) -> nn.Sequential:
    """Image and mask (N, 4, H, W) to one number a patch."""
    layers: list[nn.Module] = []
    channels = (4, width, 2 * width, 4 * width, 4 * width)
    for inputs, outputs in pairwise(channels):
        convolution = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
        layers += [nn.utils.parametrizations.spectral_norm(convolution), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 1))


def _crops(
    photos: Sequence[Photograph], settings: Settings, bad: Callable[[str], None] | None
) -> Iterator[NDArray[np.uint8]]:
    """Square crops without end, half of them of reduced photographs; each round in a new order."""
    left_out: set[str] = set()
    round_ = 0
    while len(left_out) < len(photos):
        for index in draws(settings.seed, "round", round_).permutation(len(photos)):
            photo = photos[index]
            if photo.sha256 in left_out:
                continue
            rng = draws(settings.seed, photo.sha256, round_)
            shape = (settings.size, settings.size)
            try:
                yield cut(photo, rng, size=settings.size, multiple=FACTOR, reduced=0.5, shape=shape).pixels
            except (DatasetError, ImageError) as error:
                if bad is None:
                    raise
                bad(one_line(error))
                left_out.add(photo.sha256)
        round_ += 1
    raise DatasetError("none of the photographs can be used")


def _batch(
    pool: Sequence[NDArray[np.uint8]], settings: Settings, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (settings.size, settings.size)
    chosen = [pool[i] for i in rng.integers(len(pool), size=settings.batch)]
    chosen = [crop[:, ::-1] if rng.random() < 0.5 else crop for crop in chosen]
    masks = np.stack([random_mask(shape, rng)[0] for _ in chosen])[:, None]
    noise = rng.standard_normal(masks.shape, np.float32)
    return torch.cat([to_batch(crop) for crop in chosen]), torch.from_numpy(masks).float(), torch.from_numpy(noise)

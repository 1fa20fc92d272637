"""Local edits of photographs by several sources, each with its exchange, and splices as their control.

For one crop there is one mask and one seam (hard, or softened); every source fills that same mask:

- ``edit-latent``: an autoencoder decodes latents that, inside the mask, come from another photograph, are shuffled,
  are noised, or are left as they are, so that only its trace is there;
- ``edit-inpaint``: a small network (`inpainter`) renders what it does not see;
- ``edit-upscale``: a super-resolution network brings back a reduced copy;
- ``splice``: the pixels of another real photograph, the same whose latents are spliced. Nothing in it is generated,
  hence its label is ``real``; a detector that calls splices generated has learnt the seam. Report it apart.

None of these is a diffusion model. The first three are written twice: the whole image as the network made it (kind as
above), and the exchange of INP-X (arXiv 2602.00192), kind with ``-exchange``, where only the mask holds what was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from detector_zoo.evaluation.samples import Sample
from detector_zoo.training.autoencoder import Autoencoder, Precision, to_batch, to_pixels
from detector_zoo.training.crops import Photograph, cut, donor, draws, photographs
from detector_zoo.training.inpainter import FACTOR, Inpainter
from detector_zoo.training.manifest_out import Done, OutputFolder, Picture, Row
from detector_zoo.training.masks import random_mask
from detector_zoo.training.triples import EXCHANGED, blend
from detector_zoo.training.upscaler import NETWORKS, Upscaler

__all__ = ["KINDS", "Plan", "Tools", "edit_latents", "make_edits"]

KINDS = ("edit-latent", "edit-inpaint", "edit-upscale", "splice")

Work = tuple[Photograph, int]
"""A photograph and the number of a crop of it."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The generators; one that is None makes no edits."""

    autoencoder: Autoencoder | None = None
    inpainter: Inpainter | None = None
    upscaler: Upscaler | None = None
    splices: bool = True

    def kinds(self) -> list[str]:
        """Those of `KINDS` that are made."""
        there = (self.autoencoder, self.inpainter, self.upscaler, self.splices or None)
        return [kind for kind, tool in zip(KINDS, there, strict=True) if tool is not None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is drawn, and from where.

    Attributes:
        size: Longest side of the crops, pixels.
        area: Smallest and largest share of a crop that its mask covers.
        feathered: Share of the crops whose seams are softened by a 5x5 Gaussian.
        reduced: Share of the crops that are taken from a reduced photograph.
        seed: Of every draw.
    """

    size: int = 384
    area: tuple[float, float] = (0.05, 0.45)
    feathered: float = 0.2
    reduced: float = 0.5
    seed: int = 0


def make_edits(
    samples: Iterable[Sample],
    tools: Tools,
    out: Path,
    plan: Plan,
    *,
    crops: int = 1,
    limit: int | None = None,
    precision: Precision = "fp32",
    track: Callable[[Sequence[Work]], Iterable[Work]] = iter,
    bad: Callable[[str], None] | None = None,
    workers: int = 1,
) -> Done:
    """Write ``original/``, ``mask/`` and, a kind, ``<kind>/`` and ``<kind>-exchange/<photo>-<crop>.png``.

    What an earlier run with the same settings left in ``out`` is kept; the same photographs give the same files
    whatever their order, on one kind of processor.

    Args:
        samples: Of a data set; its real photographs are used, and lend their content to each other within a split.
        tools: The generators.
        out: See `OutputFolder`.
        plan: What is drawn.
        crops: A photograph.
        limit: Photographs to edit, the first by sha256; None for all. Donors are drawn from the whole set.
        precision: That the autoencoder computes in, for the recipe.
        track: Wraps the jobs, for a progress bar.
        bad: Told in one line which photograph is left out; with None that is an error.
        workers: Threads; they change no result.

    Raises:
        DatasetError: No photograph, one that is too small, or ``out`` cannot be used.
        ImageError: A photograph cannot be read.
    """
    pool = photographs(samples, bad)
    recipe = {
        "command": "edit",
        "kinds": tools.kinds(),
        "autoencoder": tools.autoencoder and [tools.autoencoder.name, *tools.autoencoder.hashes],
        "precision": precision,
        "inpainter": tools.inpainter and tools.inpainter.sha256,
        "size": plan.size,
        "area": plan.area,
        "feathered": plan.feathered,
        "reduced": plan.reduced,
        "seed": plan.seed,
    }
    work = [(photo, index) for photo in pool[:limit] for index in range(crops)]
    with OutputFolder(out, recipe) as folder:
        stems = ((photo, index, f"{photo.sha256[:16]}-{index}") for photo, index in track(work))
        jobs = ((stem, partial(_edits, photo, index, stem, pool, tools, plan)) for photo, index, stem in stems)
        return folder.run(jobs, bad, workers)


def _edits(
    photo: Photograph, index: int, stem: str, pool: Sequence[Photograph], tools: Tools, plan: Plan
) -> list[Picture]:
    # A stream each, so that a source that is added or left out changes none of the others.
    base, other, *streams = draws(plan.seed, photo.sha256, index).spawn(2 + len(KINDS))
    factor = tools.autoencoder.factor if tools.autoencoder else 1
    crop = cut(photo, base, size=plan.size, multiple=math.lcm(FACTOR, factor), reduced=plan.reduced)
    mask, shape = random_mask(crop.pixels.shape[:2], base, plan.area)
    feather = 5 if base.random() < plan.feathered else 0
    sample = photo.sample
    known: dict[str, Any] = {"group": photo.group, "split": sample.split, "source": sample.source, "cut": crop.cut}
    original, mask_path = f"original/{stem}.png", f"mask/{stem}.png"
    pictures = [
        Picture(original, crop.pixels, Row(label="real", kind="photo", **known)),
        Picture(mask_path, mask),
    ]
    known |= {"original": original, "mask": mask_path}
    about = f"mask={shape}; area={mask.mean():.3f}; feather={feather}"

    lender: tuple[Photograph, NDArray[np.uint8]] | None = None
    if tools.autoencoder or tools.splices:
        lent = donor(photo, pool, other)
        height, width = crop.pixels.shape[:2]
        lender = lent, cut(lent, other, size=plan.size, multiple=1, reduced=plan.reduced, shape=(height, width)).pixels

    def add(kind: str, whole: NDArray[np.uint8], generator: str, how: str) -> None:
        made = {"label": "generated", "generator": generator, "note": f"{how}; {about}", **known}
        exchanged = blend(crop.pixels, whole, mask, feather)
        if np.array_equal(exchanged, crop.pixels):
            return  # a plain surface comes back as it was: nothing in it is generated
        pictures.append(Picture(f"{kind}/{stem}.png", whole, Row(kind=kind, **made)))
        pictures.append(Picture(f"{kind}{EXCHANGED}/{stem}.png", exchanged, Row(kind=kind + EXCHANGED, **made)))

    if tools.autoencoder and lender:
        whole, how = _latent_edit(tools.autoencoder, crop.pixels, lender[1], mask, streams[0])
        donor_note = f"; donor={lender[0].sha256}" if how.startswith("splice") else ""
        add("edit-latent", whole, tools.autoencoder.name, how + donor_note)
    if tools.inpainter:
        add("edit-inpaint", tools.inpainter(crop.pixels, mask, streams[1]), tools.inpainter.name, "fill")
    if tools.upscaler:
        name = list(NETWORKS)[streams[2].integers(len(NETWORKS))]
        whole, how = _upscaled(tools.upscaler, name, crop.pixels, streams[2])
        add("edit-upscale", whole, name, how)
    if tools.splices and lender:
        row = Row(label="real", kind="splice", note=f"donor={lender[0].sha256}; {about}", **known)
        pictures.append(Picture(f"splice/{stem}.png", blend(crop.pixels, lender[1], mask, feather), row))
    return pictures


def edit_latents(
    latents: Tensor, lent: Tensor, cells: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[Tensor, str]:
    """Change latents inside a mask: two in five times spliced, once each shuffled, noised and kept.

    Args:
        latents: (1, C, h, w).
        lent: (1, C, h, w), of another photograph.
        cells: (h, w), true where they are to change.
        rng: Source of every draw.

    Returns:
        (1, C, h, w), unchanged outside; and what was done: "splice" with the share of the lent latents, half of the
        time 1 and else in [0.5, 1]; "shuffle"; "noise" with its standard deviation, [0.2, 1] of the latents' own; or
        "keep".
    """
    inside = torch.from_numpy(cells)
    old = latents[..., inside]
    choice, full, strength = rng.random(), rng.random() < 0.5, float(rng.uniform())
    if choice < 0.4:
        share = 1.0 if full else 0.5 + strength / 2
        new, how = torch.lerp(old, lent[..., inside], share), f"splice; strength={share:.2f}"
    elif choice < 0.6:
        new, how = old[..., torch.from_numpy(rng.permutation(old.shape[-1]))], "shuffle"
    elif choice < 0.8:
        deviation = 0.2 + 0.8 * strength
        noise = torch.from_numpy(rng.standard_normal(old.shape, np.float32))
        new, how = old + deviation * latents.std() * noise, f"noise; strength={deviation:.2f}"
    else:
        new, how = old, "keep"
    changed = latents.clone()
    changed[..., inside] = new
    return changed, how


def _latent_edit(
    model: Autoencoder,
    pixels: NDArray[np.uint8],
    lent: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], str]:
    # Every cell that the mask touches is changed: the mask itself does not follow the cells' grid.
    touched = F.max_pool2d(torch.from_numpy(mask.copy())[None].float(), model.factor)[0] > 0
    with torch.inference_mode():
        latents, other = (model.encode(to_batch(x)).float().cpu() for x in (pixels, lent))
        changed, how = edit_latents(latents, other, touched.numpy(), rng)
        return to_pixels(model.decode(changed)), how


def _upscaled(
    upscaler: Upscaler, network: str, pixels: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], str]:
    factor = NETWORKS[network][1]
    name, resample = (("bicubic", Image.Resampling.BICUBIC), ("box", Image.Resampling.BOX))[rng.integers(2)]
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((width // factor, height // factor), resample)
    return upscaler(np.asarray(small), network), f"factor={factor}; reduced={name}"

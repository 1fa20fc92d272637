"""Fine-tuning the lite embedder's trunk towards a transformer's tokens, before its map is fitted in closed form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector_zoo.training.batches import Batch
from detector_zoo.training.job import Job
from detector_zoo.training.loop import Trainee, train
from detector_zoo_mdmf.distil import Targets
from detector_zoo_mdmf.distilled import DistilledEmbedder
from detector_zoo_mdmf.recipe import Tuning
from detector_zoo_mdmf.tiles import Tiling
from detector_zoo_mdmf.views import View

__all__ = ["cells_of", "tune"]


def cells_of(
    embedder: DistilledEmbedder, tiling: Tiling, versions: Sequence[Mapping[str, Sequence[View]]]
) -> list[dict[str, list[View]]]:
    """Views of pixels and tokens, by the files' sha256 in each version, as views of cells and tokens."""
    place = embedder.mean.device

    @torch.inference_mode()
    def cells(view: View) -> View:
        made = embedder.cells(_normalised(view[0][None].to(place), tiling))[0]
        return (made.half().cpu().clone(), *view[1:])

    return [{sha256: [cells(view) for view in tiles] for sha256, tiles in seen.items()} for seen in versions]


def tune(
    embedder: DistilledEmbedder,
    tiling: Tiling,
    views: Sequence[View],
    held: Sequence[View],
    tuning: Tuning,
    job: Job,
    key: str,
    machine: Any,
) -> tuple[float, bool]:
    """Fine-tune the trunk in place, and with it the map, which is a start to be fitted anew.

    Least squares on the teacher's standardised numbers along their first axes, an axis' error in inverse proportion to
    its deviation: between the variances as they are, where the first axes are all that counts, and what the map gives
    phi in the end, a variance of 1 each.

    Args:
        embedder: With its map fitted to the trunk as it is.
        tiling: Whose tiles the views are.
        views: To learn from: pixels of a tile, (3, H, W) uint8, and the teacher's tokens, (D, h, w).
        held: Likewise, to watch.
        tuning: How.
        job: Its ``out`` gets checkpoints and ``metrics.jsonl``; the loss there is the share of the (weighted)
            variance that is not told.
        key: Of the views.
        machine: See `loop.accelerator`.

    Returns:
        That share of ``held`` after the last step, and whether a step was taken: not where a finished tuning was found.
    """
    targets = Targets.of([taught for _, taught in views], embedder.dim)
    scale = targets.deviation.sqrt().view(-1, 1, 1)
    total = float(targets.deviation.sum())

    def wanted(taught: Tensor) -> Tensor:
        return targets(taught) / scale

    def unexplained(network: nn.Module, pixels: Tensor, aim: Tensor) -> Tensor:
        told: Tensor = network(_normalised(pixels, tiling)).float()
        return (told - aim).square().sum(1).mean() / total

    moved = False

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        nonlocal moved
        moved = True
        # A batch of few tiles has other statistics than those that the detector scores with.
        network.eval()
        return unexplained(network, batch.inputs, batch.labels)

    def judge(network: nn.Module) -> Mapping[str, float]:
        place = embedder.mean.device
        found = [unexplained(network, pixels[None].to(place), wanted(aim)[None].to(place)) for pixels, aim in held]
        return {"loss": float(torch.stack(found).mean())}

    _rescale(embedder, tiling, views[:: max(1, len(views) // 500)], wanted)
    embedder.requires_grad_(True)
    train(
        Trainee(network=embedder, loss=loss),
        _Batches(views, wanted, tuning.batch, job.seed),
        judge,
        optimiser=tuning.optimiser,
        schedule=tuning.schedule,
        epoch=-(-len(views) // tuning.batch),
        job=replace(job, workers=0),
        fingerprint=job.fingerprint(key),
        machine=machine,
    )
    embedder.eval().requires_grad_(False)
    with torch.inference_mode():
        return judge(embedder)["loss"], moved


class _Batches:
    """Tiles of one size, every tile as likely as any other; a pure function of the step."""

    def __init__(self, views: Sequence[View], wanted: Callable[[Tensor], Tensor], size: int, seed: int) -> None:
        groups: dict[torch.Size, list[View]] = defaultdict(list)
        for view in views:
            groups[view[0].shape].append(view)
        self._groups = list(groups.values())
        self._p = np.array([len(group) for group in self._groups]) / len(views)
        self._wanted, self._size, self._seed = wanted, size, seed

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng((self._seed, step))
        group = self._groups[rng.choice(len(self._groups), p=self._p)]
        chosen = [group[index] for index in rng.integers(len(group), size=self._size)]
        return Batch(
            torch.stack([pixels for pixels, _ in chosen]), torch.stack([self._wanted(taught) for _, taught in chosen])
        )


@torch.no_grad()
def _rescale(
    embedder: DistilledEmbedder, tiling: Tiling, views: Sequence[View], wanted: Callable[[Tensor], Tensor]
) -> None:
    """Undo the map's scaling to a variance of 1, axis by axis: its outputs become the best guess of what is wanted."""
    place = embedder.mean.device
    shared, own = torch.zeros(embedder.dim), torch.zeros(embedder.dim)
    for pixels, taught in views:
        told = embedder(_normalised(pixels[None].to(place), tiling))[0].float().cpu().flatten(1)
        shared += (told * wanted(taught).flatten(1)).sum(1)
        own += told.square().sum(1)
    factor = (shared / own).to(place)
    embedder.map.weight.mul_(factor.view(-1, 1, 1, 1))
    assert embedder.map.bias is not None  # noqa: S101 - for the type checker
    embedder.map.bias.mul_(factor)


def _normalised(pixels: Tensor, tiling: Tiling) -> Tensor:
    mean, std = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (tiling.mean, tiling.std))
    return ((pixels / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

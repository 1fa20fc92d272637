"""Learning the signature head on cached tokens: what a step sees of them, the bank, scores."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.samples import Sample
from detector_zoo.training.batches import Batch, probabilities
from detector_zoo_mdmf.mmd import SignatureHead, kernel, mean_kernel

if TYPE_CHECKING:
    from detector_zoo_mdmf.recipe import Recipe

__all__ = ["BankRule", "Draws", "banked", "candidates", "choose_bank", "score_sets"]

BankRule = Literal["random", "kmeans", "herding"]

CANDIDATES = 2**16
"""Photographs' patches that a bank is chosen among, at most."""
EACH = 8
"""Candidates of a view, so that no large picture fills the bank alone; spread over it."""


class Draws:
    """Batches of tokens, as a pure function of the seed and the step.

    Args:
        recipe: Its ``batch``, ``tokens``, ``mix`` and ``by_source`` count.
        samples: Of both classes.
        versions: Of each sample, its versions' tokens, (n, dim).
        seed: Of every draw.
    """

    def __init__(
        self, recipe: Recipe, samples: Sequence[Sample], versions: Sequence[Sequence[Tensor]], seed: int
    ) -> None:
        self._images, self._tokens, self._seed = recipe.batch // 2, recipe.tokens, seed
        self._pools: list[tuple[list[Sequence[Tensor]], NDArray[np.float64]]] = []
        kinds = recipe.mix.kinds
        for generated in (False, True):
            members = [
                (sample, own)
                for sample, own in zip(samples, versions, strict=True)
                if sample.generated == generated and (not generated or kinds.get(sample.kind, 1.0) > 0)
            ]
            if not members:
                raise DatasetError("mix.kinds leaves no generated image to learn from")
            known = [replace(s, kind="", generator="") if recipe.by_source else s for s, _ in members]
            self._pools.append(([own for _, own in members], probabilities(known, recipe.mix)))

    def __call__(self, step: int) -> Batch:
        """The tokens of a step, (batch x tokens, dim): first those of photographs, then as many generated."""
        rng = np.random.default_rng((self._seed, step))
        out = []
        for images, p in self._pools:
            for index in rng.choice(len(images), self._images, p=p):
                tokens = images[index][rng.integers(len(images[index]))]
                out.append(tokens[torch.from_numpy(rng.integers(len(tokens), size=self._tokens))])
        inputs = torch.cat(out).float()
        return Batch(inputs, (torch.arange(len(inputs)) >= len(inputs) // 2).float())


def candidates(photographs: Sequence[Tensor], size: int, seed: int = 0) -> Tensor:
    """Tokens that a bank may be chosen among.

    Args:
        photographs: Tokens of views of real images, each (n, dim).
        size: Of the bank.
        seed: Of the choice among too many.

    Returns:
        (m, dim), m at most `CANDIDATES`.

    Raises:
        DatasetError: There are fewer than ``size``.
    """
    found = torch.cat([tokens[:: max(1, len(tokens) // EACH)] for tokens in photographs])
    if len(found) < size:
        raise DatasetError(
            f"a bank of {size} patches wants more photographs: they have {len(found)}",
            hint=f"--set network.head.bank={len(found)}, or more data",
        )
    if len(found) > CANDIDATES:
        found = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:CANDIDATES]]
    return found


def banked(head: SignatureHead, tokens: Tensor, rule: BankRule, *, half: bool) -> SignatureHead:
    """A copy of the head with a bank chosen for it.

    Args:
        head: Its bank is not looked at.
        tokens: See `candidates`.
        rule: See `choose_bank`.
        half: Whether everything is rounded to half precision first, as it will be shipped.
    """
    made = copy.deepcopy(head).eval().requires_grad_(False)
    place = made.bank.device
    with torch.no_grad():
        signatures = torch.cat([made.phi(part.to(place).float()) for part in tokens.split(8192)])
        bank = choose_bank(signatures, len(made.bank), made.bandwidth, rule)
        if half:
            made.half().float()
            bank = bank.half().float()
        made.set_bank(bank)
    return made


def choose_bank(signatures: Tensor, size: int, bandwidth: Tensor, rule: BankRule, seed: int = 0) -> Tensor:
    """Pick ``size`` of the real signatures (n, d).

    Args:
        signatures: Of real training patches.
        size: N.
        bandwidth: s, for herding.
        rule: ``random``; ``kmeans``, the centres of N clusters; or ``herding``, one after the other so that the
            chosen ones' kernel mean stays as near as can be to that of all.
        seed: Of the draws.
    """
    order = torch.randperm(len(signatures), generator=torch.Generator().manual_seed(seed)).to(signatures.device)
    if rule == "random":
        return signatures[order[:size]].clone()
    if rule == "kmeans":
        centres = signatures[order[:size]].clone()
        for _ in range(20):
            nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in signatures.split(8192)])
            counts = torch.bincount(nearest, minlength=size)
            sums = torch.zeros_like(centres).index_add_(0, nearest, signatures)
            filled = counts > 0
            centres[filled] = sums[filled] / counts[filled, None]
        return centres
    pool = signatures[order[: 8 * size]]
    target = mean_kernel(pool, signatures, bandwidth)
    total = torch.zeros_like(target)
    free = torch.ones_like(target, dtype=torch.bool)
    chosen = []
    for count in range(size):
        gain = torch.where(free, target - total / (count + 1), -torch.inf)
        index = int(gain.argmax())
        chosen.append(index)
        free[index] = False
        total += kernel(pool, pool[index : index + 1], bandwidth)[:, 0]
    return pool[chosen].clone()


def score_sets(head: SignatureHead, sets: Sequence[Tensor]) -> NDArray[np.float64]:
    """MMD^2 of every image's tokens, (n, dim) each: (len(sets),)."""
    place = head.bank.device
    with torch.inference_mode():
        return np.array([head(tokens.to(place).float()[None]).item() for tokens in sets])

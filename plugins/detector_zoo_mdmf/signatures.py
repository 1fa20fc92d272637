"""Learning the signature head on cached tokens: phi and the bandwidth, the bank, the calibration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detector_zoo_mdmf.mmd import SignatureHead, criterion, kernel, mean_kernel

__all__ = ["BankRule", "TokenSet", "choose_bank", "platt", "score_sets", "train_head"]

BankRule = Literal["random", "kmeans", "herding"]


@dataclass(frozen=True, slots=True)
class TokenSet:
    """The tokens of one image.

    Attributes:
        tokens: (n, dim).
        generated: Its class.
        group: What the image is sampled by, the collection that it comes from.
    """

    tokens: Tensor
    generated: bool
    group: str


class _Pool:
    """Draws tokens of one class, groups alike, images of a group alike."""

    def __init__(self, sets: Sequence[TokenSet], generated: bool) -> None:
        groups: dict[str, list[Tensor]] = defaultdict(list)
        for item in sets:
            if item.generated == generated:
                groups[item.group].append(item.tokens)
        self.groups = [groups[name] for name in sorted(groups)]

    def draw(self, images: int, tokens: int, rng: np.random.Generator) -> Tensor:
        out = []
        for index in rng.integers(len(self.groups), size=images):
            group = self.groups[index]
            chosen = group[rng.integers(len(group))]
            out.append(chosen[torch.from_numpy(rng.integers(len(chosen), size=tokens))])
        return torch.cat(out).float()


def train_head(
    head: SignatureHead,
    sets: Sequence[TokenSet],
    *,
    steps: int,
    images: int = 64,
    tokens: int = 8,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    regulariser: float = 1e-2,
    seed: int = 0,
) -> float:
    """Maximise the test power J over phi and the bandwidth; the bank is not touched.

    Args:
        head: Trained in place.
        sets: Training images of both classes.
        steps: Of Adam.
        images: Images a step, of each class.
        tokens: Tokens an image.
        learning_rate: Falls to 0 along a cosine.
        weight_decay: Of phi.
        regulariser: lambda of J.
        seed: Of the draws.

    Returns:
        J, averaged over the last 100 steps.
    """
    rng = np.random.default_rng(seed)
    real, fake = _Pool(sets, False), _Pool(sets, True)
    parameters = [*head.phi.parameters(), head.log_bandwidth]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    head.train()
    recent: list[float] = []
    for _ in range(steps):
        p, q = (head.phi(pool.draw(images, tokens, rng)) for pool in (real, fake))
        power = criterion(p, q, head.bandwidth, regulariser)
        optimiser.zero_grad(set_to_none=True)
        (-power).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        recent = [*recent[-99:], power.item()]
    head.eval()
    return float(np.mean(recent))


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
    generator = torch.Generator().manual_seed(seed)
    if rule == "random":
        return signatures[torch.randperm(len(signatures), generator=generator)[:size]].clone()
    if rule == "kmeans":
        centres = signatures[torch.randperm(len(signatures), generator=generator)[:size]].clone()
        for _ in range(20):
            nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in signatures.split(8192)])
            counts = torch.bincount(nearest, minlength=size)
            sums = torch.zeros_like(centres).index_add_(0, nearest, signatures)
            filled = counts > 0
            centres[filled] = sums[filled] / counts[filled, None]
        return centres
    pool = signatures[torch.randperm(len(signatures), generator=generator)[: 8 * size]]
    target = mean_kernel(pool, signatures, bandwidth)
    total = torch.zeros(len(pool))
    free = torch.ones(len(pool), dtype=torch.bool)
    chosen = []
    for count in range(size):
        gain = torch.where(free, target - total / (count + 1), torch.tensor(-torch.inf))
        index = int(gain.argmax())
        chosen.append(index)
        free[index] = False
        total += kernel(pool, pool[index : index + 1], bandwidth)[:, 0]
    return pool[chosen].clone()


def score_sets(head: SignatureHead, sets: Sequence[TokenSet]) -> NDArray[np.float64]:
    """MMD^2 of every image, (len(sets),)."""
    with torch.inference_mode():
        return np.array([head(item.tokens.float()[None]).item() for item in sets])


def platt(raw: NDArray[np.float64], generated: NDArray[np.bool_], iterations: int = 100) -> tuple[float, float]:
    """Scale and offset that make ``scale * raw + offset`` log-odds at equal class frequencies.

    Logistic regression by Newton's method on Platt's smoothed targets, the classes weighted alike.
    """
    positive, negative = int(generated.sum()), int((~generated).sum())
    target = np.where(generated, (positive + 1) / (positive + 2), 1 / (negative + 2))
    weight = np.where(generated, 0.5 / positive, 0.5 / negative)
    design = np.stack([raw, np.ones_like(raw)], axis=1)
    theta = np.zeros(2)
    for _ in range(iterations):
        predicted = 1 / (1 + np.exp(-np.clip(design @ theta, -30, 30)))
        gradient = design.T @ (weight * (predicted - target))
        hessian = (design * (weight * predicted * (1 - predicted))[:, None]).T @ design + 1e-9 * np.eye(2)
        theta -= np.linalg.solve(hessian, gradient)
    return float(theta[0]), float(theta[1])

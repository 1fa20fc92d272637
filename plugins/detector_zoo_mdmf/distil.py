"""Teaching the lite embedder: its map onto a transformer's tokens, by ridge regression in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detector_zoo_mdmf.distilled import DistilledEmbedder

__all__ = ["Targets", "fit_map"]


@dataclass(frozen=True, slots=True)
class Targets:
    """A teacher's tokens as they are learnt: standardised, along their first principal axes.

    Attributes:
        centre: Mean of the teacher's numbers, (D,).
        spread: Their standard deviation.
        axes: (D, dim), orthonormal.
        deviation: Standard deviation along each axis, (dim,).
    """

    centre: Tensor
    spread: Tensor
    axes: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, taught: Sequence[Tensor], dim: int) -> Targets:
        """From every fifth grid (D, h, w) of those to learn from."""
        sample = torch.cat([_tokens(grid) for grid in taught[::5]])
        centre, spread = sample.mean(0), sample.std(0) + 1e-4
        scaled = (sample - centre) / spread
        values, axes = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
        return cls(centre, spread, axes.flip(1)[:, :dim], values.flip(0)[:dim].clamp_min(1e-8).sqrt())

    def __call__(self, taught: Tensor) -> Tensor:
        """A grid (D, h, w) to (dim, h, w), single precision."""
        along: Tensor = ((_tokens(taught) - self.centre) / self.spread @ self.axes).T
        return along.reshape(-1, *taught.shape[1:])


def _tokens(grid: Tensor) -> Tensor:
    """(C, h, w) to (h w, C), single precision."""
    return grid.float().flatten(1).T


def fit_map(embedder: DistilledEmbedder, views: Sequence[tuple[Tensor, Tensor]], ridge: float) -> float:
    """Fit what ``embedder`` makes of its cells to the teacher's tokens, in place.

    The targets are the teacher's standardised numbers along their first principal axes. The fitted map's outputs are
    then scaled to a mean of 0 and a variance of 1 each.

    Args:
        embedder: Its statistics and its map are set; the trunk stays.
        views: To learn from, tile by tile: what `DistilledEmbedder.cells` makes of it, (C, h, w), and the teacher's
            tokens on the same grid, (D, h, w).
        ridge: Squared length of the map's columns weighs this much, against one for a token's squared error.

    Returns:
        Share of the targets' variance that the map explains, on the views it was fitted to.
    """
    cells = torch.cat([_tokens(own) for own, _ in views[::5]])
    embedder.mean.copy_(cells.mean(0))
    embedder.std.copy_(cells.std(0) + 1e-4)
    targets = Targets.of([taught for _, taught in views], embedder.dim)

    size = embedder.map.in_channels + 1
    gram, moment = torch.zeros(size, size), torch.zeros(size, embedder.dim)
    total, squares, count = torch.zeros(embedder.dim), torch.zeros(()), 0
    for start in range(0, len(views), 64):
        part = views[start : start + 64]
        x = torch.cat([_tokens(embedder.context(own.float()[None])[0]) for own, _ in part])
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        y = torch.cat([_tokens(targets(taught)) for _, taught in part])
        gram.addmm_(x.T, x)
        moment.addmm_(x.T, y)
        total, squares, count = total + y.sum(0), squares + y.square().sum(), count + len(y)
    penalty = ridge * torch.eye(size)
    penalty[-1, -1] = 0
    solved = torch.linalg.solve(gram + penalty, moment)

    # Sums of squares of what the map yields follow from the same moments.
    mean = (gram[-1] @ solved) / count
    explained = (solved * (2 * moment - gram @ solved)).sum() - total.square().sum() / count
    deviation = ((solved * (gram @ solved)).sum(0) / count - mean.square()).clamp_min(1e-8).sqrt()
    solved[-1] -= mean
    solved /= deviation
    with torch.no_grad():
        embedder.map.weight.copy_(solved[:-1].T[..., None, None])
        assert embedder.map.bias is not None  # noqa: S101 - for the type checker
        embedder.map.bias.copy_(solved[-1])
    return float(explained / (squares - total.square().sum() / count))

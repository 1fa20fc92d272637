"""The four networks of INP-X (arXiv 2602.00192), and how each is looked into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
from torch import Tensor, nn

from detector_zoo.errors import WeightsError
from detector_zoo.networks import attributions
from detector_zoo.networks.clip import build_tower, embedding_size

__all__ = ["HEATMAPS", "CLIPClassifier", "Convolutional", "Transformer", "View", "build", "view"]

HEATMAPS = ("gradcam", "rollout")


class CLIPClassifier(nn.Module):
    """CLIP's image tower and a linear layer on its embedding.

    Args:
        model: See `detector_zoo.networks.clip.build_tower`.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        self.visual = build_tower(model)
        self.fc = nn.Linear(embedding_size(model), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to logits, (N, 1)."""
        logits: Tensor = self.fc(self.visual(x))
        return logits


@dataclass(frozen=True, slots=True)
class Convolutional:
    """A network that averages its last maps over all positions.

    Attributes:
        pooling: What averages them.
        stride: Pixels from one position to the next; the first is centred on the first pixel.
    """

    pooling: nn.Module
    stride: int

    def heatmap(self, network: nn.Module, batch: Tensor) -> Tensor:
        """GradCAM of normalised images (N, 3, H, W), as large as they are: (N, H, W)."""
        height, width = batch.shape[-2:]
        found = attributions.grad_cam(lambda x: network(x)[:, 0], self.pooling, batch)
        return attributions.spread(found, height, width, self.stride, 0)


@dataclass(frozen=True, slots=True)
class Transformer:
    """A vision transformer that judges by its class token.

    Attributes:
        blocks: In order.
        normalisation: Name of the one that opens a block.
        patch: Pixels along a patch's side.
        rollout: Whether to follow the attention, or else the gradient in the last block.
    """

    blocks: Sequence[nn.Module]
    normalisation: str
    patch: int
    rollout: bool

    def heatmap(self, network: nn.Module, batch: Tensor) -> Tensor:
        """Rollout or GradCAM of normalised images (N, 3, H, W), as large as they are: (N, H, W)."""
        height, width = batch.shape[-2:]
        grid = (height // self.patch, width // self.patch)
        if self.rollout:
            found = attributions.rollout(network, self.blocks, batch, grid)
        else:
            layer = self.blocks[-1].get_submodule(self.normalisation)
            found = attributions.token_cam(lambda x: network(x)[:, 0], layer, batch, grid)
        return attributions.spread(found, height, width, self.patch, (self.patch - 1) / 2)


View = Convolutional | Transformer


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build the network that ``WeightSpec.config`` describes, untrained.

    Args:
        config: ``library``, ``timm`` or ``open_clip``; ``model``, the library's name of it; for timm ``arguments`` of
            the model, such as ``img_size`` of a transformer.

    Returns:
        Normalised images (N, 3, H, W) to logits, (N, 1).

    Raises:
        WeightsError: There is no such library or model.
    """
    library, model = config["library"], str(config["model"])
    if library == "open_clip":
        return CLIPClassifier(model)
    if library != "timm":
        raise WeightsError(f"config: library {library!r} is not timm, open_clip")
    if not timm.is_model(model):
        raise WeightsError(f"timm knows no model {model!r}")
    network: nn.Module = timm.create_model(model, pretrained=False, num_classes=1, **config.get("arguments", {}))
    return network


def view(network: Any, heatmap: str) -> View:
    """How to look into a network that `build` made.

    Args:
        network: It.
        heatmap: One of `HEATMAPS`.

    Raises:
        WeightsError: The network has no such heatmap.
    """
    if heatmap not in HEATMAPS:
        raise WeightsError(f"config: heatmap {heatmap!r} is not {', '.join(HEATMAPS)}")
    if isinstance(network, CLIPClassifier):
        tower: Any = network.visual
        return Transformer(list(tower.transformer.resblocks), "ln_1", tower.patch_size[0], heatmap == "rollout")
    if isinstance(network, timm.models.VisionTransformer):
        if network.global_pool != "token":
            raise WeightsError("config: model: a transformer has to judge by its class token")
        return Transformer(list(network.blocks), "norm1", network.patch_embed.patch_size[0], heatmap == "rollout")
    if heatmap == "rollout":
        raise WeightsError("config: heatmap: rollout follows attention, of which a convolutional network has none")
    if not hasattr(network, "global_pool"):
        raise WeightsError("config: model: neither a vision transformer nor a network with average pooling")
    return Convolutional(network.global_pool, network.feature_info[-1]["reduction"])

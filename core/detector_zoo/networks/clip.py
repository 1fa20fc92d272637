"""The image tower of CLIP (Radford et al., ICML 2021, arXiv 2103.00020) without the text tower."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detector_zoo.errors import WeightsError
from detector_zoo.networks.state import load_strictly

__all__ = ["build_tower", "embedding_size", "load_tower"]


def embedding_size(model: str) -> int:
    """Numbers in an image's embedding under one of open_clip's models, known by name and without building it.

    Raises:
        WeightsError: open_clip knows no such model.
    """
    return int(_config(model)["embed_dim"])


def build_tower(model: str) -> nn.Module:
    """An image tower of open_clip's, with tensors that nobody has filled yet.

    Args:
        model: One of open_clip's with a vision transformer of its own, e.g. ``ViT-L-14-quickgelu``. OpenAI's weights
            need ``-quickgelu``: x sigmoid(1.702 x) in the place of GELU, which fits as well and computes other numbers.

    Returns:
        Normalised images (N, 3, H, W) to embeddings (N, `embedding_size`): the class token after the last
        normalisation, projected, of no particular length. That is what CLIP's ``encode_image`` returns.

    Raises:
        WeightsError: open_clip knows no such model, or it is a network of another kind.
    """
    from open_clip import CLIPVisionCfg
    from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer

    config = _config(model)
    vision = config["vision_cfg"]
    plain = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "norm_kwargs"}
    if set(vision) - plain or not isinstance(vision["layers"], int):
        raise WeightsError(f"open_clip's {model} has no plain vision transformer")
    sizes = CLIPVisionCfg(**vision)
    # On the meta device nothing is drawn at random: every tensor will be loaded.
    with torch.device("meta"):
        tower: nn.Module = VisionTransformer(
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            width=sizes.width,
            layers=sizes.layers,
            heads=sizes.width // sizes.head_width,
            mlp_ratio=sizes.mlp_ratio,
            output_dim=embedding_size(model),
            act_layer=QuickGELU if config.get("quick_gelu") else nn.GELU,
            norm_layer=partial(LayerNorm, **(sizes.norm_kwargs or {})),
        )
    return tower.to_empty(device="cpu")


def load_tower(model: str, tensors: Mapping[str, Tensor], name: str) -> nn.Module:
    """Build an image tower and fill it, strictly.

    Args:
        model: See `build_tower`.
        tensors: In the layout of transformers' ``CLIPModel`` (``vision_model.*``, ``visual_projection.weight``) or of
            open_clip (``visual.*``, or the tower's own keys alone). Those of the text tower are not looked at.
        name: Of the weights, for messages.

    Raises:
        WeightsError: A tensor of the tower is missing, left over or of another shape.
    """
    tower = build_tower(model)
    if any(key.startswith("vision_model.") for key in tensors):
        found = _translated(tower, tensors, name)
    elif any(key.startswith("visual.") for key in tensors):
        found = {key.removeprefix("visual."): tensors[key] for key in tensors if key.startswith("visual.")}
    else:
        found = dict(tensors)
    load_strictly(tower, found, name)
    return tower


def _config(model: str) -> Mapping[str, Any]:
    import open_clip

    config: Mapping[str, Any] | None = open_clip.get_model_config(model)
    if config is None:
        raise WeightsError(f"open_clip knows no model {model!r}")
    return config


# open_clip's names, or parts of them, and transformers' for the same; their spelling of layrnorm.
_NAMES = (
    (r"^class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^ln_post\.", "vision_model.post_layernorm."),
    (r"^proj$", "visual_projection.weight"),
    (r"^transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_POSITIONS = "vision_model.embeddings.position_ids"
"""0, 1, 2, ...: older files carry it."""


def _translated(tower: nn.Module, tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors of the image tower by open_clip's keys; what transformers has and the tower has not keeps its key."""
    left = {key for key in tensors if key.startswith(("vision_model.", "visual_projection."))} - {_POSITIONS}
    found: dict[str, Tensor] = {}
    for key in tower.state_dict():
        theirs = key
        for pattern, replacement in _NAMES:
            theirs = re.sub(pattern, replacement, theirs)
        # Queries, keys and values are one matrix there and three here.
        parts = [theirs.replace("in_proj_", f"{part}_proj.") for part in "qkv"] if "in_proj_" in theirs else [theirs]
        for part in parts:
            if part not in tensors:
                raise WeightsError(f"{name}: expected tensor {part!r}, it is missing")
        left.difference_update(parts)
        same = [tensors[part] for part in parts]
        found[key] = torch.cat(same) if len(same) > 1 else same[0]
        if key == "proj":
            found[key] = found[key].T
    return found | {key: tensors[key] for key in sorted(left)}

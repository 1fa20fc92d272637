"""CLIP, small enough for a test: the same architecture under names of its own in open_clip, and in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

SIDE = 32
WIDTH = 32
"""Of the tokens and, so that a head can be put on the wrong one, of the embedding."""
NAME = "tiny-test-quickgelu"
GELU = "tiny-test"


def register(folder: Path) -> None:
    """Make `NAME` and `GELU` known to open_clip; ``folder`` has to stay as long as they are used."""
    folder.mkdir(exist_ok=True)
    vision = {"image_size": SIDE, "patch_size": 8, "width": WIDTH, "head_width": 8, "layers": 3}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    for name, quick in ((NAME, True), (GELU, False)):
        config = {"embed_dim": WIDTH, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": text}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def seeded(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A state dict for a module that depends on the seed alone: maps neither fade nor explode."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for key, value in sorted(module.state_dict().items()):
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if key.endswith("running_var"):
            found[key] = 1 + 0.5 * noise.abs()
        elif value.ndim >= 2:
            found[key] = noise * (2 / value[0].numel()) ** 0.5
        else:
            found[key] = 0.2 * noise + (1.0 if key.endswith("weight") else 0.0)
    return found


def theirs(seed: int = 0, **sizes: Any) -> Any:
    """transformers' ``CLIPModel`` with random weights and next to no text tower; tiny unless told otherwise."""
    from transformers import CLIPConfig, CLIPModel

    vision: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
        "hidden_act": "quick_gelu",
    }
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text["vocab_size"] = 64
    dim = sizes.pop("projection_dim", WIDTH)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision | sizes, projection_dim=dim))
    model.load_state_dict(seeded(model, seed), strict=False)
    return model.eval().requires_grad_(False)


def published(model: Any) -> dict[str, Tensor]:
    """The state dict as it lies on the Hub: with the position ids that newer versions leave out."""
    config = model.config.vision_config
    count = (config.image_size // config.patch_size) ** 2 + 1
    ids = {
        "vision_model.embeddings.position_ids": torch.arange(count)[None],
        "text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    return {key: value.contiguous() for key, value in model.state_dict().items() if "position_ids" not in key} | ids

"""The teacher that the lite embedder is taught by: CLIP ViT-B/16 (Radford et al., 2021), in training alone."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from detector_zoo_mdmf.embedder import VitEmbedder, load_strictly

__all__ = ["MEAN", "STD", "load_teacher"]

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalisation, RGB, on a scale of 0 to 1."""

_BLOCK_NAMES = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "transformer.resblocks": "blocks",
    "ln_pre": "norm_pre",
    "ln_post": "norm",
    "conv1": "patch_embed.proj",
}


def load_teacher(path: Path, block: int, patch: int) -> VitEmbedder:
    """Load CLIP's image tower.

    Args:
        path: safetensors of open_clip's ``ViT-B-16-quickgelu`` visual tower, with its names.
        block: Whose tokens it gives.
        patch: Pixels of its input that a token is pooled over.

    Raises:
        WeightsError: The file holds something else.
    """
    embedder = VitEmbedder("vit_base_patch16_clip_quickgelu_224", img_size=224, patch=patch, block=block)
    state: dict[str, Tensor] = {}
    for key, value in load_file(path).items():
        if key == "class_embedding":
            state["cls_token"] = value[None, None]
        elif key == "positional_embedding":
            state["pos_embed"] = value[None]
        elif key != "proj":
            for theirs, ours in _BLOCK_NAMES.items():
                key = key.replace(theirs, ours)
            state[key] = value
    load_strictly(embedder.vit, state, path.name)
    return embedder.eval().requires_grad_(False)

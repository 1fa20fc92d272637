"""Train signatures on a frozen vision transformer, DINOv2 as in the paper, whose file the user brings.

::

    python -m detector_zoo_mdmf.vit_training --weights mdmf.dinov2_s14 --backbone model.safetensors \
        --data ../shared/data --out run/
    zoo weights import mdmf.mine run/dinov2_s14.safetensors --like mdmf.dinov2_s14

The registry's entry says what is built and how images are prepared. Only the head is written: phi, the bandwidth and
the bank. Scores of imported weights are raw MMD^2 unless a catalogue repeats the calibration, which is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from detector_zoo.registry import lookup
from detector_zoo_mdmf.distilled import build_embedder
from detector_zoo_mdmf.embedder import VitEmbedder, load_strictly
from detector_zoo_mdmf.manifest import Row, calibration_slice, read_manifest, selection_slice
from detector_zoo_mdmf.signatures import TokenSet, score_sets
from detector_zoo_mdmf.tiles import Tiling
from detector_zoo_mdmf.training import Recipe, calibrate, fit_head, print_slice
from detector_zoo_mdmf.views import versions

__all__ = ["train_vit"]

TOKENS = 64
"""Most tokens kept of a view that is learnt from; slices are scored on all of theirs."""


def train_vit(
    name: str, backbone: Path, data: Path, out: Path, *, recipe: Recipe | None = None, select: bool = False
) -> Path:
    """Learn the signature head of a configuration on a transformer.

    Args:
        name: Of weights in the registry, e.g. ``mdmf.dinov2_l14``; their ``config`` and ``preprocessing`` are used.
        backbone: safetensors of the transformer, with timm's names.
        data: Folder with ``manifest.csv``.
        out: Folder for the result.
        recipe: ``laundered``, ``head_steps``, ``head_rate``, ``bank_rule``, ``inconclusive`` and ``seed`` count.
        select: Keep the selection slice out, instead of the calibration slice.

    Returns:
        Path of the head's safetensors.

    Raises:
        WeightsError: The file does not fit, or the registry's entry is of no transformer.
    """
    spec = lookup(name)
    embedder = build_embedder(spec.config["embedder"])
    if not isinstance(embedder, VitEmbedder):
        raise TypeError(f"{name} is not built on a transformer")
    load_strictly(embedder.vit, load_file(backbone), backbone.name, ignore=("mask_token",))
    embedder.eval().requires_grad_(False)
    tiling = Tiling.from_preprocessing(spec.preprocessing, embedder.patch, embedder.unit)
    shape = dict(spec.config["head"])
    recipe = replace(recipe or Recipe(), hidden=tuple(shape["hidden"]), dim=shape["dim"], bank=shape["bank"])
    kept_out = selection_slice if select else calibration_slice
    generator = torch.Generator().manual_seed(recipe.seed)
    learn: list[TokenSet] = []
    judge: list[TokenSet] = []
    for row in read_manifest(data, "train"):
        for tokens in _tokens(embedder, tiling, row, 0 if kept_out(row) else recipe.laundered):
            few = tokens if kept_out(row) else tokens[torch.randperm(len(tokens), generator=generator)[:TOKENS]]
            (judge if kept_out(row) else learn).append(TokenSet(few.half(), row.generated, row.source))
    head = fit_head(recipe, embedder.dim, learn)
    raw = score_sets(head, judge)
    print_slice("slice", raw, judge)
    print(calibrate(raw, judge, recipe.inconclusive))
    head.set_bank(head.bank)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{spec.tag}.safetensors"
    save_file({key: value.contiguous() for key, value in head.state_dict().items()}, path)
    return path


def _tokens(embedder: VitEmbedder, tiling: Tiling, row: Row, laundered: int) -> list[torch.Tensor]:
    """Tokens of an image's versions, each (n, dim)."""
    found = []
    for version in versions(row, laundered):
        with torch.inference_mode():
            grid = embedder(tiling.spread(version).unflatten(0, (-1, 3)))
        found.append(grid.flatten(2).transpose(1, 2).flatten(0, 1).clone())
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train MDMF's signatures on a frozen transformer.")
    parser.add_argument("--weights", required=True, help="the configuration, e.g. mdmf.dinov2_l14")
    parser.add_argument("--backbone", type=Path, required=True, help="safetensors of the transformer, timm's names")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder for the head")
    parser.add_argument("--select", action="store_true", help="keep the selection slice out, not the calibration slice")
    parser.add_argument("--laundered", type=int, default=Recipe().laundered, help="views an image beside the equalised")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    options = parser.parse_args(argv)
    recipe = Recipe(laundered=options.laundered, seed=options.seed)
    print(train_vit(options.weights, options.backbone, options.data, options.out, recipe=recipe, select=options.select))


if __name__ == "__main__":
    main()

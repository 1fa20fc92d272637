"""Train the lite weights from nothing but the data set and the tiny autoencoder.

::

    python -m detector_zoo_mdmf.training --data ../shared/data --weights-dir ../shared/weights --out run/

Stages, each kept in the work folder and skipped when its file is there: aligned pairs, embedder, tokens, signature
head. The result is ``lite.safetensors`` and ``lite.yaml``, the fields of its `WeightSpec`.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from detector_zoo.evaluation.metrics import bootstrap
from detector_zoo_mdmf.cache import pair_sets, row_sets
from detector_zoo_mdmf.embedder import ConvEmbedder
from detector_zoo_mdmf.embedding import pretrained_stages, train_embedder
from detector_zoo_mdmf.manifest import Row, calibration_slice, read_manifest, selection_slice
from detector_zoo_mdmf.mmd import SignatureHead
from detector_zoo_mdmf.model import Network
from detector_zoo_mdmf.pairs import Pair, make_pairs
from detector_zoo_mdmf.samples import Sampler
from detector_zoo_mdmf.signatures import BankRule, TokenSet, choose_bank, platt, score_sets, train_head
from detector_zoo_mdmf.tiles import Tiling

__all__ = ["Recipe", "train"]

PREPROCESSING: dict[str, Any] = {
    "exif_orientation": "ignore",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "tile": 384,
    "grid": 2,
    "shrink": 1.5,
    "jpeg_quality": 80,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every number that the weights depend on, besides the data.

    Attributes:
        stages: Of the embedder.
        stem_stride: Of the embedder.
        pool: Of its tokens.
        size: Side of the crops that the embedder learns from.
        level: Whether (1 or 0) those crops are levelled as the detector's tiles are, or left at native resolution.
        pair_photos: Photographs, drawn at random, that aligned pairs are made of.
        pairs: Aligned pairs a batch.
        photos: Single photographs a batch.
        generated: Single generated images a batch.
        steps: Batches.
        learning_rate: Of the embedder.
        hidden: Widths of phi.
        dim: Of a signature.
        bank: Signatures in the bank.
        bank_rule: How they are chosen.
        head_steps: Of phi's training.
        head_rate: Its learning rate.
        pair_weight: How often a group of pair tokens is drawn, beside 1 for a collection of the data set.
        inconclusive: Half-width, in log-odds, of the band where no class is named.
        seed: Of everything.
    """

    stages: int = 5
    stem_stride: int = 2
    pool: int = 1
    size: int = 128
    level: int = 1
    pair_photos: int = 290
    pairs: int = 4
    photos: int = 13
    generated: int = 13
    steps: int = 1500
    learning_rate: float = 2e-3
    hidden: tuple[int, ...] = (128,)
    dim: int = 32
    bank: int = 1024
    bank_rule: BankRule = "herding"
    head_steps: int = 800
    head_rate: float = 3e-3
    pair_weight: float = 0.15
    inconclusive: float = 0.5
    seed: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """`WeightSpec.config` of the weights."""
        return {
            "embedder": {
                "kind": "conv",
                "stages": self.stages,
                "stem_stride": self.stem_stride,
                "pool": self.pool,
            },
            "head": {"hidden": list(self.hidden), "dim": self.dim, "bank": self.bank},
        }


def train(
    data: Path,
    out: Path,
    *,
    weights_dir: Path,
    recipe: Recipe | None = None,
    select: bool = False,
    workers: int = 1,
) -> Path:
    """Run every stage.

    Args:
        data: Folder with ``manifest.csv``.
        out: Work folder.
        weights_dir: Folder of the tiny autoencoder's files.
        recipe: By default the shipped weights' own.
        select: Keep the selection slice out, whole collections and generators, instead of the calibration slice.
        workers: Processes that launder images.

    Returns:
        Path of ``lite.safetensors``.
    """
    recipe = recipe or Recipe()
    rows = read_manifest(data, "train")
    kept_out = selection_slice if select else calibration_slice
    learn, judge = [r for r in rows if not kept_out(r)], [r for r in rows if kept_out(r)]
    out.mkdir(parents=True, exist_ok=True)
    photos = [row for row in rows if not row.generated]
    random.Random(recipe.seed).shuffle(photos)  # noqa: S311 - nothing here is a secret
    pairs = make_pairs(photos[: recipe.pair_photos], weights_dir, out / "pairs")
    judged = {row.sha256 for row in judge}
    folder = out / ("select" if select else "final")
    folder.mkdir(exist_ok=True)
    pairs_learn = [pair for pair in pairs if pair.row not in judged]
    pairs_judge = [pair for pair in pairs if pair.row in judged]

    embedder = _embedder(recipe, learn, pairs_learn, folder, workers)
    tiling = Tiling.from_preprocessing(PREPROCESSING, embedder.stride * embedder.pool)
    tokens = _cached(folder / "tokens.pt", lambda: _token_sets(embedder, tiling, learn, pairs_learn))
    slice_sets = _cached(folder / "slice.pt", lambda: list(row_sets(embedder, tiling, judge, 1, 0, None)))
    slice_pairs = _cached(folder / "slice_pairs.pt", lambda: list(pair_sets(embedder, tiling, pairs_judge[:40], None)))

    head = fit_head(recipe, embedder.dim, tokens)
    raw = score_sets(head, slice_sets)
    generated = np.array([bool(item.generated[0] > 0.5) for item in slice_sets])
    _print_slice(raw, generated, slice_sets, score_sets(head, slice_pairs), slice_pairs)
    scale, offset = platt(raw, generated)
    calibration = {
        "scale": round(scale, 4),
        "offset": round(offset, 4),
        "fitted_on": (
            f"{int((~generated).sum())} photographs and {int(generated.sum())} generated images of the train split "
            "that the network did not learn from, formats equalised, classes weighted alike"
        ),
        "inconclusive": recipe.inconclusive,
    }
    return write(Network(embedder, head), recipe, calibration, folder)


def _embedder(recipe: Recipe, rows: Sequence[Row], pairs: Sequence[Pair], folder: Path, workers: int) -> ConvEmbedder:
    embedder = ConvEmbedder(recipe.stages, recipe.stem_stride)
    path = folder / "embedder.pt"
    if path.exists():
        embedder.load_state_dict(torch.load(path, weights_only=True))
    else:
        pretrained_stages(embedder)
        counts = (recipe.pairs, recipe.photos, recipe.generated)
        levelling = {} if recipe.level else {"shrink": 1.0, "jpeg_quality": None}
        tiling = Tiling.from_preprocessing(PREPROCESSING | levelling, embedder.stride * recipe.pool)
        sampler = Sampler(rows, pairs, tiling, size=recipe.size, stride=embedder.stride, counts=counts)
        train_embedder(
            embedder,
            sampler,
            PREPROCESSING,
            steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            workers=workers,
            seed=recipe.seed,
        )
        torch.save(embedder.state_dict(), path)
    embedder.pool = recipe.pool
    # What is kept are half-precision numbers: signatures are learnt on the tokens that those give.
    kept = embedder.half().float().eval().requires_grad_(False)
    return kept.to(memory_format=torch.channels_last)


def _token_sets(embedder: ConvEmbedder, tiling: Tiling, rows: Sequence[Row], pairs: Sequence[Pair]) -> list[TokenSet]:
    sets = list(row_sets(embedder, tiling, rows, 1, 1, 64))
    return sets + list(pair_sets(embedder, tiling, pairs[:100], 64))


def _cached(path: Path, make: Any) -> list[TokenSet]:
    """Token sets from ``path``, or made and written there."""
    if not path.exists():
        start = time.monotonic()
        sets: Iterable[TokenSet] = make()
        torch.save([(item.tokens, item.generated, item.group) for item in sets], path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)
    return [TokenSet(*fields) for fields in torch.load(path, weights_only=True)]


def fit_head(recipe: Recipe, inputs: int, tokens: Sequence[TokenSet]) -> SignatureHead:
    """Learn phi and the bandwidth, then choose the bank among the photographs' patches."""
    torch.manual_seed(recipe.seed)
    head = SignatureHead(inputs, recipe.hidden, recipe.dim, recipe.bank)
    weights = {item.group: recipe.pair_weight for item in tokens if item.group.startswith("pair")}
    power = train_head(
        head,
        tokens,
        steps=recipe.head_steps,
        learning_rate=recipe.head_rate,
        weights=weights,
        seed=recipe.seed,
    )
    print(f"J = {power:.2f}, bandwidth {head.bandwidth.item():.2f}")
    head.requires_grad_(False)
    head.set_bank(choose_bank(_photo_signatures(head, tokens), recipe.bank, head.bandwidth, recipe.bank_rule))
    return head.half().float()


def _photo_signatures(head: SignatureHead, tokens: Sequence[TokenSet], per_image: int = 16) -> Tensor:
    """Signatures of a few patches of every photograph, so that no large collection fills the bank alone."""
    photos = [item for item in tokens if not item.group.startswith("pair") and item.generated[0] < 0.5]
    signatures: Tensor = head.phi(torch.cat([item.tokens[:per_image] for item in photos]).float())
    return signatures


def _print_slice(
    raw: np.ndarray[Any, Any],
    generated: np.ndarray[Any, Any],
    sets: Sequence[TokenSet],
    pair_raw: np.ndarray[Any, Any],
    pairs: Sequence[TokenSet],
) -> None:
    """AUROC on the slice, and by the generated images' collection."""
    print(f"slice: AUROC {bootstrap(generated, raw)} ({(~generated).sum()} real, {generated.sum()} generated)")
    groups = np.array([item.group for item in sets])
    for group in sorted(set(groups[generated])):
        chosen = ~generated | (groups == group)
        print(f"  {group}: {bootstrap(generated[chosen], raw[chosen])} ({(groups == group).sum()} generated)")
    groups = np.array([item.group for item in pairs])
    for group in sorted(set(groups) - {"pair original"}):
        chosen = (groups == group) | (groups == "pair original")
        print(f"  {group}: {bootstrap(groups[chosen] == group, pair_raw[chosen])}")


def write(network: Network, recipe: Recipe, calibration: dict[str, Any], folder: Path) -> Path:
    """Write the tensors in half precision, and the fields of their spec beside them.

    Normalisation statistics, the bandwidth and the bank's own term stay in single precision: they are few, and the
    score is a difference of means that they would shift as a whole.
    """
    from safetensors.torch import save_file

    path = folder / "lite.safetensors"
    single = ("running_mean", "running_var", "log_bandwidth", "bank_term")
    head = network.head
    head.set_bank(head.bank)
    tensors = {
        key: (value if key.endswith(single) else value.half()).contiguous()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    save_file(tensors, path)
    content = path.read_bytes()
    spec = {
        "name": "mdmf.lite",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "format": "safetensors",
        "config": recipe.config,
        "preprocessing": PREPROCESSING,
        "threshold": 0.0,
        "calibration": calibration,
    }
    (folder / "lite.yaml").write_text(yaml.safe_dump(spec, sort_keys=False, width=120), encoding="utf-8")
    print(f"{path}: {len(content)} bytes")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; every field of `Recipe` is an option."""
    parser = argparse.ArgumentParser(description="Train mdmf.lite.")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--weights-dir", type=Path, required=True, help="folder of taef2_encoder.pth and _decoder.pth")
    parser.add_argument("--out", type=Path, required=True, help="work folder; stages found there are not repeated")
    parser.add_argument("--select", action="store_true", help="keep the selection slice out, not the calibration slice")
    parser.add_argument("--workers", type=int, default=1, help="processes that launder images")
    for name, value in asdict(Recipe()).items():
        if not isinstance(value, tuple):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args(argv))
    paths = {name: options.pop(name) for name in ("data", "out", "weights_dir", "select", "workers")}
    train(recipe=Recipe(**options), **paths)


if __name__ == "__main__":
    main()

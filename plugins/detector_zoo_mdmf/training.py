"""Train the lite weights from nothing but the data set and CLIP, the teacher.

::

    python -m detector_zoo_mdmf.training --data ../shared/data --teacher clip_vit_b16_visual.safetensors --out run/

Views of every training image, with what the frozen networks make of them, are computed once and kept in the work
folder. The rest takes a minute: the embedder's map onto the teacher's tokens, the signature head, the calibration. The
result is ``lite.safetensors`` and ``lite.yaml``, the fields of its `WeightSpec`.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from detector_zoo.evaluation.metrics import bootstrap
from detector_zoo_mdmf.distil import fit_map, pretrained_stages
from detector_zoo_mdmf.distilled import DistilledEmbedder
from detector_zoo_mdmf.manifest import Row, calibration_slice, read_manifest, selection_slice
from detector_zoo_mdmf.mmd import SignatureHead
from detector_zoo_mdmf.model import Network
from detector_zoo_mdmf.signatures import BankRule, TokenSet, choose_bank, platt, score_sets, train_head
from detector_zoo_mdmf.teacher import load_teacher
from detector_zoo_mdmf.tiles import Tiling
from detector_zoo_mdmf.views import View, make_views

__all__ = ["Recipe", "calibrate", "fit_head", "print_slice", "train"]

TEACHER = "clip_vit_b16_visual.safetensors"

PREPROCESSING: dict[str, Any] = {
    "exif_orientation": "ignore",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "tile": 384,
    "grid": 2,
    "shrink": 2.0,
    "jpeg_quality": 70,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every number that the weights depend on, besides the data.

    Attributes:
        stages: Of the embedder's trunk.
        block: Of the teacher, whose tokens are learnt.
        outputs: Of the embedder: how many principal axes of those tokens.
        ridge: Weight of the map's squared length.
        laundered: Views of every image beside the equalised one.
        hidden: Widths of phi.
        dim: Of a signature.
        bank: Signatures in the bank.
        bank_rule: How they are chosen.
        head_steps: Of phi's training.
        head_rate: Its learning rate.
        inconclusive: Half-width, in log-odds, of the band where no class is named.
        seed: Of everything.
    """

    stages: int = 6
    block: int = 6
    outputs: int = 128
    ridge: float = 3e3
    laundered: int = 2
    hidden: tuple[int, ...] = (128,)
    dim: int = 32
    bank: int = 1024
    bank_rule: BankRule = "herding"
    head_steps: int = 300
    head_rate: float = 3e-3
    inconclusive: float = 0.5
    seed: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """`WeightSpec.config` of the weights."""
        return {
            "embedder": {"kind": "distilled", "stages": self.stages, "outputs": self.outputs},
            "head": {"hidden": list(self.hidden), "dim": self.dim, "bank": self.bank},
        }


def train(
    data: Path,
    out: Path,
    *,
    teacher: Path,
    recipe: Recipe | None = None,
    select: bool = False,
    reference: bool = False,
) -> Path:
    """Run every stage.

    Args:
        data: Folder with ``manifest.csv``.
        out: Work folder.
        teacher: CLIP's image tower, see `load_teacher`.
        recipe: By default the shipped weights' own.
        select: Keep the selection slice out, whole collections and generators, instead of the calibration slice.
        reference: Learn signatures of the teacher's own tokens as well and print what they reach on the slice.

    Returns:
        Path of ``lite.safetensors``.
    """
    recipe = recipe or Recipe()
    torch.manual_seed(recipe.seed)
    rows = read_manifest(data, "train")
    kept_out = selection_slice if select else calibration_slice
    out.mkdir(parents=True, exist_ok=True)
    embedder = DistilledEmbedder(recipe.stages, recipe.outputs)
    pretrained_stages(embedder.trunk)
    # What is kept are half-precision numbers: everything after is learnt on what those give.
    embedder.trunk.half().float()
    embedder.eval().requires_grad_(False)
    views = _views(rows, embedder, teacher, recipe, out)
    by_hash = {row.sha256: row for row in rows}
    learn = [view for view in views if not kept_out(by_hash[view.row])]
    judge = [view for view in views if kept_out(by_hash[view.row]) and view.equalised]
    explained = fit_map(embedder, learn, recipe.ridge)
    print(f"map: {explained:.3f} of the variance of the teacher's tokens explained")
    embedder.map.half().float()

    def own(view: View) -> TokenSet:
        row = by_hash[view.row]
        with torch.inference_mode():
            grid = embedder.map(embedder.context(view.cells.float()[None]))[0]
        return TokenSet(grid.flatten(1).T.clone(), row.generated, row.source)

    if reference:
        _reference(recipe, learn, judge, by_hash)
    head = fit_head(recipe, embedder.dim, [own(view) for view in learn])
    slice_sets = [own(view) for view in judge]
    raw = score_sets(head, slice_sets)
    print_slice("slice", raw, slice_sets)
    calibration = calibrate(raw, slice_sets, recipe.inconclusive)
    folder = out / ("select" if select else "final")
    folder.mkdir(exist_ok=True)
    return write(Network(embedder, head), recipe, calibration, folder)


def _views(rows: Sequence[Row], embedder: DistilledEmbedder, teacher: Path, recipe: Recipe, out: Path) -> list[View]:
    """Views of all rows from the work folder, or made and written there."""
    path = out / f"views-{recipe.stages}-{recipe.block}-{recipe.laundered}.pt"
    if not path.exists():
        start = time.monotonic()
        tiling = Tiling.from_preprocessing(PREPROCESSING, embedder.patch)
        taught = load_teacher(teacher, recipe.block, embedder.patch)
        made: Iterable[View] = make_views(rows, embedder, taught, tiling, recipe.laundered)
        torch.save([(view.row, view.equalised, view.cells, view.teacher) for view in made], path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)
    return [View(*fields) for fields in torch.load(path, weights_only=True)]


def _reference(recipe: Recipe, learn: Sequence[View], judge: Sequence[View], rows: dict[str, Row]) -> None:
    """Signatures of the teacher's tokens, each number standardised: what a perfect pupil would reach."""
    sample = torch.cat([view.teacher.float().flatten(1).T for view in learn[::5]])
    centre, spread = sample.mean(0), sample.std(0) + 1e-4

    def taught(view: View) -> TokenSet:
        tokens = (view.teacher.float().flatten(1).T - centre) / spread
        return TokenSet(tokens.half(), rows[view.row].generated, rows[view.row].source)

    head = fit_head(recipe, len(centre), [taught(view) for view in learn])
    sets = [taught(view) for view in judge]
    print_slice("teacher's own tokens", score_sets(head, sets), sets)


def fit_head(recipe: Recipe, inputs: int, tokens: Sequence[TokenSet]) -> SignatureHead:
    """Learn phi and the bandwidth, then choose the bank among the photographs' patches."""
    torch.manual_seed(recipe.seed)
    head = SignatureHead(inputs, recipe.hidden, recipe.dim, recipe.bank)
    power = train_head(head, tokens, steps=recipe.head_steps, learning_rate=recipe.head_rate, seed=recipe.seed)
    print(f"J = {power:.2f}, bandwidth {head.bandwidth.item():.2f}")
    head.requires_grad_(False)
    # A few patches of every view, so that no large picture fills the bank alone; spread over it.
    photos = [item.tokens[:: max(1, len(item.tokens) // 8)] for item in tokens if not item.generated]
    signatures = head.phi(torch.cat(photos).float())
    head.set_bank(choose_bank(signatures, recipe.bank, head.bandwidth, recipe.bank_rule))
    return head.half().float()


def calibrate(raw: NDArray[np.float64], sets: Sequence[TokenSet], inconclusive: float) -> dict[str, Any]:
    """Fields of the `Calibration` that turns ``raw``, the scores of ``sets``, into log-odds."""
    generated = np.array([item.generated for item in sets])
    scale, offset = platt(raw, generated)
    return {
        "scale": round(scale, 4),
        "offset": round(offset, 4),
        "fitted_on": (
            f"{int((~generated).sum())} photographs and {int(generated.sum())} generated images of the train split "
            "that the network did not learn from, formats equalised, classes weighted alike"
        ),
        "inconclusive": inconclusive,
    }


def print_slice(name: str, raw: NDArray[np.float64], sets: Sequence[TokenSet]) -> None:
    """AUROC on the slice, and by the generated images' collection."""
    generated, groups = np.array([item.generated for item in sets]), np.array([item.group for item in sets])
    print(f"{name}: AUROC {bootstrap(generated, raw)} ({(~generated).sum()} real, {generated.sum()} generated)")
    for group in sorted(set(groups[generated])):
        chosen = ~generated | (groups == group)
        print(f"  {group}: {bootstrap(generated[chosen], raw[chosen])} ({(groups == group).sum()} generated)")


def write(network: Network, recipe: Recipe, calibration: dict[str, Any], folder: Path) -> Path:
    """Write the tensors in half precision, and the fields of their spec beside them.

    Normalisation statistics, the cells' own, the bandwidth and the bank's own term stay in single precision: they are
    few, and the score is a difference of means that they would shift as a whole.
    """
    from safetensors.torch import save_file

    path = folder / "lite.safetensors"
    single = ("running_mean", "running_var", "embedder.mean", "embedder.std", "log_bandwidth", "bank_term")
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
    parser.add_argument("--teacher", type=Path, help="CLIP ViT-B/16's image tower as safetensors of open_clip's names")
    parser.add_argument("--weights-dir", type=Path, help=f"folder of {TEACHER}, where --teacher does not name a file")
    parser.add_argument("--out", type=Path, required=True, help="work folder; views found there are not made again")
    parser.add_argument("--select", action="store_true", help="keep the selection slice out, not the calibration slice")
    parser.add_argument("--reference", action="store_true", help="measure the teacher's own tokens as well")
    for name, value in asdict(Recipe()).items():
        if isinstance(value, tuple):
            parser.add_argument(f"--{name}", type=int, nargs="*", default=value)
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args(argv))
    folder = options.pop("weights_dir")
    teacher = options.pop("teacher") or (folder / TEACHER if folder else None)
    if teacher is None:
        parser.error("--teacher or --weights-dir is needed")
    run = {name: options.pop(name) for name in ("data", "out", "select", "reference")}
    options["hidden"] = tuple(options["hidden"])
    train(teacher=teacher, recipe=Recipe(**options), **run)


if __name__ == "__main__":
    main()

"""`zoo train`: a method, a recipe and labelled images in, a folder of weights out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from detector_zoo.detector import Precision

INTERRUPTED = 130


@click.command("train")
@click.argument("method", metavar="METHOD[.TAG]")
@click.option(
    "--data",
    "places",
    multiple=True,
    required=True,
    metavar="DIR|MANIFEST",
    help="Labelled images: a folder, or a manifest. Repeatable.",
)
@click.option("--split", default="train", show_default=True, help="Of the manifests, what to train on; all for all.")
@click.option("--recipe", metavar="NAME", help="One of the method's own. [default: paper, the published one]")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML laid over the recipe, which it may name under base.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key: optimiser.lr=0.001.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="The run's folder: checkpoints, metrics.jsonl, curve.png and the weights. [default: runs/METHOD.TAG]",
)
@click.option("--base", metavar="NAME|DIR", help="Weights to start from, for methods that retrain a detector.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Go on from the last checkpoint in --out.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps", help="Where to compute.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the forward pass; a fixed seed gives the same weights in fp32 on a CPU.",
)
@click.option("--limit-minutes", type=click.FloatRange(0, min_open=True), help="End after so long, and keep the best.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every draw.")
@click.option("--workers", type=click.IntRange(0), default=1, show_default=True, help="Processes that prepare batches.")
def command(
    method: str,
    places: tuple[str, ...],
    split: str,
    recipe: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    out: Path | None,
    base: str | None,
    resume: bool,
    device: str,
    precision: Precision,
    limit_minutes: float | None,
    seed: int,
    workers: int,
) -> None:
    """Train a method, or go on training it.

    The weights are named METHOD.TAG, by default after the recipe. `zoo score --weights DIR` uses the folder. A run
    that was interrupted goes on from its last checkpoint when the same command is run again. For several GPUs:
    accelerate launch -m detector_zoo train ...
    """
    from detector_zoo.errors import DatasetError, UnknownDetectorError
    from detector_zoo.evaluation.datasets import read
    from detector_zoo.loading import import_target
    from detector_zoo.training import artifact, recipes
    from detector_zoo.training.job import Job
    from detector_zoo.training.splits import select

    name, _, tag = method.partition(".")
    info = artifact.info_of(name)
    if "train" not in info.capabilities:
        raise UnknownDetectorError(f"{name} cannot be trained", hint="zoo list --capability train")
    target: Any = import_target(info)
    found, values = recipes.load(recipes.folder_of(info), recipe, config, overrides)
    full = f"{name}.{tag or found}"
    wanted = None if split == "all" else split
    samples = [sample for place in places for sample in read(place)]
    if not samples:
        raise DatasetError(f"no image in {', '.join(places)}")
    job = Job(
        name=full,
        samples=tuple(select(samples, wanted)),
        recipe=found,
        values=values,
        out=out or Path("runs") / full,
        data=", ".join(Path(place).resolve().name for place in places) + f", split {split}",
        base=base,
        seed=seed,
        device=device,
        precision=precision,
        resume=resume,
        limit_minutes=limit_minutes,
        workers=workers,
    )
    try:
        folder = target.fit(job)
    except KeyboardInterrupt:
        click.echo(f"Interrupted; run the same command to go on from the last checkpoint in {job.out}", err=True)
        raise SystemExit(INTERRUPTED) from None
    record = json.loads((folder / artifact.RECORD_FILE).read_text("utf-8"))
    steps, auroc = record["steps"], record["metrics"]["all"]["AUROC"]
    click.echo(
        f"{full}: step {steps['kept']} of {steps['done']} kept, AUROC on the validation slice {auroc['value']:.3f} "
        f"[{auroc['low']:.3f}, {auroc['high']:.3f}]; ended because {record['ended']}",
        err=True,
    )
    if record["calibration"] is None:
        click.echo("Warning: not calibrated, on the calibration slice the scores do not tell the classes", err=True)
    click.echo(folder)

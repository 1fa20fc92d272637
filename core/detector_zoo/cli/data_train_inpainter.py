"""`zoo data train-inpainter`: a small inpainting network, a source of local edits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from detector_zoo.cli import data


@click.command("train-inpainter")
@data.set_options
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Safetensors, written at the end.",
)
@click.option("--steps", type=click.IntRange(1), default=1500, show_default=True, help="Of the optimiser.")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Crops a step.")
@click.option("--size", type=click.IntRange(64), default=128, show_default=True, help="Of the crops; a multiple of 8.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Photographs, the first by sha256.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every draw.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="bf16 is faster where the processor has it.",
)
@data.device_option
@data.skip_bad_option
def command(
    place: str,
    split: str | None,
    out: Path,
    steps: int,
    batch: int,
    size: int,
    limit: int | None,
    seed: int,
    precision: Literal["fp32", "bf16"],
    device: str,
    skip_bad: bool,
) -> None:
    """Train a small network to fill random masks in photographs.

    Without --split, the photographs of the split train are learnt from, and those of sets without splits. An
    interrupted run starts anew: it takes minutes.
    """
    if size % 8:
        raise click.UsageError("--size: must be a multiple of 8")
    from detector_zoo.errors import DatasetError
    from detector_zoo.loading import pick_device
    from detector_zoo.training.crops import photographs
    from detector_zoo.training.inpainter import Settings, train_inpainter

    samples = data.read_set(place, split, skip_bad)
    if split is None:
        samples = [sample for sample in samples if sample.split in ("train", "")]
        if not samples:
            raise DatasetError(f"{place}: no split train", hint="name one by --split")
    bad = data.say if skip_bad else None
    photos = photographs(samples, bad)[:limit]
    settings = Settings(steps=steps, size=size, batch=batch, seed=seed, precision=precision)
    with data.tracking("training") as track:
        error = train_inpainter(photos, out, settings, device=pick_device(device), track=track, bad=bad)
    data.say(f"{len(photos)} photographs, mean absolute error inside the masks {error:.3f} of [0, 1]")
    click.echo(out)

"""`zoo data reconstruct`: aligned pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from detector_zoo.cli import data

if TYPE_CHECKING:
    from detector_zoo.training.autoencoder import Precision


@click.command("reconstruct")
@click.option("--autoencoder", "source", required=True, metavar="REPO|FILE|FOLDER", help="diffusers', or a tiny one.")
@data.autoencoder_options
@data.set_options
@data.out_option
@data.crop_options
@data.device_option
@data.workers_option
@data.skip_bad_option
def command(
    source: str,
    revision: str | None,
    subfolder: str,
    precision: Precision,
    place: str,
    split: str | None,
    out: Path,
    size: int,
    crops: int,
    limit: int | None,
    reduced: float,
    seed: int,
    device: str,
    workers: int,
    skip_bad: bool,
) -> None:
    """Make aligned pairs: crops of photographs, and what an autoencoder makes of them, pixel over pixel.

    The autoencoder is diffusers' AutoencoderKL or AutoencoderTiny, from the Hub or a folder, or the files of a tiny
    one of madebyollin/taesd. Nothing but safetensors, and .pth files of tensors, is read.
    """
    from detector_zoo.loading import pick_device
    from detector_zoo.training.autoencoder import load_autoencoder
    from detector_zoo.training.reconstruct import reconstruct

    model = load_autoencoder(
        source, revision=revision, subfolder=subfolder, device=pick_device(device), precision=precision
    )
    samples = data.read_set(place, split, skip_bad)
    with data.going_on(out), data.tracking("reconstructing") as track:
        done = reconstruct(
            samples,
            model,
            out,
            size=size,
            crops=crops,
            limit=limit,
            reduced=reduced,
            seed=seed,
            precision=precision,
            track=track,
            bad=data.say if skip_bad else None,
            workers=workers,
        )
    data.report(out, done)

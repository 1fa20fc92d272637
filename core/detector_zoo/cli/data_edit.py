"""`zoo data edit`: local edits, and splices as their control."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from detector_zoo.cli import data

if TYPE_CHECKING:
    from detector_zoo.training.autoencoder import Precision

KINDS = ("latent", "inpaint", "upscale", "splice")


@click.command("edit")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(KINDS),
    multiple=True,
    default=KINDS,
    show_default=True,
    help="Source of the edits. Repeatable.",
)
@click.option("--autoencoder", "source", metavar="REPO|FILE|FOLDER", help="For latent edits.")
@data.autoencoder_options
@click.option("--inpainter", type=click.Path(path_type=Path), metavar="FILE", help="From `zoo data train-inpainter`.")
@data.set_options
@data.out_option
@data.crop_options
@click.option(
    "--area",
    type=(click.FloatRange(0, 1, True, True), click.FloatRange(0, 1, True, True)),
    default=(0.05, 0.45),
    show_default=True,
    metavar="LOW HIGH",
    help="Range of the share of a crop that its mask covers.",
)
@click.option(
    "--feathered",
    type=click.FloatRange(0, 1),
    default=0.2,
    show_default=True,
    metavar="SHARE",
    help="Of the crops whose seams are softened by a 5x5 Gaussian.",
)
@data.device_option
@data.workers_option
@data.skip_bad_option
def command(
    kinds: tuple[str, ...],
    source: str | None,
    revision: str | None,
    subfolder: str,
    precision: Precision,
    inpainter: Path | None,
    place: str,
    split: str | None,
    out: Path,
    size: int,
    crops: int,
    limit: int | None,
    reduced: float,
    seed: int,
    area: tuple[float, float],
    feathered: float,
    device: str,
    workers: int,
    skip_bad: bool,
) -> None:
    """Edit photographs inside random masks: the whole image as a network made it, and its exchange.

    In an exchange the photograph's own pixels stand again outside the mask. All sources fill the same mask. A splice
    has another photograph's pixels in it: its label is real, and a detector that calls it generated answers to seams.
    """
    if "latent" in kinds and source is None:
        raise click.UsageError("latent edits need --autoencoder; name other kinds by --kind to do without")
    if "inpaint" in kinds and inpainter is None:
        raise click.UsageError("inpainting needs --inpainter; name other kinds by --kind to do without")
    if area[0] >= area[1]:
        raise click.UsageError("--area: the second number must be larger")
    from detector_zoo.loading import pick_device
    from detector_zoo.training.autoencoder import load_autoencoder
    from detector_zoo.training.edits import Plan, Tools, make_edits
    from detector_zoo.training.inpainter import load_inpainter
    from detector_zoo.training.upscaler import Upscaler

    device = pick_device(device)
    model = None
    if source is not None and "latent" in kinds:
        model = load_autoencoder(source, revision=revision, subfolder=subfolder, device=device, precision=precision)
    tools = Tools(
        autoencoder=model,
        inpainter=load_inpainter(inpainter, device) if inpainter is not None and "inpaint" in kinds else None,
        upscaler=Upscaler() if "upscale" in kinds else None,
        splices="splice" in kinds,
    )
    samples = data.read_set(place, split, skip_bad)
    with data.going_on(out), data.tracking("editing") as track:
        done = make_edits(
            samples,
            tools,
            out,
            Plan(size=size, area=area, feathered=feathered, reduced=reduced, seed=seed),
            crops=crops,
            limit=limit,
            precision=precision,
            track=track,
            bad=data.say if skip_bad else None,
            workers=workers,
        )
    data.report(out, done)

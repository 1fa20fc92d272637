"""`zoo data exchange`: the operator of INP-X on triples that are at hand."""

from __future__ import annotations

from pathlib import Path

import click

from detector_zoo.cli import data


@click.command("exchange")
@click.option(
    "--triples",
    "place",
    required=True,
    metavar="SET",
    help="Folder with original/, inpainted/ and mask/ of equal stems, or a manifest with original and mask.",
)
@click.option("--split", metavar="NAME", help="Only this split of the set.")
@data.out_option
@click.option(
    "--feather",
    type=click.Choice(["0", "5"]),
    default="0",
    show_default=True,
    help="0: outside the mask the original, bit for bit. 5: a 5x5 Gaussian softens the seam, as a control.",
)
@click.option("--generator", default="", metavar="NAME", help="What inpainted them, where the set does not say.")
@data.workers_option
@data.skip_bad_option
def command(
    place: str, split: str | None, out: Path, feather: str, generator: str, workers: int, skip_bad: bool
) -> None:
    """Put the original pixels back outside the mask of inpainted images (INP-X).

    Originals, inpainted and exchanged images are written with a manifest, so that training can mix the three.
    """
    from detector_zoo.training.triples import exchange_triples

    samples = data.read_set(place, split, skip_bad)
    with data.going_on(out), data.tracking("exchanging") as track:
        done = exchange_triples(
            samples,
            out,
            feather=int(feather),
            generator=generator,
            track=track,
            bad=data.say if skip_bad else None,
            workers=workers,
        )
    data.report(out, done)

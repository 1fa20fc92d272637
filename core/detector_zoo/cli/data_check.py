"""`zoo data check`: what a data set holds, and what in it would make a measurement lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from detector_zoo.evaluation.data_check import Check

SHOWN = 20


@click.command("check")
@click.argument("place", metavar="SET")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="What to print.",
)
@click.option("--absolute-paths", is_flag=True, help="Let a manifest's paths lead out of its folder.")
def command(place: str, layout: str, absolute_paths: bool) -> None:
    """Count a data set's images, formats and sizes, and find images that come twice.

    All splits are read. A leak makes the exit status 1: one content under two labels, or one content, one picture
    (perceptual hash) or one group in two splits. So does an image that cannot be used.
    """
    from detector_zoo.cli.data import progress
    from detector_zoo.evaluation.data_check import check
    from detector_zoo.evaluation.datasets import collect

    data = collect(place, absolute_paths=absolute_paths)
    found = check(data, watch=lambda samples: progress("reading")([*samples]))
    if layout == "json":
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        for line in _text(found):
            click.echo(line)
    if found.leaks or found.bad:
        click.echo(f"leaks: {len(found.leaks)}, images that cannot be used: {len(found.bad)}", err=True)
        raise SystemExit(1)


def _text(found: Check) -> Iterator[str]:
    from detector_zoo.cli.table import columns
    from detector_zoo.sources import printable

    yield columns(["LABEL", "SPLIT", "IMAGES"], [[a, b or "-", str(n)] for (a, b), n in found.images.items()])
    rows = []
    for label, counts in found.formats.items():
        low, first, middle, third, high = found.sizes[label]
        size, share = found.same_size[label]
        formats = ", ".join(f"{name} {n}" for name, n in counts.items())
        rows.append([label, f"{low}, {first}, {middle}, {third}, {high}", f"{size} ({share:.0%})", formats])
    yield ""
    yield columns(["LABEL", "SHORTER SIDE: MIN, QUARTILES, MAX", "COMMONEST SIZE", "FORMATS"], rows)
    if found.generators:
        yield ""
        rows = [[name or "(not named)", str(count)] for name, count in found.generators.items()]
        yield columns(["GENERATOR", "IMAGES"], rows[:SHOWN])
        if len(rows) > SHOWN:
            yield f"... and {len(rows) - SHOWN} more"
    yield ""
    for kind, what in (
        ("content", "same file"),
        ("picture", "same picture, by perceptual hash"),
        ("group", "one group"),
    ):
        pairs = [pair for pair in found.pairs if pair.kind == kind]
        across = {
            where: sum(pair.across == where for pair in pairs) for where in dict.fromkeys(p.across for p in pairs)
        }
        told = ", ".join(
            f"{n} {f'across {where}' if where else 'in one class and split'}" for where, n in across.items()
        )
        yield f"{what}: {told or 'none'}"
    for title, lines in (
        ("Leaks", [f"{p.kind} across {p.across}: {p.first} = {p.second}" for p in found.leaks]),
        ("Cannot be used", [f"{bad.name}: {bad.cause}" for bad in found.bad]),
    ):
        if lines:
            yield f"\n{title}:"
            yield from (f"  {printable(line)}" for line in lines[:SHOWN])
            if len(lines) > SHOWN:
                yield f"  ... and {len(lines) - SHOWN} more (--format json has all)"

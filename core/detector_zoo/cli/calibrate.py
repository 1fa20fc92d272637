"""`zoo calibrate`: a threshold that the user's own real photographs vouch for."""

from __future__ import annotations

from pathlib import Path

import click

from detector_zoo.cli import lock


@click.command("calibrate")
@click.option("-d", "--detector", required=True, metavar="NAME", help="method, method.tag or method.tag@variant.")
@click.option(
    "--weights",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder that zoo train made, in the place of weights from the catalogue.",
)
@click.option(
    "--real",
    "places",
    multiple=True,
    required=True,
    metavar="PATH",
    help="Real photographs like those that will be scored: files or folders. Repeatable.",
)
@click.option(
    "--fpr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Share of real photographs that may be called generated.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="JSON, for zoo score --calibration.",
)
@lock.option
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps", help="Where to compute.")
def command(
    detector: str, weights: Path | None, places: tuple[str, ...], fpr: float, output: Path, device: str
) -> None:
    """Fit a threshold on real photographs of your own, so that at most --fpr of further ones are called generated.

    That holds on average for photographs that come from where these do: the same cameras, the same processing. Copies
    of one file count once. Photographs that cannot be read are left out and named.
    """
    import hashlib
    import sys

    from detector_zoo import __version__, sources
    from detector_zoo.loading import load
    from detector_zoo.scoring import Options, run
    from detector_zoo.training import artifact, calibration

    loaded = (
        artifact.load_detector(weights, method=detector, device=device) if weights else load(detector, device=device)
    )
    scores: dict[str, float] = {}
    for rows in run(sources.walk(places, stdin=sys.stdin), [loaded], Options()):
        for row in rows:
            if row.error or row.log_odds is None:
                click.echo(f"{row.path}: {row.error}", err=True)
            else:
                scores[row.sha256] = row.log_odds
    found = calibration.fit_threshold(
        list(scores.values()),
        fpr,
        detector=loaded.name,
        weights_sha256=loaded.weights_sha256,
        photos_sha256=hashlib.sha256("\n".join(sorted(scores)).encode()).hexdigest(),
        core_version=__version__,
    )
    calibration.write(found, output)
    low, high = found.fpr_interval
    click.echo(
        f"{loaded.name}: threshold {found.threshold:.4f} [{found.interval[0]:.4f}, {found.interval[1]:.4f}] from "
        f"{found.n} photographs; of further ones like them {100 * low:.2g} to {100 * high:.2g} % will lie above it",
        err=True,
    )
    click.echo(output)

"""`zoo app`: the web page and the HTTP interface."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from detector_zoo.cli import lock
from detector_zoo.cli.sizes import size

if TYPE_CHECKING:
    from detector_zoo.app.analysis import Analyst

AUTH = "DETECTOR_ZOO_AUTH"


@click.command("app")
@click.option(
    "-d",
    "--detector",
    "detectors",
    multiple=True,
    default=("all",),
    metavar="NAME",
    help="As `zoo score` takes it. Repeatable. [default: all whose weights are at hand]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; any but this machine's needs a login.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="TCP port; 0 for a free one."
)
@click.option(
    "--auth",
    metavar="USER:PASSWORD",
    help="Login for page and API. Other users of the machine see it in the list of processes: better set "
    f"{AUTH} to it.",
)
@click.option("--max-upload", callback=size, default="32MB", show_default=True, metavar="SIZE", help="Of one request.")
@click.option(
    "--max-pixels", type=click.IntRange(1), default=50_000_000, show_default=True, help="Refuse larger images."
)
@click.option("--concurrency", type=click.IntRange(1), default=2, show_default=True, help="Analyses at a time.")
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="Requests that may wait; more are told to come back (429).",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps", help="Where to compute.")
@click.option("--page/--no-page", default=True, show_default=True, help="Serve the page, or the API alone.")
@click.option("--open/--no-open", "open_", default=False, show_default=True, help="Open the page in a browser.")
@lock.option
def command(
    detectors: tuple[str, ...],
    host: str,
    port: int,
    auth: str | None,
    max_upload: int,
    max_pixels: int,
    concurrency: int,
    queue: int,
    device: str,
    page: bool,
    open_: bool,
) -> None:
    """Look at single images in a browser, or score them over HTTP.

    Serves a page and, for programs, an HTTP interface under /api/v1, on this machine alone unless told otherwise, until
    it is interrupted. Pictures are not sent anywhere, and the interface keeps none.
    """
    from detector_zoo.app.options import Options
    from detector_zoo.app.server import serve

    options = Options(
        detectors=detectors,
        host=host,
        port=port,
        auth=auth or os.environ.get(AUTH) or None,
        max_upload=max_upload,
        max_pixels=max_pixels,
        concurrency=concurrency,
        queue=queue,
        device=device,
        page=page,
    )

    def ready(url: str, analyst: Analyst) -> None:
        for line in analyst.skipped:
            click.echo(f"Skipped: {line}", err=True)
        click.echo(f"Detectors: {', '.join(detector.name for detector in analyst.detectors)}", err=True)
        click.echo(f"{url} (Ctrl-C ends it)")
        if open_:
            click.launch(url)

    serve(options, ready)

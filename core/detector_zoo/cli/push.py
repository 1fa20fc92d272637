"""`zoo push`: a folder of weights to the Hub."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("push")
@click.argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repo", required=True, metavar="ORG/NAME", help="Repository on the Hub; made if there is none.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--dry-run", is_flag=True, help="Show the files and the card; talk to no server.")
@click.option("--licence", metavar="SPDX", help="Of the weights. [default: what the folder's weights.yaml says]")
@click.option("--dataset", "datasets", multiple=True, metavar="NAME", help="On the Hub, trained on; for the card.")
def command(run: Path, repo: str, private: bool, dry_run: bool, licence: str | None, datasets: tuple[str, ...]) -> None:
    """Publish a folder of weights, as zoo train leaves it, with a model card that the Hub renders.

    Only weights, their spec, figures and the card are uploaded, in one commit; pickles, checkpoints, caches and
    whatever may hold a secret stay here. Afterwards anybody can run: zoo score -d hub:ORG/NAME photo.jpg
    """
    from detector_zoo import publish
    from detector_zoo.errors import UnknownDetectorError
    from detector_zoo.hub_refs import parse
    from detector_zoo.plain import plain

    try:
        valid = parse(f"hub:{repo}").revision is None
    except UnknownDetectorError:
        valid = False
    if not valid:
        raise click.UsageError(f"--repo {repo!r} is not of the form org/name that the Hub allows")
    plan = publish.plan(run, repo, licence=licence, datasets=datasets)
    for name, why in plan.left_out:
        click.echo(f"Left out: {name}: {why}", err=True)
    for warning in plan.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if dry_run:
        click.echo(f"{plan.spec.name} to {repo}{', private' if private else ''}, not uploaded:")
        for name, size in plan.sizes().items():
            click.echo(f"{size:>12,}  {name}")
        click.echo()
        for line in plan.card.splitlines():  # what a card holds may move the cursor
            click.echo(plain(line.expandtabs(4)))
        return
    commit = publish.push(plan, private=private)
    click.echo(f"{len(plan.files)} files in one commit; use them: zoo score -d hub:{repo} photo.jpg", err=True)
    click.echo(f"hub:{repo}@{commit}")

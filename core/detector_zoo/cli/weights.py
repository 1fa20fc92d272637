"""`zoo weights`: what weights exist, where they are, and getting them onto this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from detector_zoo import registry, weights
from detector_zoo.cli.table import columns
from detector_zoo.errors import WeightsError, ZooError


@click.group("weights")
def command() -> None:
    """List, fetch, verify and import weights."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List all known weights; asks no network."""
    known = registry.registry()
    for problem in known.problems:
        click.echo(f"Warning: {problem}", err=True)
    rows = [_row(spec) for _, spec in sorted(known.specs.items())]
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    head = ["WEIGHTS", "STATE", "VERIFIED", "LICENCE", "SUMMARY"]
    cells = [[r["name"], r["state"], "yes" if r["verified"] else "no", r["licence"] or "-", r["summary"]] for r in rows]
    click.echo(columns(head, cells))


@command.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="All that a command can fetch.")
def pull(names: tuple[str, ...], everything: bool) -> None:
    """Fetch weights, with the backbones they need, and verify them.

    NAME is METHOD.TAG, METHOD for its default weights, or a reference to the Hub, hub:org/name.
    """
    if bool(names) == everything:
        raise click.UsageError("give names of weights, or --all")
    if everything:
        known = registry.registry().specs.values()
        names = tuple(sorted(spec.name for spec in known if weights.fetchable(spec)))
    _each(names, _pull)


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
def verify(names: tuple[str, ...]) -> None:
    """Hash local weights again; without a name, all that are on this machine."""
    if not names:
        known = registry.registry().specs.values()
        names = tuple(sorted(spec.name for spec in known if weights.recorded(spec)))
        if not names:
            click.echo("no weights on this machine", err=True)
    _each(names, _verify)


@command.command()
@click.argument("name")
def path(name: str) -> None:
    """Print where the verified safetensors of NAME are; asks no network."""
    spec = registry.lookup(name)
    found = weights.locate(spec)
    if found is None:
        raise WeightsError(f"{spec.name}: not on this machine ({weights.state(spec)})", hint=_pull_hint(spec))
    click.echo(found)


@command.command("import")
@click.argument("name", metavar="METHOD.TAG")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--like", metavar="METHOD.TAG", help="Weights of the same architecture (default: the method's default).")
@click.option("--replace", is_flag=True, help="Replace what you imported under this tag before.")
def import_(name: str, file: Path, like: str | None, replace: bool) -> None:
    """Take in a file that you downloaded or trained.

    Known weights must match the hash in the catalogue, where it has one; any other tag becomes your own.
    """
    from detector_zoo.weights_import import import_file

    spec = import_file(name, file, like=like, replace=replace)
    click.echo(f"{spec.name}: {weights.state(spec)}")
    if not spec.hashed:
        click.echo(f"Warning: {spec.name} fits the network, but nothing is known to verify it against", err=True)


def _row(spec: registry.WeightSpec) -> dict[str, Any]:
    found = weights.locate(spec)
    keys = ("name", "kind", "summary", "source", "revision", "sha256", "sha256_prefix", "md5", "bytes", "verified")
    more = ("why", "how_to_get", "licence", "trained_on", "origin")
    row = {key: getattr(spec, key) for key in keys + more}
    return row | {"state": weights.state(spec), "path": str(found) if found else None}


def _pull(name: str) -> str:
    spec = registry.lookup(name)
    if spec.backbone:
        weights.fetch(registry.lookup(spec.backbone), progress=True)
    weights.fetch(spec, progress=True)
    return f"{spec.name}: {weights.state(spec)}"


def _verify(name: str) -> str:
    spec = registry.lookup(name)
    return f"{spec.name}: ok {weights.verify(spec)}"


def _pull_hint(spec: registry.WeightSpec) -> str:
    return f"zoo weights pull {spec.name}" if weights.fetchable(spec) else spec.how_to_get or spec.why


def _each(names: tuple[str, ...], action: Any) -> None:
    """Do all of them, whatever becomes of one; the exit status tells whether any failed."""
    failed: list[ZooError] = []
    for name in names:
        try:
            click.echo(action(name))
        except ZooError as error:
            failed.append(error)
            if len(names) > 1:
                click.echo(f"Error: {error}", err=True)
                if error.hint:
                    click.echo(f"Hint: {error.hint}", err=True)
    if failed and len(names) == 1:
        raise failed[0]
    if failed:
        raise WeightsError(f"{len(failed)} of {len(names)} failed")

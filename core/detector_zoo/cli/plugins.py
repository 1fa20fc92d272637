"""`zoo plugins`: what is installed, and why something is not."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from detector_zoo.cli.table import columns
from detector_zoo.plugins import catalogue
from detector_zoo.registry import registry


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with every field.")
def command(as_json: bool) -> None:
    """List the installed plugins, the broken ones with their reason."""
    plugins = catalogue().plugins
    problems = registry().problems
    if as_json:
        facts = {"plugins": [asdict(plugin) for plugin in plugins], "registry_problems": problems}
        click.echo(json.dumps(facts, indent=2))
        return
    rows = [
        [p.name, f"{p.distribution} {p.version}", ", ".join(p.hooks), ", ".join(p.detectors), p.status] for p in plugins
    ]
    click.echo(columns(["PLUGIN", "DISTRIBUTION", "HOOKS", "DETECTORS", "STATUS"], rows))
    for problem in problems:
        click.echo(f"catalogue of weights: {problem}")

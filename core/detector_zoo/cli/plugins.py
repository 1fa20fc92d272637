"""`zoo plugins`: what is installed, and why something is not."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from detector_zoo.cli.table import columns
from detector_zoo.plain import plain
from detector_zoo.plugins import catalogue
from detector_zoo.registry import registry

LONGEST = 80
"""Characters of a name that are shown: what a stranger calls a package has no limit of its own."""
SHOWN = 5


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
        [
            plain(plugin.name, LONGEST),
            plain(f"{plugin.distribution} {plugin.version}", LONGEST),
            ", ".join(plugin.hooks),
            _some(plugin.detectors),
            plugin.status,
        ]
        for plugin in plugins
    ]
    click.echo(columns(["PLUGIN", "DISTRIBUTION", "HOOKS", "DETECTORS", "STATUS"], rows))
    for problem in problems:
        click.echo(f"catalogue of weights: {plain(problem)}")


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

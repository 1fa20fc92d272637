"""`zoo list`: the detectors at hand."""

from __future__ import annotations

from typing import Any

import click

from detector_zoo import weights
from detector_zoo.cli.table import columns
from detector_zoo.info import CAPABILITIES, DetectorInfo, Paper
from detector_zoo.plugins import list_detectors
from detector_zoo.registry import specs_of


@click.command("list")
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with every field.")
@click.option("--capability", type=click.Choice(sorted(CAPABILITIES)), help="Only detectors that can do this.")
def command(quiet: bool, as_json: bool, capability: str | None) -> None:
    """List the installed detectors: weights, licence, capabilities, summary, paper."""
    found = [info for info in list_detectors() if capability is None or capability in info.capabilities]
    if quiet:
        for info in found:
            click.echo(info.name)
        return
    facts = [_facts(info) for info in found]
    if as_json:
        import json

        click.echo(json.dumps(facts, indent=2))
        return
    rows = [
        [
            fact["name"],
            fact["default_tag"] or "-",
            fact["weights"],
            fact["licence"] or "-",
            " ".join(fact["capabilities"]) or "-",
            fact["summary"] + (f" ({fact['paper']['short']})" if fact["paper"] else ""),
        ]
        for fact in facts
    ]
    click.echo(columns(["DETECTOR", "DEFAULT", "WEIGHTS", "LICENCE", "CAN", "SUMMARY"], rows))


def _facts(info: DetectorInfo) -> dict[str, Any]:
    specs = {spec.tag: spec for spec in specs_of(info.name)}
    default = specs.get(info.default_tag or "")
    paper = info.paper
    return {
        "name": info.name,
        "summary": info.summary,
        "paper": paper
        and {
            "short": _short(paper),
            "title": paper.title,
            "authors": paper.authors,
            "year": paper.year,
            "url": paper.url,
        },
        "default_tag": info.default_tag,
        "weights": weights.state(default) if default else "none needed" if info.default_tag is None else "unknown",
        "licence": default.licence if default else "",
        "capabilities": sorted(info.capabilities),
        "control": info.control,
        "tags": {tag: weights.state(spec) for tag, spec in specs.items()},
    }


def _short(paper: Paper) -> str:
    """A paper as the text of another would name it: the first author's last name, and the year."""
    first, *others = paper.authors.split(", ")
    return f"{first.rpartition(' ')[2]}{' et al.' if others else ''} {paper.year}"

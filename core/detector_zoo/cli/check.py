"""`zoo check`: does a detector keep what every detector of the zoo keeps?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from detector_zoo.testing.verdicts import Finding

COLOURS = {"ok": "green", "failed": "red", "not run": "yellow"}
PLACE = click.Path(path_type=Path, exists=True)


@click.command("check")
@click.argument("name")
@click.option("--real", type=PLACE, multiple=True, help="Photographs, file or folder. Repeatable.")
@click.option("--generated", type=PLACE, multiple=True, help="Generated images, file or folder. Repeatable.")
@click.option(
    "--weights",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder that `zoo train` wrote, instead of weights of the catalogue.",
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with every field.")
def command(name: str, real: tuple[Path, ...], generated: tuple[Path, ...], folder: Path | None, as_json: bool) -> None:
    """Run the conformance suite on a detector: a line a property, exit status 1 when one fails.

    NAME is a method or method.tag, of a plugin that is installed. The direction of its scores is tried on --real and
    --generated, by default on examples/real and examples/generated beside the plugin's module.
    """
    from detector_zoo.testing.properties import PROPERTIES, examine_all
    from detector_zoo.testing.subject import Subject

    subject = Subject(name, real=real, generated=generated, weights=folder)
    subject.info  # noqa: B018 - an unknown name is a misuse, not a finding
    width = max(map(len, PROPERTIES))
    findings: list[Finding] = []
    for finding in examine_all(subject):
        findings.append(finding)
        if not as_json:
            status = click.style(f"{finding.status:<14}", fg=COLOURS.get(finding.status))
            click.echo(f"{status}  {finding.name:<{width}}  {finding.claim}: {finding.detail}")
    failed = [finding.name for finding in findings if finding.status == "failed"]
    if as_json:
        import json
        from dataclasses import asdict

        facts = {"detector": subject.name, "passed": not failed, "properties": [asdict(f) for f in findings]}
        click.echo(json.dumps(facts, indent=2))
    else:
        held = sum(finding.status == "ok" for finding in findings)
        end = f"{len(failed)} fail: {', '.join(failed)}" if failed else "none fails"
        click.echo(f"\n{subject.name}: {held} of {len(findings)} properties hold, {end}")
    if failed:
        raise SystemExit(1)

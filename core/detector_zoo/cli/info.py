"""`zoo info`: everything about one detector."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import click

from detector_zoo import weights
from detector_zoo.cli import lock
from detector_zoo.info import DetectorInfo
from detector_zoo.plain import plain
from detector_zoo.registry import Result, WeightSpec, resolve, specs_of

CARD_LIMIT = 200_000
"""Characters of a card that are read; ours have a tenth of it."""
SHOWN_LIMIT = 8_000
"""Characters of its limits that are shown."""


@click.command("info")
@click.argument("name")
@lock.option
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with every field.")
def command(name: str, as_json: bool) -> None:
    """Show everything about one detector: paper, weights, measured results, limits, citation.

    NAME is a method (all its weights), method.tag (only those), or a reference to the Hub, hub:org/name.
    """
    info, chosen = resolve(name)
    specs = [chosen] if chosen and ("." in name or "/" in name) else specs_of(info.name)
    specs.sort(key=lambda spec: spec.tag != info.default_tag)
    if as_json:
        facts = asdict(info) | {"capabilities": sorted(info.capabilities)}
        facts["weights"] = [asdict(spec) | {"state": weights.state(spec)} for spec in specs]
        facts["limits"] = _limits(info)
        click.echo(json.dumps(facts, indent=2, default=str))
        return
    for line in _lines(info, specs):  # a stranger's text may hold what moves the cursor
        for part in line.split("\n"):
            click.echo(plain(part))


def _lines(info: DetectorInfo, specs: list[WeightSpec]) -> Iterator[str]:
    yield f"{info.name}: {info.summary}"
    if info.paper:
        yield f"  paper         {info.paper.authors}: {info.paper.title} ({info.paper.year}), {info.paper.url}"
    yield f"  can           {', '.join(['score', *sorted(info.capabilities)])}"
    if info.default_tag:
        yield f"  default       {info.name}.{info.default_tag}"
    if info.card:
        yield f"  card          {info.card}"
    for spec in specs:
        yield ""
        yield from _spec_lines(spec)
    limits = _limits(info)
    if limits:
        yield ""
        yield "limits"
        yield from (f"  {line}" for line in limits.splitlines())
    if info.paper and info.paper.bibtex:
        yield ""
        yield info.paper.bibtex.strip()


def _spec_lines(spec: WeightSpec) -> Iterator[str]:
    facts: dict[str, Any] = {
        "weights": weights.state(spec),
        "source": spec.source or "none",
        "revision": spec.revision,
        "sha256": spec.sha256,
        "md5": spec.md5,
        "backbone": spec.backbone,
        "variants": ", ".join(f"{spec.name}@{variant}" for variant in spec.variants),
        "licence": spec.licence,
        "trained on": spec.trained_on,
        "verified": "yes" if spec.verified else f"no: {spec.why}",
        "how to get": spec.how_to_get,
    }
    if spec.calibration:
        facts["calibration"] = (
            f"log-odds = {spec.calibration.scale:.6g} * raw + {spec.calibration.offset:.6g}, "
            f"fitted on {spec.calibration.fitted_on}; inconclusive within {spec.calibration.inconclusive:.2f} "
            f"of the threshold {spec.threshold:g}"
        )
    else:
        facts["calibration"] = "none: scores rank images, probabilities are not to be believed"
    yield f"{spec.name}: {spec.summary}"
    yield from (f"  {name:<13} {value}" for name, value in facts.items() if value)
    for title, results in (("reproduced", spec.reproduced), ("reported", spec.reported)):
        yield from _result_lines(title, results)


def _result_lines(title: str, results: Sequence[Result]) -> Iterator[str]:
    """The figures, grouped by the command that prints them or the publication that they stand in."""
    for origin, group in groupby(results, key=lambda result: result.command or result.source):
        yield f"  {title:<13} by {origin}" if title == "reproduced" else f"  {title:<13} in {origin}"
        for result in group:
            interval = f" [{result.interval[0]:.3f}, {result.interval[1]:.3f}]" if result.interval else ""
            count = f" ({result.count})" if result.count else ""
            yield f"    {result.metric} {result.value:.3f}{interval} on {result.data}{count}"


def _limits(info: DetectorInfo) -> str:
    """The section "Limits" of the model card."""
    if info.card is None or not info.card.is_file():
        return ""
    try:
        with info.card.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(CARD_LIMIT)
    except OSError as error:
        return f"the card cannot be read: {error.strerror or error}"
    found = re.search(r"^## Limits.*?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    limits = found[1].strip() if found else ""
    return limits if len(limits) <= SHOWN_LIMIT else f"{limits[:SHOWN_LIMIT]}\n... and more: {info.card}"

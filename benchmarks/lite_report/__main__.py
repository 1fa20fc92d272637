"""Measure the `lite` weights and their fusion on the data set's val split, and keep the cards in step.

    python -m benchmarks.lite_report --data DATA --pairs recon-val --edits edits-val --train DATA --train recon-train
        --train edits-train --runs runs --out out/
    python -m benchmarks.lite_report --write-cards docs/lite-report.json
    python -m benchmarks.lite_report --check-cards docs/lite-report.json

The first writes lite-report.json, lite-report.md and registry.yaml (entries to paste) into --out, where every score is
kept: an interrupted run goes on. Every picture is decoded once for all detectors. Nothing is chosen by val: the
fusion's weights and the best single detector come from images of train that no detector learnt from. The second puts
the figures of a report into the models' cards and the page beside it, the third fails where they differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benchmarks.photographs import first, photograph

from detector_zoo.errors import ZooError
from detector_zoo.evaluation import datasets
from detector_zoo.evaluation.perturbations import parse
from detector_zoo.evaluation.provenance import environment, git_state
from detector_zoo.evaluation.samples import Sample

from . import cards, curves, figures, pictures
from .fused import Slice, fused
from .measuring import costs, load_all, maps, say, scored

SCHEMA = "detector_zoo.lite_report"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON holds it."""
    chosen = load_all(options.detector, options.also, options.runs)
    val = datasets.load(options.data, split=options.split)
    families = yaml.safe_load(options.families.read_text("utf-8"))
    conditions: dict[str, Sequence[Sample]] = {"none": pictures.whole(val.samples)}
    for perturbation in parse([c for c in cards.CONDITIONS if c != "none"]):
        folder = options.out / "pictures" / str(perturbation).replace(":", "-")
        conditions[str(perturbation)] = pictures.laundered(conditions["none"], perturbation, folder)
    found: dict[str, np.ndarray] = {}
    for name, samples in conditions.items():
        found[name] = scored(samples, chosen, options.out / f"val-{name.replace(':', '-')}.parquet")
    made: dict[str, Sequence[Sample]] = {}
    for place in ("pairs", "edits"):
        if getattr(options, place):
            samples = first(datasets.read(getattr(options, place), split=options.split), options.photographs)
            made[place] = pictures.aligned(samples, options.out / "pictures" / place)
            found[place] = scored(made[place], chosen, options.out / f"{place}.parquet")
    fusion = fused(chosen, options) if options.train else None

    report = {
        "schema": SCHEMA,
        "schema_version": 1,
        "resamples": options.resamples,
        "git": git_state(),
        "versions": {k: v for k, v in environment().items() if k != "platform"},
        "data": {
            "name": Path(options.data).resolve().name,
            "split": options.split,
            "sha256": val.sha256,
            "photographs_of_pairs_and_edits": {k: len(set(map(photograph, v))) for k, v in made.items()},
        },
        "detectors": [],
        "fusion": None,
    }
    for at, one in enumerate(chosen):
        say(f"figures of {one.name}")
        entry = _figures(one.name, at, val.samples, families, conditions, found, made, options)
        if "edits" in made and one.localizes:
            entry["localization"] = maps(one, first(made["edits"], options.maps), options)
        report["detectors"].append(entry | costs(one, conditions["none"]))
    if fusion is not None:
        columns = [at for at, one in enumerate(chosen) if one.fused]
        together = {k: fusion.fusion.log_odds(v[:, columns])[:, None] for k, v in found.items()}
        report["detectors"].append(
            _figures(cards.FUSION, 0, val.samples, families, conditions, together, made, options)
        )
        report |= _of_fusion(fusion)
    return report


def _figures(
    name: str,
    at: int,
    samples: Sequence[Sample],
    families: dict[str, str],
    conditions: dict[str, Sequence[Sample]],
    found: dict[str, np.ndarray],
    made: dict[str, Sequence[Sample]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    labels, family = np.array([s.generated for s in samples]), figures.families(samples, families)
    entry: dict[str, Any] = {
        "name": name,
        "errors": int(sum((~np.isfinite(scores[:, at])).sum() for scores in found.values())),
        "conditions": {c: figures.overall(labels, family, found[c][:, at], options.resamples) for c in conditions},
    }
    for place, members in made.items():
        entry[place] = figures.against_photographs(members, found[place][:, at], options.resamples)
    return entry | {"fails": figures.failing(entry)}


def _of_fusion(fusion: Slice) -> dict[str, Any]:
    return {
        "fusion": fusion.fusion.to_dict(),
        "best_single": fusion.best,
        "slice": {"sets": fusion.counts, "auroc": fusion.auroc},
    }


def keep_cards(path: Path, *, check: bool) -> int:
    """Write or check the cards and the page beside the report; the exit status."""
    report = json.loads(path.read_text("utf-8")) if path.exists() or not check else None
    wanted = cards.written(report, cards.cards())
    if report is not None:
        wanted[path.with_suffix(".md")] = cards.page(report)
    stale = [card for card, text in wanted.items() if not card.exists() or card.read_text("utf-8") != text]
    for card in stale:
        if check:
            say(f"{card.parent.name}/{card.name} differs from {path.name}")
        else:
            card.write_text(wanted[card], "utf-8")
            say(f"wrote {card.parent.name}/{card.name}")
    if report is not None and not check:
        curves.draw(report["detectors"], path.parent / cards.CURVES)
    return 1 if check and stale else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lite_report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write-cards", type=Path, metavar="JSON", help="put a report's figures into the cards")
    parser.add_argument("--check-cards", type=Path, metavar="JSON", help="fail where a card differs from a report")
    parser.add_argument("--data", type=Path, help="set of whole images, both splits")
    parser.add_argument("--split", default="val")
    parser.add_argument("--pairs", type=Path, help="set of `zoo data reconstruct`")
    parser.add_argument("--edits", type=Path, help="set of `zoo data edit`")
    parser.add_argument("--train", type=Path, action="append", default=[], help="set with a train split; repeatable")
    parser.add_argument("--detector", action="append", default=[], help="to measure and fuse; default: all")
    parser.add_argument("--also", action="append", default=[], help="to measure only")
    parser.add_argument("--runs", type=Path, help="folder of `zoo train`'s folders, by method or method.tag")
    parser.add_argument("--families", type=Path, default=Path(__file__).with_name("families.yaml"))
    parser.add_argument("--photographs", type=int, default=60, help="that pairs and edits are taken of, by hash")
    parser.add_argument("--maps", type=int, default=24, help="photographs whose edits' heatmaps are measured")
    parser.add_argument("--slice", type=int, default=60, help="photographs a set of pairs or edits, for the fusion")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    try:
        if options.write_cards or options.check_cards:
            return keep_cards(options.write_cards or options.check_cards, check=options.write_cards is None)
        if not options.data or not options.out:
            parser.error("--data and --out are needed")
        options.out.mkdir(parents=True, exist_ok=True)
        report = measure(options)
    except ZooError as error:
        say(f"Error: {error}" + (f" ({error.hint})" if error.hint else ""))
        return 1
    for name, text in (
        ("lite-report.json", json.dumps(report, indent=1) + "\n"),
        ("lite-report.md", cards.page(report)),
        ("registry.yaml", cards.registry(report)),
    ):
        (options.out / name).write_text(text, "utf-8")
    curves.draw(report["detectors"], options.out / cards.CURVES)
    print(options.out / "lite-report.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())

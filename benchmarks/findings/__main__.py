"""Test the papers' claims at a scale that two CPU cores can train at.

::

    python -m benchmarks.findings --data ../shared/data --made DIR --out .work/findings [--claim b --claim c]
    python -m benchmarks.findings --page

Trainings and scores are kept in ``--out``: a command that was interrupted goes on when it is repeated, and one that
was not computes nothing anew. What is found goes, claim by claim, into ``docs/findings.json``, of which
``docs/findings.md`` is a rendering. ``DIR`` has ``recon-train``, ``recon-val``, ``edits-train`` and ``edits-val``, as
`zoo data reconstruct` and `zoo data edit` make them of the two splits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from detector_zoo.convert import atomic
from detector_zoo.errors import ZooError
from detector_zoo.evaluation.provenance import environment

from .bench import Bench
from .render import LETTERS, page

DOCS = Path(__file__).resolve().parents[2] / "docs"
COMMAND = "make findings DATA=... WEIGHTS=... OUT=..."
SCHEMA_VERSION = 1
MODULES = {"a": "a_stay_positive", "b": "b_scenes", "c": "c_inversion", "d": "d_transfer", "e": "e_codec"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the claims, or check that the page is current; returns the exit status."""
    args = _parser().parse_args(arguments)
    record, text = args.docs / "findings.json", args.docs / "findings.md"
    if args.page or args.check:
        wanted = page(json.loads(record.read_text("utf-8")))
        if args.page:
            text.write_text(wanted, "utf-8")
        elif wanted != text.read_text("utf-8"):
            print(f"{text} is not what {record} says: python -m benchmarks.findings --page", file=sys.stderr)
            return 1
        return 0
    # Sums in another order give other last digits, and after some steps other weights.
    torch.set_num_threads(1)
    failed = False
    for letter in args.claim or LETTERS:
        bench = Bench(
            data=args.data,
            made=args.made,
            out=args.out,
            corvi=args.corvi,
            stay_positive=args.stay_positive,
            mdmf=args.mdmf,
            seeds=tuple(args.seeds),
            steps=args.steps,
            limit=args.limit or None,
            resamples=args.resamples,
        )
        try:
            found = import_module(f"{__package__}.{MODULES[letter]}").run(bench)
        except ZooError as error:
            print(f"({letter}): {error}", file=sys.stderr)
            failed = True
            continue
        write(record, text, letter, found, bench)
        for test in found["tests"]:
            print(f"({letter}) {test['what']}: {test['difference']} {test['verdict']}", flush=True)
    return int(failed)


def write(record: Path, text: Path, letter: str, found: dict[str, Any], bench: Bench) -> None:
    """Put one claim's findings into the record, and the page beside it."""
    known = json.loads(record.read_text("utf-8"))["claims"] if record.is_file() else {}
    run = {
        "seeds": list(bench.seeds),
        "steps": bench.steps,
        "limit": bench.limit,
        "resamples": bench.resamples,
        "versions": {k: v for k, v in environment().items() if k != "platform"},
    }
    claims = known | {letter: {**found, "trainings": bench.trainings, "run": run}}
    ordered = {key: claims[key] for key in sorted(claims)}
    document = {"schema_version": SCHEMA_VERSION, "command": COMMAND, "claims": ordered}
    record.parent.mkdir(parents=True, exist_ok=True)
    for path, content in ((record, json.dumps(document, indent=1) + "\n"), (text, page(document))):
        with atomic(path) as staging:
            staging.write_text(content, "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="findings", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="with splits train and val")
    parser.add_argument("--made", type=Path, default=Path(".work/lite"), help="reconstructions and edits")
    parser.add_argument("--out", type=Path, default=Path(".work/findings"), help="trainings and scores")
    parser.add_argument("--docs", type=Path, default=DOCS, help="findings.json and findings.md")
    parser.add_argument("--claim", action="append", choices=LETTERS, help="one of them; all by default")
    parser.add_argument("--corvi", default="corvi.lite", metavar="NAME|DIR")
    parser.add_argument("--stay-positive", default="stay_positive.lite", metavar="NAME|DIR")
    parser.add_argument("--mdmf", default="mdmf.lite", metavar="NAME|DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="of every training, for a quick look; each claim has its own number")
    parser.add_argument("--limit", type=int, default=64, help="images of a class, or photographs, tested; 0: all")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--page", action="store_true", help="only write the page of the record anew")
    parser.add_argument("--check", action="store_true", help="only compare the page with the record")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Train a method's lite weights as they are shipped, and compare them with the figure of those that were shipped.

    python tools/lite.py corvi --data DATA --made .work --out .work/runs

What the training takes is written in tools/lite.yaml. The new weights are scored once on the val split, formats
equalised; the exit status is 0 if their AUROC lies in the 95 % interval that registry.yaml gives for the shipped ones.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detector_zoo.errors import DatasetError, ZooError
from detector_zoo.evaluation import datasets, metrics
from detector_zoo.evaluation.metrics import Metric
from detector_zoo.evaluation.score_set import score_set
from detector_zoo.registry import registry
from detector_zoo.scoring import Options
from detector_zoo.training import artifact
from detector_zoo.weight_specs import Result

SETTINGS = Path(__file__).with_name("lite.yaml")
MADE = {"pairs": "recon-train", "edits": "edits-train"}
"""Folder of each kind of made data."""
MEASURED = "val split, formats equalised"
"""What a result of registry.yaml has to be of."""


@dataclass(frozen=True)
class Setting:
    """An entry of lite.yaml; see there."""

    data: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    brought: dict[str, str] = field(default_factory=dict)
    precision: str = "fp32"


def setting(name: str, text: str) -> Setting:
    """How weights are trained.

    Args:
        name: ``method.recipe``; of the recipe ``lite`` the method alone is enough.
        text: Of lite.yaml.

    Raises:
        DatasetError: The entry names data that nobody makes, or has another key.
    """
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)
    found = entries.get(name) or entries.get(name.removesuffix(".lite")) or {}
    if unknown := (set(found) - set(Setting.__dataclass_fields__)) | (set(found.get("data", ())) - set(MADE)):
        raise DatasetError(f"{name} in {SETTINGS.name}: {sorted(unknown)[0]!r} is unknown")
    return Setting(**{key: tuple(value) if isinstance(value, list) else value for key, value in found.items()})


def commands(name: str, chosen: Setting, *, data: Path, made: Path, out: Path) -> list[list[str]]:
    """The arguments of the ``zoo`` commands that train.

    Args:
        name: ``method.recipe``.
        chosen: Its setting.
        data: The data set, both splits.
        made: Where `make lite-data` left its folders, and brought weights lie.
        out: Of the run.
    """
    method, _, recipe = name.partition(".")
    places = [data, *(made / MADE[kind] for kind in chosen.data)]
    train = ["train", method, "--recipe", recipe, "--out", str(out)]
    train += [part for place in places for part in ("--data", str(place))]
    train += ["--precision", chosen.precision]
    train += [part for change in chosen.set for part in ("--set", change)]
    brought = [["weights", "import", weights, str(made / file)] for weights, file in chosen.brought.items()]
    return [*brought, train]


def measured(run: Path, data: Path) -> dict[str, Metric]:
    """Figures of a run's weights on the val split, formats equalised; abstentions are ranked by their scores too.

    Raises:
        ZooError: An image could not be scored.
    """
    val = datasets.load(data, split="val")
    detector = artifact.load_detector(run)
    rows = score_set(val.samples, [detector], run / "val.parquet", options=Options(workers=1))
    if bad := next((row for row in rows if row.error), None):
        raise DatasetError(f"{bad.path}: {bad.error}")
    scores = np.array([row.log_odds for row in rows])
    return metrics.summary([s.generated for s in val.samples], scores)


def shipped(name: str) -> Result:
    """The registry's figure for the shipped weights.

    Raises:
        DatasetError: It has none.
    """
    spec = registry().specs.get(name)
    for result in spec.reproduced if spec else ():
        if (result.data, result.metric) == (MEASURED, "AUROC") and result.interval:
            return result
    raise DatasetError(f"{name}: registry.yaml has no AUROC on the {MEASURED}, to compare with")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("method")
    parser.add_argument("--recipe", default="lite")
    parser.add_argument("--data", type=Path, required=True, help="the data set, both splits")
    parser.add_argument("--made", type=Path, required=True, help="what make lite-data made")
    parser.add_argument("--out", type=Path, required=True, help="the runs' folders")
    options = parser.parse_args(arguments)
    name = f"{options.method}.{options.recipe}"
    run = options.out / name
    try:
        chosen = setting(name, SETTINGS.read_text("utf-8"))
        for command in commands(name, chosen, data=options.data, made=options.made, out=run):
            if status := subprocess.run([sys.executable, "-m", "detector_zoo", *command]).returncode:
                return status
        figures = measured(run, options.data)
        print(f"{name} on the {MEASURED}")
        for metric, value in figures.items():
            print(f"  {metric} {value}")
        found = figures["AUROC"]
        there = shipped(name)
    except ZooError as error:
        print(f"Error: {error}" + (f" ({error.hint})" if error.hint else ""), file=sys.stderr)
        return 1
    low, high = there.interval or (0.0, 0.0)
    inside = low <= found.value <= high
    words = "inside" if inside else "OUTSIDE"
    print(f"{name}: shipped {there.value:.3f} [{low:.3f}, {high:.3f}]; the new weights are {words} the interval")
    return 0 if inside else 1


if __name__ == "__main__":
    sys.exit(main())

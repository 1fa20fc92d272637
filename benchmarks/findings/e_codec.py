"""(e) A detector trained without format equalising: how much of its AUROC is the codec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from detector_zoo import images
from detector_zoo.evaluation.bootstrap import Resampling
from detector_zoo.evaluation.in_memory import subset
from detector_zoo.evaluation.intervals import ratio
from detector_zoo.evaluation.samples import Sample

from .bench import Bench, Picture, photograph, pictures, whole
from .figures import judged, numbers, over

__all__ = ["run"]

STEPS = 300
RECIPE: dict[str, Any] = {
    "network": {
        "architecture": "resnet_narrow",
        "stem": 16,
        "widths": [16, 32, 64, 128],
        "blocks": [1, 1, 2, 2],
        "strides": [1, 2, 2, 2],
    },
    "preprocessing": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "exif_orientation": "ignore"},
    "optimiser": {"name": "adamw", "lr": 2.0e-3, "weight_decay": 0.02, "clip": 5.0},
    "augmentation": [{"flip": {"p": 0.5}}, {"random_crop": {"size": 64}}],
    "sides": [80, 96],
    "batch": 16,
    "mix": {"generated": 0.5, "pairs": 0.0, "balance": 0.5},
    "slices": {"validation": 0.05, "calibration": 0.05},
}
"""No compression, noise or blur among the augmentation: each of them would equalise a little."""


def stored(sample: Sample) -> Picture:
    """The file's own pixels."""

    def picture() -> Image.Image:
        return images.decode(sample.path).oriented("ignore")

    return picture


def run(bench: Bench) -> dict[str, Any]:
    """Train with and without equalising, and test both with and without."""
    learn = bench.samples("data", "train")
    samples = subset(bench.samples("data", "val"), bench.limit, 0)
    labels = np.array([s.generated for s in samples])
    resampling = Resampling(labels, [photograph(s) for s in samples], resamples=bench.resamples)
    scores: dict[tuple[bool, bool], list[Any]] = {}
    for even in (False, True):
        for seed in bench.seeds:
            name = f"e-{'equalised' if even else 'as-stored'}"
            detector = bench.train(name, "corvi", learn, {**RECIPE, "equalise": even}, steps=STEPS, seed=seed)
            for tested, make in ((False, stored), (True, whole)):
                found = bench.scores(detector, make.__name__, pictures(samples, make))
                scores.setdefault((even, tested), []).append(found)
    raw, after = (over(labels, scores[False, tested]) for tested in (False, True))

    def share(weights: Any) -> Any:
        above = raw.of(weights) - 0.5
        lost = raw.of(weights) - after.of(weights)
        return np.divide(lost, above, out=np.full(len(above), np.nan), where=above > 0)

    rows = []
    for even in (False, True):
        one, other = (over(labels, scores[even, tested]) for tested in (False, True))
        values = resampling.intervals(one, other, one - other)
        rows.append(["equalised" if even else "as stored", *map(numbers, values)])
    before, drop, part, gain = resampling.intervals(
        raw,
        raw - after,
        replace(raw - after, of=share, rule=ratio),
        over(labels, scores[True, True]) - after,
    )
    told = before.low > 0.5
    return {
        "title": "Trained without format equalising",
        "claim": ("A detector trained on files as they are collected owes a good part of its AUROC to the codec."),
        "setting": [
            "A narrow residual network in Corvi's plugin, from scratch, without compression, noise and blur in the "
            "augmentation, trained on the files of the training split as they are and, the same in all else, "
            "equalised.",
            "Tested on the validation split's files as they are and equalised: the same images, of other sources.",
        ],
        "tables": [
            {
                "title": "AUROC",
                "head": ["trained on files", "tested as stored", "tested equalised", "difference"],
                "rows": rows,
            },
            {
                "title": "Trained and tested as stored",
                "head": ["", ""],
                "rows": [["share of the AUROC above 0.5 that equalising takes away", numbers(part) if told else None]],
                "note": (
                    "Above 1 where equalising leaves less than chance; percentile interval. Not told where the AUROC "
                    "as stored is not clearly above 0.5."
                ),
            },
        ],
        "tests": [
            judged("trained as stored: AUROC tested as stored minus tested equalised", drop),
            judged("tested equalised: AUROC trained equalised minus trained as stored", gain),
        ],
        "counts": {"validation images": {"real": int((~labels).sum()), "generated": int(labels.sum())}},
    }

"""(b) Patch-shuffle against the same network unshuffled, trained on one scene type and tested on another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from detector_zoo.evaluation.bootstrap import Figure, Resampling
from detector_zoo.evaluation.equalise import FINAL_QUALITY
from detector_zoo.loading import LoadedDetector
from detector_zoo.training.splits import cut
from detector_zoo_patch_shuffle.model import PatchShuffle

from .bench import Bench, aligned, content_of, photograph, pictures
from .figures import averaged, judged, numbers, over

__all__ = ["run"]

TYPES = ("thing", "place")
HELD = 0.3
"""Share of the photographs of a scene type that networks of that type are tested on."""
STEPS = 250
RECIPE: dict[str, Any] = {
    "network": {"patch": 32, "depth": 2, "width": 8},
    "preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1], "crop": 96, "exif_orientation": "ignore"},
    "augmentation": [
        {"random_crop": {"size": 96}},
        {"d4": {}},
        {"jpeg": {"p": 1.0, "quality": [FINAL_QUALITY, FINAL_QUALITY], "subsampling": [2]}},
    ],
    "optimiser": {"name": "adamw", "lr": 3.0e-3, "weight_decay": 0.02, "clip": 5.0},
    "sides": [112, 128],
    "batch": 16,
    "mix": {"generated": 0.5, "pairs": 1.0, "balance": 1.0},
    "slices": {"validation": 0.05, "calibration": 0.05},
}
"""Crops end in the JPEG that the tested images end in; every reconstruction comes beside its own photograph."""


class RowByRow(PatchShuffle):
    """The unshuffled network as it was trained: every patch in its own slot."""

    def logits(self, batch: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) uint8 to logits, (N,)."""
        found: Tensor = self.network(self.inputs.normalise(batch))
        return found


def row_by_row(detector: LoadedDetector) -> LoadedDetector:
    """The same weights with the patches left where they are."""
    shuffled = detector.detector
    if not isinstance(shuffled, PatchShuffle):
        raise TypeError(f"{detector.name} has no patches to shuffle")
    own = RowByRow(shuffled.network, shuffled.inputs)
    own.spec = shuffled.spec
    return replace(detector, detector=own)


def run(bench: Bench) -> dict[str, Any]:
    """Train both arms on each scene type, and test all on both."""
    samples = bench.samples("recon", "train")
    scene = content_of(samples)
    samples = [s for s, shown in zip(samples, scene, strict=True) if shown in TYPES]
    scene, labels = content_of(samples), np.array([s.generated for s in samples])
    fit = {s.sha256 for s in cut(samples, {"held": HELD}, salt="scenes")["fit"]}
    learnt = np.array([s.sha256 in fit for s in samples])
    arms = ("shuffled", "unshuffled", "unshuffled, averaged over all orders")
    found: dict[str, list[tuple[str, Any]]] = {arm: [] for arm in arms}
    items = pictures(samples, aligned)
    for kind in TYPES:
        own = [s for s, shown, use in zip(samples, scene, learnt, strict=True) if use and shown == kind]
        # What a network learnt from is in none of its figures.
        seen = (scene == kind) & learnt
        tested = [item for item, out in zip(items, seen, strict=True) if not out]
        for seed in bench.seeds:
            for shuffle in (True, False):
                name = f"b-{kind}-{'shuffled' if shuffle else 'unshuffled'}"
                recipe = {**RECIPE, "shuffle": shuffle}
                mean = bench.train(name, "patch_shuffle", own, recipe, steps=STEPS, seed=seed)
                scored = {"shuffled": mean} if shuffle else {"unshuffled": row_by_row(mean), arms[2]: mean}
                for arm, detector in scored.items():
                    scores = np.full(len(samples), np.nan)
                    how = "aligned, rows" if arm == "unshuffled" else "aligned"
                    scores[~seen] = bench.scores(detector, how, tested)
                    found[arm].append((kind, scores))
    resampling = Resampling(labels, [photograph(s) for s in samples], resamples=bench.resamples)

    def figure(arm: str, cross: bool, kind: str = "") -> Figure:
        parts = [
            over(labels, [scores], (scene != trained) if cross else (scene == trained))
            for trained, scores in found[arm]
            if kind in ("", trained)
        ]
        return averaged(parts)

    rows = []
    for kind in ("", *TYPES):
        for arm in arms:
            inside, across = figure(arm, False, kind), figure(arm, True, kind)
            values = resampling.intervals(inside, across, inside - across)
            rows.append([f"{kind}s" if kind else "both, averaged", arm, *map(numbers, values)])
    losses = [figure(arm, False) - figure(arm, True) for arm in arms[:2]]
    ahead, less = resampling.intervals(figure("shuffled", True) - figure("unshuffled", True), losses[1] - losses[0])
    return {
        "title": "Patch-shuffle against the same network unshuffled, across scenes",
        "claim": (
            "With its patches shuffled a network cannot learn the scene, and so does better on scenes that it was not "
            "trained on (Zheng et al., NeurIPS 2024)."
        ),
        "setting": [
            "Photographs of things (objects, animals, plants from near) and of places (buildings, landscapes, rooms), "
            "told apart by eye (`benchmarks/findings/contents.csv`), each beside its reconstruction by a tiny "
            "autoencoder: within a scene type both classes show the same.",
            f"Trained on one type, tested on the other and on the {HELD:.0%} of the photographs of its own type that "
            "were kept out; both ways, averaged. All photographs are of the training split, none was learnt from by "
            "the network that it tests.",
            "The unshuffled network is scored with its patches in order, as it was trained, and beside it with the "
            "mean over all orders, as the plugin scores.",
        ],
        "tables": [
            {
                "title": "AUROC by the scene type that a network was trained on",
                "head": ["trained on", "network", "its own type", "the other type", "loss"],
                "rows": rows,
            }
        ],
        "tests": [
            judged("the other scene type: AUROC shuffled minus unshuffled", ahead),
            judged("loss from its own type to the other: unshuffled minus shuffled", less),
        ],
        "counts": {
            f"{kind}s, {'learnt from' if use else 'kept out'}": {
                "real": int((~labels & (scene == kind) & (learnt == use)).sum()),
                "generated": int((labels & (scene == kind) & (learnt == use)).sum()),
            }
            for kind in TYPES
            for use in (True, False)
        },
    }

"""Scores to figures, each a value with its 95 % interval, as JSON holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from benchmarks.photographs import photograph
from numpy.typing import NDArray

from detector_zoo.evaluation.bootstrap import Resampling, mean_of
from detector_zoo.evaluation.intervals import FEW, Metric, share
from detector_zoo.evaluation.metrics import measure
from detector_zoo.evaluation.samples import Sample

from .pictures import CONTROL, EDITED

Floats = NDArray[np.float64]
NAMES = ("auroc", "average_precision", "tpr_at_fpr_1", "tpr_at_fpr_5")
ALL = "all"


def numbers(metric: Metric) -> list[float | None]:
    """Value and interval, four digits."""
    return [round(float(x), 4) if np.isfinite(x) else None for x in (metric.value, metric.low, metric.high)]


def families(samples: Sequence[Sample], names: Mapping[str, str]) -> NDArray[np.str_]:
    """Family of each generated image, "" for real ones: by its generator, else the generator, else the source."""
    return np.array([names.get(s.generator, s.generator or s.source) if s.generated else "" for s in samples])


def overall(labels: NDArray[np.bool_], family: NDArray[np.str_], scores: Floats, resamples: int) -> dict[str, Any]:
    """`NAMES` of all generated images and of each family, against all real ones; images without a score are in none."""
    out: dict[str, Any] = {}
    there = np.isfinite(scores)
    for name in (ALL, *sorted(set(family) - {""})):
        chosen = there & (~labels | (name == ALL) | (family == name))
        real, generated = int((chosen & ~labels).sum()), int((chosen & labels).sum())
        out[name] = {"real": real, "generated": generated, "few": min(real, generated) < FEW}
        if real and generated:
            found = measure(labels[chosen], scores[chosen], names=NAMES, resamples=resamples)
            out[name] |= {metric: numbers(value) for metric, value in found.items()}
    return out


def against_photographs(samples: Sequence[Sample], scores: Floats, resamples: int) -> dict[str, Any]:
    """Each kind of picture against the untouched photographs that it was made from.

    `NAMES`, and the share of pairs in which the made one scores higher (ties count a half); photographs are resampled
    with all that was made from them. ``local edits`` pools the exchanged kinds. Splices, in which nothing is generated,
    are a control of their own and in no pool; ``local edits against splices`` compares the two.
    """
    kinds = np.array([s.kind or ("photo" if not s.generated else "generated") for s in samples])
    generated = np.array([s.generated for s in samples])
    splices = kinds == CONTROL
    untouched = ~generated & ~splices
    edits = generated & np.array([k.endswith(EDITED) for k in kinds])
    groups = [photograph(s) for s in samples]
    wanted = {str(k): kinds == k for k in sorted(set(kinds[generated]))}
    if edits.any():
        wanted |= {"local edits": edits}
    if splices.any():
        wanted |= {CONTROL: splices}
    out = {name: _compared(positive, untouched, groups, scores, resamples) for name, positive in wanted.items()}
    if edits.any() and splices.any():
        out["local edits against splices"] = _compared(edits, splices, groups, scores, resamples)
    return {name: found for name, found in out.items() if found}


def _compared(
    positive: NDArray[np.bool_], negative: NDArray[np.bool_], groups: Sequence[str], scores: Floats, resamples: int
) -> dict[str, Any]:
    chosen = (positive | negative) & np.isfinite(scores)
    labels, values = positive[chosen], scores[chosen]
    own = [group for group, use in zip(groups, chosen, strict=True) if use]
    if not labels.any() or labels.all():
        return {}
    theirs: dict[str, list[float]] = {}
    for group, label, value in zip(own, labels, values, strict=True):
        if not label:
            theirs.setdefault(group, []).append(value)
    ordered = np.full(len(values), np.nan)
    for at in np.flatnonzero(labels):
        if own[at] in theirs:
            below = np.array(theirs[own[at]])
            ordered[at] = float((values[at] > below).mean() + 0.5 * (values[at] == below).mean())
    (right,) = Resampling(labels, own, resamples=resamples).intervals(mean_of(ordered, rule=share))
    found = measure(labels, values, names=NAMES, groups=own, resamples=resamples)
    return {
        "images": int(labels.sum()),
        "photographs": int((~labels).sum()),
        **{name: numbers(metric) for name, metric in found.items()},
        "in_order": numbers(right),
    }


def importance(samples: Mapping[str, Sequence[Sample]]) -> Floats:
    """Weights under which every set counts alike, and in every set both classes."""
    parts = []
    for members in samples.values():
        labels = np.array([s.generated for s in members], bool)
        share = {flag: max(int((labels == flag).sum()), 1) for flag in (False, True)}
        parts.append(np.where(labels, 1 / share[True], 1 / share[False]))
    return np.concatenate(parts)


def failing(report: Mapping[str, Any]) -> list[str]:
    """Families, and kinds of pictures, on which a detector is not shown to be better than chance."""
    out = [
        "all generated images" if name == ALL else name
        for name, found in report["conditions"]["none"].items()
        if found.get("auroc") and found["auroc"][1] <= 0.5
    ]
    for place in ("pairs", "edits"):
        for name, found in report.get(place, {}).items():
            if CONTROL not in name and found["auroc"][1] is not None and found["auroc"][1] <= 0.5:
                out.append(name)
    return out

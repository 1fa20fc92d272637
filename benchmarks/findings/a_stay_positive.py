"""(a) Stay-Positive against its base: after WebP and resizing, and on partly generated images."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from detector_zoo import images
from detector_zoo.evaluation.bootstrap import Resampling
from detector_zoo.evaluation.in_memory import subset
from detector_zoo.evaluation.perturbations import Perturbation, parse
from detector_zoo.evaluation.samples import Sample

from .bench import Bench, Picture, aligned, first, photograph, pictures, whole
from .figures import judged, numbers, over

__all__ = ["run"]

CONDITIONS = ("none", "webp:75", "resize_bilinear:0.5")
SHARES = ((0.0, 0.15), (0.15, 0.3), (0.3, 1.0))
"""Of an image that is generated: bins that are reported."""


def run(bench: Bench) -> dict[str, Any]:
    """Score both detectors on the same pictures."""
    base, stay = bench.load(bench.corvi), bench.load(bench.stay_positive)
    arms = {"base": base, "Stay-Positive": stay}
    tables, tests, counts = [], [], {}
    rows: list[list[Any]] = []
    sets = {
        "generated whole (val)": (subset(bench.samples("data", "val"), bench.limit, 0), whole),
        "reconstructions (val photographs)": (first(bench.samples("recon", "val"), bench.limit), aligned),
    }
    for name, (samples, make) in sets.items():
        labels = np.array([s.generated for s in samples])
        counts[name] = _count(labels)
        resampling = Resampling(labels, [photograph(s) for s in samples], resamples=bench.resamples)
        for condition in parse(CONDITIONS):
            items = [(s.sha256, _then(make(s), condition, s)) for s in samples]
            found = [bench.scores(d, f"{make.__name__} {condition}", items) for d in arms.values()]
            one, other = (over(labels, [scores]) for scores in found)
            figures = resampling.intervals(one, other, other - one)
            after = "equalised" if condition.name == "none" else f"equalised, then {condition}"
            rows.append([name, after, *map(numbers, figures)])
            tests.append(judged(f"{name}, {after}: AUROC of Stay-Positive minus base", figures[2]))
    tables.append({"title": "Whole images", "head": ["images", "given", *arms, "difference"], "rows": rows})
    partly, more, counts["partly generated"] = _partly(bench, arms)
    tables.append(partly)
    return {
        "title": "Stay-Positive against its base",
        "claim": (
            "A last layer without negative weights cannot lower a score for evidence of realness: it keeps detecting "
            "after WebP and resizing, and where only part of the image is generated (Rajan & Lee, ICML 2025)."
        ),
        "setting": [
            f"`{base.name}` (weights {base.weights_sha256[:12]}) and `{stay.name}` ({stay.weights_sha256[:12]}), whose "
            "network is the same up to the last layer. AUROC, so that no threshold or calibration matters.",
            "Partly generated: local edits of validation photographs with the photograph's own pixels outside the "
            "mask, against the photographs, which are cut and coded alike.",
        ],
        "tables": tables,
        "tests": tests + more,
        "counts": counts,
    }


def _partly(bench: Bench, arms: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, int]]:
    samples = [
        s
        for s in first(bench.samples("edits", "val"), bench.limit)
        if s.kind == "photo" or s.kind.endswith("-exchange")
    ]
    labels = np.array([s.generated for s in samples])
    share = np.array([_share(s) for s in samples])
    resampling = Resampling(labels, [photograph(s) for s in samples], resamples=bench.resamples)
    found = [bench.scores(d, "aligned none", pictures(samples, aligned)) for d in arms.values()]
    kinds = np.array([s.kind for s in samples])
    groups = {
        **{f"{low:.0%} to {high:.0%} generated": (share > low) & (share <= high) for low, high in SHARES},
        **{kind: kinds == kind for kind in sorted(set(kinds[labels]))},
        "all": labels,
    }
    rows, tests = [], []
    for name, members in groups.items():
        chosen = ~labels | (labels & members)
        if not (labels & members).any():
            continue
        one, other = (over(labels, [scores], chosen) for scores in found)
        figures = resampling.intervals(one, other, other - one)
        rows.append([name, int((labels & members).sum()), *map(numbers, figures)])
        if name == "all" or "generated" in name:
            tests.append(judged(f"partly generated images, {name}: AUROC of Stay-Positive minus base", figures[2]))
    table = {
        "title": "Partly generated images, by the share that is",
        "head": ["images", "number", *arms, "difference"],
        "rows": rows,
    }
    return table, tests, _count(labels)


def _then(picture: Picture, condition: Perturbation, sample: Sample) -> Picture:
    def made() -> Image.Image:
        return condition(picture(), sample.sha256)

    return made


def _share(sample: Sample) -> float:
    if sample.mask is None:
        return float("nan")
    return float((np.asarray(images.decode(sample.mask).image.convert("L")) > 127).mean())


def _count(labels: Any) -> dict[str, int]:
    return {"real": int((~labels).sum()), "generated": int(labels.sum())}

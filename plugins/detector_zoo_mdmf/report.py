"""Measure mdmf.lite on the data set's ``val`` split, formats equalised, with the shortcuts beside it.

::

    python -m detector_zoo_mdmf.report --data ../shared/data --weights-dir ../shared/weights --out report/
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from detector_zoo.evaluation.datasets import read
from detector_zoo.evaluation.equalise import equalise_file, reencode
from detector_zoo.evaluation.metrics import Metric, auroc, bootstrap, summary
from detector_zoo.evaluation.samples import Sample
from detector_zoo.loading import load
from detector_zoo.training.artifact import load_detector

__all__ = ["FAMILIES", "Report", "main", "measure"]

Scorer = Callable[[Sequence[Image.Image]], NDArray[np.float32]]

FAMILIES = {
    "stable-diffusion-v2-base": "SD 2.x",
    "stable-diffusion-v2-768": "SD 2.x",
    "sd-coreml": "Core ML SD 1.x",
    "stable-diffusion.cpp": "stable-diffusion.cpp",
    "hific-recon": "HiFiC",
}
"""Collections of generated val images, and the family that their figures are pooled in."""

Attack = Callable[[Image.Image], Image.Image]
ROBUSTNESS: dict[str, Attack] = {
    "JPEG 75": lambda image: reencode(image, "jpeg", 75),
    "resize 0.5": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "blur 1": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
}


@dataclass(slots=True)
class Report:
    """Sections of figures: by section and name, a metric, a plain number or a note."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, section: str, name: str, value: Metric | float | str) -> None:
        """Store a figure."""
        self.sections.setdefault(section, {})[name] = value

    def markdown(self) -> str:
        """A table a section."""
        lines = []
        for section, figures in self.sections.items():
            lines += [f"### {section}", "", "| | |", "|---|---|"]
            lines += [f"| {name} | {_text(value)} |" for name, value in figures.items()]
            lines.append("")
        return "\n".join(lines)

    def json(self) -> str:
        """The same, metrics as objects with ``value``, ``low`` and ``high``."""
        plain = {
            section: {name: asdict(v) if isinstance(v, Metric) else v for name, v in figures.items()}
            for section, figures in self.sections.items()
        }
        return json.dumps(plain, indent=1)


def _text(value: Metric | float | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def measure(rows: Sequence[Sample], score: Scorer, threshold: float) -> Report:
    """Every figure that needs no generator.

    Args:
        rows: Of both classes.
        score: Images to log-odds.
        threshold: Of the weights, log-odds.
    """
    report = Report()
    labels = np.array([row.generated for row in rows])
    images = [equalise_file(row.path) for row in rows]
    scores = score(images)
    section = f"Equalised val: {(~labels).sum()} real, {labels.sum()} generated"
    for name, metric in summary(labels, scores, threshold).items():
        report.add(section, name, metric)
    families = np.array([FAMILIES.get(row.source, row.source) if row.generated else "" for row in rows])
    for family in sorted(set(families) - {""}):
        chosen = ~labels | (families == family)
        count = int((families == family).sum())
        report.add("AUROC by family", f"{family} ({count})", bootstrap(labels[chosen], scores[chosen]))
    sources = np.array([row.source for row in rows])
    for source in sorted(set(sources[~labels])):
        chosen = sources == source
        rate = float((scores[chosen] > threshold).mean())
        report.add("Share of photographs called generated", f"{source} ({int(chosen.sum())})", rate)
    _baselines(report, rows, labels, images)
    _format_swap(report, labels, images, scores, score)
    for name, attack in ROBUSTNESS.items():
        attacked = score([attack(image) for image in images])
        report.add("Robustness: AUROC after", name, bootstrap(labels, attacked))
    return report


def _baselines(
    report: Report, rows: Sequence[Sample], labels: NDArray[np.bool_], images: Sequence[Image.Image]
) -> None:
    """What size and file format alone give away; equalised, all are of one format.

    The best of the rules and the better sign are chosen on these very images: it is what a shortcut can give at most.
    """

    def best(*rules: Sequence[float]) -> Metric:
        signed = [sign * np.array(rule) for rule in rules for sign in (1, -1)]
        return bootstrap(labels, max(signed, key=lambda rule: auroc(labels, rule)))

    sizes, codec = [], []
    for row in rows:
        with Image.open(row.path) as image:
            sizes.append(image.size)
            codec.append(float(image.format == "PNG"))
    section = "Shortcuts: AUROC of"
    for when, known in (("before", sizes), ("after", [image.size for image in images])):
        width, height = ([float(size[i]) for size in known] for i in (0, 1))
        area = [w * h for w, h in zip(width, height, strict=True)]
        report.add(section, f"size alone, {when} equalising", best(width, height, area))
    report.add(section, "file format alone, before equalising", best(codec))


def _format_swap(
    report: Report,
    labels: NDArray[np.bool_],
    images: Sequence[Image.Image],
    png: NDArray[np.float32],
    score: Scorer,
) -> None:
    """Class and format made to disagree on the same pixels: a detector of formats falls apart here.

    ``png`` are the scores of the images as they are: PNG changes no pixel.
    """
    for codec in ("jpeg", "webp"):
        lossy = score([reencode(image, codec, 90) for image in images])
        one = auroc(labels, np.where(labels, png, lossy))
        other = auroc(labels, np.where(labels, lossy, png))
        name = codec.upper()
        report.add("Format swap", f"A: real {name} q90, generated PNG", one)
        report.add("Format swap", f"B: real PNG, generated {name} q90", other)
        report.add("Format swap", f"difference of A and B, {name}", abs(one - other))


def measure_pairs(report: Report, rows: Sequence[Sample], score: Scorer, weights: Path, work: Path) -> None:
    """AUROC of photographs' crops against their own regenerations: content tells nothing here.

    Args:
        report: Gets a section.
        rows: Photographs.
        score: Images to log-odds.
        weights: Folder of the tiny autoencoder's files.
        work: Folder for the pairs.
    """
    from detector_zoo_mdmf.pairs import KINDS, equalised_pair, make_pairs

    pairs = make_pairs(rows, weights, work)
    names = {
        "recon": "TAEF2 reconstruction",
        "variant": "reconstruction, disturbed decoder",
        "edit": "local edit (exchange)",
        "upscale": "super-resolution",
    }
    section = f"Aligned pairs made from {len(rows)} val photographs"
    for kind in KINDS:
        originals, made = [], []
        for pair in pairs:
            original, regenerated = equalised_pair(pair, kind)
            originals.append(original)
            made.append(regenerated)
        real, fake = score(originals), score(made)
        labels = np.repeat([False, True], len(pairs))
        metric = bootstrap(labels, np.concatenate([real, fake]))
        ordered = float((fake > real).mean() + 0.5 * (fake == real).mean())
        report.add(section, f"{names[kind]}: AUROC ({len(pairs)} pairs)", metric)
        report.add(section, f"{names[kind]}: share of pairs in the right order", ordered)


def load_scorer(folder: Path | None) -> tuple[Scorer, float]:
    """The detector's ``score`` and its threshold: as installed, or of what `zoo train` left in ``folder``."""
    loaded = load("mdmf.lite", device="cpu") if folder is None else load_detector(folder, method="mdmf", device="cpu")
    return loaded.score, loaded.threshold


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure mdmf.lite on the val split.")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with manifest.csv, or another set with a split val"
    )
    parser.add_argument("--weights", type=Path, help="folder that zoo train left; default: as installed")
    parser.add_argument("--weights-dir", type=Path, help="folder of the tiny autoencoder; without it no aligned pairs")
    parser.add_argument("--pairs", type=int, default=40, help="photographs that aligned pairs are made of")
    parser.add_argument("--out", type=Path, help="folder for report.md and report.json, and for the pairs")
    options = parser.parse_args(argv)
    rows = read(options.data, split="val")
    score, threshold = load_scorer(options.weights)
    report = measure(rows, score, threshold)
    if options.weights_dir is not None:
        if options.out is None:
            parser.error("aligned pairs need --out")
        photos = sorted((row for row in rows if not row.generated), key=lambda row: row.sha256)
        measure_pairs(report, photos[: options.pairs], score, options.weights_dir, options.out / "pairs")
    print(report.markdown())
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "report.md").write_text(report.markdown(), encoding="utf-8")
        (options.out / "report.json").write_text(report.json(), encoding="utf-8")


if __name__ == "__main__":
    main()

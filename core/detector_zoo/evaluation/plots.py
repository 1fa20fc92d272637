"""The report's figures, as SVG inside data URIs: drawn narrow, so that a phone shows them without shrinking."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector_zoo.evaluation.intervals import Metric
from detector_zoo.evaluation.metrics import reliability
from detector_zoo.evaluation.results import DetectorResult, Results

__all__ = ["Figure", "det", "forest", "laundering", "reliability_diagram", "roc"]

WIDTH = 4.7
"""Inches; with 72 points an inch and 96 CSS pixels, 451 px."""

# Okabe and Ito's colours, told apart by the colour-blind too; styles tell curves apart where colours run out.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", "-.", ":")
_REAL, _GENERATED = "#0072B2", "#D55E00"
_LONGEST = 26
_TICKS = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that needs nothing outside itself.

    Attributes:
        source: A data URI.
        alt: What it shows, for who cannot see it.
        caption: How to read it.
    """

    source: str
    alt: str
    caption: str


def _canvas(height: float, *, rows: int = 1, ratios: Sequence[float] | None = None) -> tuple[Any, Any]:
    # Not pyplot: it keeps figures for a window that a command line does not have.
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
    axes = canvas.subplots(rows, 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e3e6ea", linewidth=0.7)
        axis.set_axisbelow(True)
    return canvas, axes


def _figure(canvas: Any, alt: str, caption: str) -> Figure:
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "detector_zoo", "svg.fonttype": "path"}):
        canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return Figure(f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}", alt, caption)


def _scored(results: Results, one: DetectorResult) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels and log-odds of the images that the metrics are of."""
    kept = [i for i, score in enumerate(one.log_odds) if score is not None and i not in set(one.abstained)]
    labels = np.array([results.images.label[i] == "generated" for i in kept], bool)
    return labels, np.array([one.log_odds[i] for i in kept], np.float64)


def _curves(results: Results) -> list[tuple[DetectorResult, NDArray[np.float64], NDArray[np.float64], dict[str, str]]]:
    from sklearn.metrics import roc_curve

    found = []
    for index, one in enumerate(one for one in results.detectors if one.metrics):
        labels, scores = _scored(results, one)
        fpr, tpr, _ = roc_curve(labels, scores)
        look = {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _STYLES[index // len(_COLOURS) % len(_STYLES)]}
        found.append((one, fpr, tpr, look))
    return found


def _legend(canvas: Any, count: int) -> None:
    canvas.legend(loc="outside lower center", ncols=1 if count < 4 else 2, fontsize=8, frameon=False)


def roc(results: Results) -> Figure:
    """True against false positive rate, a curve a detector."""
    curves = _curves(results)
    canvas, (axis,) = _canvas(4.2 + 0.22 * len(curves))
    axis.plot([0, 1], [0, 1], color="#8a9099", linewidth=0.8, linestyle=":")
    for one, fpr, tpr, look in curves:
        axis.plot(fpr, tpr, label=f"{_short(one.name)}  {one.metrics['auroc'].value:.3f}", linewidth=1.6, **look)
    axis.set(xlabel="real images flagged (FPR)", ylabel="generated images found (TPR)", aspect="equal")
    axis.set(xlim=(0, 1), ylim=(0, 1.005))
    _legend(canvas, len(curves))
    told = "; ".join(f"{one.name}: AUROC {one.metrics['auroc']}" for one, *_ in curves)
    return _figure(canvas, f"ROC curves. {told}", "ROC: up and to the left is better, the dotted line is chance.")


def det(results: Results) -> Figure:
    """Misses against false alarms on axes of normal deviates, a curve a detector."""
    from scipy.stats import norm

    curves = _curves(results)
    canvas, (axis,) = _canvas(4.2 + 0.22 * len(curves))
    low, high = norm.ppf(0.0005), norm.ppf(0.995)
    for one, fpr, tpr, look in curves:
        axis.plot(*(np.clip(norm.ppf(rate), low, high) for rate in (fpr, 1 - tpr)), label=_short(one.name), **look)
    axis.plot([low, high], [low, high], color="#8a9099", linewidth=0.8, linestyle=":")
    places = norm.ppf(_TICKS)
    names = [f"{100 * tick:g} %" for tick in _TICKS]
    axis.set_xticks(places, names, fontsize=8)
    axis.set_yticks(places, names, fontsize=8)
    axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axis.set(xlabel="real images flagged", ylabel="generated images missed")
    _legend(canvas, len(curves))
    told = "; ".join(f"{one.name}: EER {one.metrics['eer']}" for one, *_ in curves)
    caption = "DET: down and to the left is better; on the dotted diagonal both errors are equal (EER)."
    return _figure(canvas, f"Detection error trade-off curves. {told}", caption)


def forest(one: DetectorResult, by: str) -> Figure:
    """AUROC with its interval: all images, then generator by generator, the worst on top."""
    rows: list[tuple[str, Metric, bool]] = [(f"all ({one.counts.scored_generated})", one.metrics["auroc"], False)]
    rows += [(f"{_short(g.name)} ({g.generated})", g.metrics["auroc"], g.few) for g in one.generators if g.metrics]
    canvas, (axis,) = _canvas(0.9 + 0.24 * len(rows))
    for y, (_, m, few) in enumerate(rows):
        colour = _COLOURS[0] if y else "#000000"
        axis.plot([m.low, m.high], [y, y], color=colour, linewidth=1.5 if not few else 0.8, alpha=0.5 if few else 1)
        axis.plot(
            [m.value], [y], "o" if y else "D", color=colour, markersize=5, markerfacecolor="white" if few else colour
        )
    axis.axvline(0.5, color="#8a9099", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axis.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5), xlabel="AUROC, 95 % interval")
    told = "; ".join(f"{name} {m}" for name, m, _ in rows)
    caption = f"AUROC by {by}, with the number of generated images; hollow: too few images to believe the interval."
    return _figure(canvas, f"{one.name}: AUROC by {by}. {told}", caption)


def reliability_diagram(results: Results, one: DetectorResult) -> Figure:
    """What the probabilities say against what is found, and how often each is said."""
    from scipy.stats import beta

    labels, scores = _scored(results, one)
    bins = reliability(labels, scores)
    said, found, counts = (np.array(column) for column in zip(*bins, strict=True))
    canvas, (axis, below) = _canvas(4.6, rows=2, ratios=(4, 1))
    axis.plot([0, 1], [0, 1], color="#8a9099", linewidth=0.8, linestyle=":")
    hits = found * counts
    low = np.nan_to_num(beta.ppf(0.025, hits, counts - hits + 1), nan=0.0)  # Clopper and Pearson's interval
    high = np.nan_to_num(beta.ppf(0.975, hits + 1, counts - hits), nan=1.0)
    spread = np.maximum([found - low, high - found], 0)
    axis.errorbar(said, found, yerr=spread, fmt="o-", color=_COLOURS[0], linewidth=1.2, markersize=4)
    axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="share that is generated")
    below.bar(said, counts, width=0.03, color=_COLOURS[0])
    below.set(xlim=(0, 1), xlabel="P(generated), as the detector says", ylabel="images")
    told = "; ".join(f"{100 * s:.0f} % said, {100 * f:.0f} % found, {n} images" for s, f, n in bins)
    caption = (
        "Reliability: on the dotted line a probability means what it says, for this set's share of generated images."
    )
    return _figure(canvas, f"{one.name}: reliability diagram. {told}", caption)


def laundering(audit: Mapping[str, Any]) -> list[Figure]:
    """AUROC and both classes' log-odds along each perturbation that has more than one strength.

    Args:
        audit: Results of ``zoo audit laundering``, as its JSON has them.
    """
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for point in audit["points"]:
        if point["value"] is not None:
            curves.setdefault(point["name"], []).append(point)
    figures = []
    for name, points in curves.items():
        if len(points) < 2:
            continue
        points.sort(key=lambda point: point["value"])
        x = [point["value"] for point in points]
        canvas, (above, below) = _canvas(4.2, rows=2)
        areas, fakes, reals = ([_known(point[name]) for point in points] for name in ("auroc", "generated", "real"))
        _band(above, x, areas, "AUROC", _COLOURS[2])
        above.axhline(0.5, color="#8a9099", linewidth=0.8, linestyle=":")
        above.set(ylabel="AUROC", ylim=(min(0.45, *above.get_ylim()), 1.01))
        _band(below, x, fakes, "generated", _GENERATED, "--")
        _band(below, x, reals, "real", _REAL)
        below.set(ylabel="mean log-odds", xlabel=name)
        below.legend(fontsize=8, frameon=False)
        told = "; ".join(f"{p['perturbation']}: AUROC {area}" for p, area in zip(points, areas, strict=True))
        figures.append(
            _figure(canvas, f"{name}. {told}", f"After {name}: AUROC, and the mean log-odds of both classes.")
        )
    return figures


def _known(metric: Mapping[str, float | None]) -> Metric:
    """A metric of an audit's JSON, which has no number for what is not defined."""
    value, low, high = (np.nan if (number := metric[part]) is None else number for part in ("value", "low", "high"))
    return Metric(value, low, high)


def _band(axis: Any, x: Sequence[float], metrics: Sequence[Metric], label: str, colour: str, style: str = "-") -> None:
    value, low, high = ([getattr(m, part) for m in metrics] for part in ("value", "low", "high"))
    axis.plot(x, value, marker="o", markersize=3, color=colour, linestyle=style, label=label)
    axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _short(name: str) -> str:
    # $ would start a formula, _ in front keeps a curve out of the legend.
    shown = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return shown.replace("$", r"\$").lstrip("_")

"""The learning curves of all methods in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw"]

COLUMNS = 4


def draw(detectors: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a panel a detector: the loss and the AUROC on its validation slice against steps.

    Args:
        detectors: Of a report; those without a recorded curve are left out, and without any there is no picture.
        path: Of an SVG, the same bytes for the same curves and the same matplotlib.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # One step, or none, is no curve.
    shown = [one for one in detectors if len(one.get("curve", {}).get("auroc", ())) > 1]
    if not shown:
        return
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 2.5 * rows), layout="constrained")
    FigureCanvasSVG(figure)
    for one, axes in zip(shown, figure.subplots(rows, COLUMNS, squeeze=False).flat, strict=False):
        axes.plot(*zip(*one["curve"]["loss"], strict=True), color="0.6", label="loss")
        axes.plot(*zip(*one["curve"]["auroc"], strict=True), color="tab:blue", marker=".", label="AUROC")
        axes.axvline(one["training"]["steps"]["kept"], color="0.85", linewidth=1, zorder=0)
        axes.set(title=one["name"], ylim=(min(0, *(y for _, y in one["curve"]["loss"])), None))
        axes.set_xlabel("step")
    figure.axes[0].legend()
    for axes in figure.axes[len(shown) :]:
        axes.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "lite-curves"}):
        figure.savefig(path, format="svg", metadata={"Date": None})

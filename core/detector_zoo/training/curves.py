"""The learning curve of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from detector_zoo import convert
from detector_zoo.errors import ZooError
from detector_zoo.training.checkpoints import Metrics

__all__ = ["draw"]


def draw(out: Path, title: str) -> Path:
    """Draw a run's ``metrics.jsonl`` to its ``curve.png``: the loss, and the metrics of the validation slice.

    Raises:
        ZooError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ZooError("the curve needs matplotlib", hint="pip install 'detector-zoo[train]'") from error
    rows = Metrics.read(out)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    judged = [row for row in rows if "val_auroc" in row]
    if losses:
        left.plot(*zip(*losses, strict=True), color="0.6", label="training")
    if judged:
        steps = [row["step"] for row in judged]
        left.plot(steps, [row["val_loss"] for row in judged], marker=".", label="validation")
        for key in ("auroc", "accuracy"):
            right.plot(steps, [row[f"val_{key}"] for row in judged], marker=".", label=key)
        right.axhline(0.5, color="0.8", linewidth=1)
        right.legend()
    left.set(xlabel="step", ylabel="loss")
    right.set(xlabel="step", ylabel="validation slice", ylim=(0, 1.02))
    if losses or judged:
        left.legend()
    path = out / "curve.png"
    with convert.atomic(path) as staging:
        figure.savefig(staging, format="png", dpi=110)
    return path

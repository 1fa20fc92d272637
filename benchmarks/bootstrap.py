"""How long the intervals of all ten metrics take, against drawing image by image and asking scikit-learn.

    python benchmarks/bootstrap.py [--images 100000] [--resamples 2000] [--naive 3]

Prints seconds of wall clock and of processor, and the ratio to a naive loop, whose time is that of `--naive` resamples
scaled up. `OMP_NUM_THREADS=1` and `taskset -c 0` give the figures of one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from detector_zoo.evaluation.metrics import TITLES, ece, eer, measure, tpr_at_fpr


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall clock and processor."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def naive(labels: np.ndarray, scores: np.ndarray, resamples: int) -> list[list[float]]:
    """The same ten metrics by drawing images and sorting them anew each time."""
    from sklearn import metrics as sk

    rng = np.random.default_rng(0)
    classes = [np.flatnonzero(labels == kind) for kind in (False, True)]
    found = []
    for _ in range(resamples):
        drawn = np.concatenate([rng.choice(members, len(members)) for members in classes])
        y, s = labels[drawn], scores[drawn]
        verdicts = s > 0
        found.append(
            [
                sk.roc_auc_score(y, s),
                sk.average_precision_score(y, s),
                tpr_at_fpr(y, s, 0.01),
                tpr_at_fpr(y, s, 0.05),
                sk.balanced_accuracy_score(y, verdicts),
                sk.recall_score(y, verdicts, pos_label=False),
                sk.recall_score(y, verdicts),
                eer(y, s),
                sk.brier_score_loss(y, 1 / (1 + np.exp(-s))),
                ece(y, s),
            ]
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the bootstrap.")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--naive", type=int, default=3)
    options = parser.parse_args()
    labels = np.arange(options.images) % 2 == 1
    scores = np.random.default_rng(0).normal(size=options.images) + labels
    naive(labels[:100], scores[:100], 1)  # imports
    wall, processor = seconds(lambda: measure(labels, scores, resamples=options.resamples))
    what = f"{len(TITLES)} metrics, {options.resamples} resamples of {options.images} scores"
    print(f"{what}: {wall:.1f} s, {processor:.1f} s of processor")
    slow = [part * options.resamples / options.naive for part in seconds(lambda: naive(labels, scores, options.naive))]
    print(f"naive loop, from {options.naive} resamples: {slow[0]:.0f} s, {slow[1]:.0f} s of processor")
    print(f"ratio: {slow[0] / wall:.0f} of wall clock, {slow[1] / processor:.0f} of processor")


if __name__ == "__main__":
    main()

"""`zoo score` against the bare sum of its parts, and against a naive loop, in one run.

    python benchmarks/pipeline.py [--detector mdmf] [--images 96] [--size 1024x768] [--workers 2] [--repeat 3]

The parts are decode, transform and forward, each measured alone over all the images on as many threads as the
pipeline uses; their bare sum is the time of doing one after the other without any overlap or overhead. The naive
loop opens, transforms and forwards one image at a time, as most published code does. The pipeline is what
`zoo score -o scores.jsonl` runs, its journal included; loading the detector is outside all three. Of each, the
best of the repeats counts. To hold: pipeline at least 0.9 times the rate of the bare sum.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detector_zoo import images, load
from detector_zoo.predictions import Journal
from detector_zoo.scoring import Options, run

BATCH = 16


def make(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEGs of smooth random colour with grain: decoding costs what it costs for a photograph of that size."""
    random = np.random.default_rng(0)
    paths = []
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        grain = random.normal(0, 5, (size[1], size[0], 3))
        path = folder / f"{i:04d}.jpg"
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    return paths


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detector", default="mdmf")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--size", default="1024x768")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    detector = load(args.detector)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as pool:
        paths = make(Path(folder), args.images, (width, height))
        decoded = list(pool.map(images.decode, paths))
        inputs = list(pool.map(detector.prepare, decoded))
        batches = [inputs[i : i + BATCH] for i in range(0, len(inputs), BATCH)]

        def pipeline(attempt: int) -> None:
            with Journal(Path(folder) / f"scores-{attempt}.jsonl") as journal:
                options = Options(batch_size=BATCH, workers=args.workers)
                for rows in run(map(str, paths), [detector], options, journal):
                    assert not rows[0].error
                journal.finish()

        def naive() -> None:
            for path in paths:
                with Image.open(path) as image:
                    prepared = detector.prepare(images.decode(image.convert("RGB")))
                detector.forward([prepared])

        measured: dict[str, list[float]] = {}
        for attempt in range(args.repeat):
            for name, work in {
                "decode": lambda: list(pool.map(images.decode, paths)),
                "transform": lambda: list(pool.map(detector.prepare, decoded)),
                "forward": lambda: [detector.forward(batch) for batch in batches],
                "pipeline": lambda attempt=attempt: pipeline(attempt),
                "naive": naive,
            }.items():
                measured.setdefault(name, []).append(timed(work))
        best = {name: min(times) for name, times in measured.items()}

    parts = best["decode"] + best["transform"] + best["forward"]
    n = args.images
    print(
        f"{detector.name}, {n} JPEGs of {width}x{height}, "
        f"{args.workers} workers, {torch.get_num_threads()} torch threads"
    )
    for name in ("decode", "transform", "forward"):
        print(f"  {name:<10} {n / best[name]:8.1f} images/s alone")
    print(f"zoo score    {n / best['pipeline']:8.1f} images/s")
    print(f"bare sum     {n / parts:8.1f} images/s   ratio {parts / best['pipeline']:.2f}   (to hold: at least 0.90)")
    print(f"naive loop   {n / best['naive']:8.1f} images/s   ratio {best['naive'] / best['pipeline']:.2f}")


if __name__ == "__main__":
    main()

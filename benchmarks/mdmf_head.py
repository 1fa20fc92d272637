"""Cost of MDMF's signatures, kernel and MMD on top of its embedder, in one run.

    python benchmarks/mdmf_head.py [--weights lite] [--batch 8] [--size 800x800] [--repeat 20]

Both are timed alternately on the same prepared inputs; the medians and their ratio are printed (to hold: at most
1.10 times the embedder alone).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from detector_zoo import load


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="lite")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="800x800")
    parser.add_argument("--repeat", type=int, default=20)
    args = parser.parse_args()
    detector = load(f"mdmf.{args.weights}", device="cpu").detector
    width, height = map(int, args.size.split("x"))
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    batch = torch.stack([detector.transform(Image.fromarray(pixels))] * args.batch)
    embedder, whole = [], []
    with torch.inference_mode():
        for _ in range(args.repeat + 1):
            embedder.append(seconds(lambda: detector.network.tokens(batch)))
            whole.append(seconds(lambda: detector.network(batch)))
    # The first round warms the allocator up.
    alone, both = statistics.median(embedder[1:]), statistics.median(whole[1:])
    print(f"{args.batch} images of {args.size}, {torch.get_num_threads()} threads")
    print(f"embedder alone      {alone / args.batch * 1000:7.1f} ms an image")
    print(f"embedder and head   {both / args.batch * 1000:7.1f} ms an image")
    print(f"ratio               {both / alone:7.3f}   (to hold: at most 1.100)")


if __name__ == "__main__":
    main()

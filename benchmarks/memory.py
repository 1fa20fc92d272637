"""Peak memory of scoring one large photograph in exact tiles, against what the untiled forward pass would take.

    python benchmarks/memory.py [--detector corvi] [--megapixels 24] [--untiled 0.5 1 2]

The network has seeded random weights, imported into a temporary home: memory does not depend on their values. Every
figure comes from a fresh process that loads the detector, resets the peak that the kernel keeps, decodes a JPEG of
the photograph's size and scores it: peak resident memory (VmHWM) less what was resident before the image. Untiled
images of the sizes given are measured likewise, and a line through them says what the photograph would have taken.
Linux only. To hold: at most 2.0 GB, and a tenth of the untiled need.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from detector_zoo import images, load, registry
from detector_zoo.networks.resnet import ResNet50
from detector_zoo.weights_import import import_file

UNTILED = 10**13
"""A budget, in bytes, that no image exceeds."""


def import_random(detector: str, folder: Path) -> str:
    """Import a seeded random network as weights of the detector; returns their name."""
    _, spec = registry.resolve(detector)
    assert spec is not None, detector
    torch.manual_seed(0)
    tensors = ResNet50.of(spec.config).state_dict()
    save_file(tensors, folder / "random.safetensors")
    return import_file(f"{detector}.random", folder / "random.safetensors").name


def photograph(path: Path, megapixels: float) -> Path:
    """A JPEG, 3:2, of smooth random colour with grain."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    size = (round(megapixels * 1e6 / height), height)
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 240, (24, 36, 3), dtype=np.uint8)).resize(size)
    grain = random.integers(0, 16, (height, size[0], 1), dtype=np.uint8)
    Image.fromarray(np.asarray(coarse) + grain).save(path, quality=90)
    return path


def resident(field: str) -> int:
    """A figure of /proc/self/status, in bytes: VmRSS, or VmHWM for the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(name: str, path: Path, memory: int | None) -> dict[str, float]:
    """In a process of its own: load, decode, score."""
    detector = load(name, device="cpu")
    detector.detector.memory = memory
    # What is loaded on first use belongs to the process and not to the image: decoders, the convolutions' kernels.
    detector.predict([np.zeros((64, 64, 3), np.uint8)])
    Path("/proc/self/clear_refs").write_text("5")
    baseline, start = resident("VmRSS"), time.perf_counter()
    raw = detector.forward([detector.prepare(images.decode(path))])
    return {"bytes": resident("VmHWM") - baseline, "seconds": time.perf_counter() - start, "raw": float(raw[0])}


def measured(name: str, folder: Path, megapixels: float, memory: int | None) -> dict[str, float]:
    """`measure` in a fresh process, whose line is printed."""
    path = photograph(folder / f"{megapixels:g}.jpg", megapixels)
    command = [sys.executable, __file__, "--measure", name, str(path), json.dumps(memory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    how = "untiled" if memory == UNTILED else "tiled"
    print(
        f"{megapixels:6.2f} Mpx {how:<8} {found['bytes'] / 1e9:7.3f} GB {found['seconds']:8.1f} s   "
        f"logit {found['raw']:.5f}",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detector", default="corvi")
    parser.add_argument("--megapixels", type=float, default=24)
    parser.add_argument("--untiled", type=float, nargs="+", default=[0.5, 1, 2], metavar="MEGAPIXELS")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DETECTOR_ZOO_HOME"] = folder
        name = import_random(args.detector, Path(folder))
        print(f"{name}, {torch.get_num_threads()} threads")
        tiled = measured(name, Path(folder), args.megapixels, None)["bytes"]
        untiled = [measured(name, Path(folder), size, UNTILED)["bytes"] for size in args.untiled]
    slope, offset = np.polyfit(args.untiled, untiled, 1)
    need = offset + slope * args.megapixels
    print(f"tiled        {tiled / 1e9:8.3f} GB   (to hold: at most 2.000)")
    print(f"untiled      {need / 1e9:8.3f} GB   by a line through {len(untiled)} sizes")
    print(f"ratio        {need / tiled:8.1f}      (to hold: more than 10)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))))
    else:
        main()

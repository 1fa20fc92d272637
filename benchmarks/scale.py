"""What a million images take: the local engine by the number of images, Ray beside it, and images per second per core.

    python -m benchmarks.scale [--only local|ray|methods] [--json docs/scale.json] [--repeat 3]

Three measurements, each in processes of its own with one thread for torch. Their figures go into a JSON file, and
from there into docs/scale.md by `make docs`.

local    `zoo score -o scores.parquet` with ``patch_shuffle``, the fastest detector that is one, on 100 to 100,000 JPEGs
         of 64x64, all of different content. What a run takes whatever the number of images (threads, journal, the
         syncing of the output) is measured by runs on one image and subtracted; small numbers are scored many times
         over, in turn with the others. Loading the detector is outside. To hold: rates within 10 % of each other, and
         peaks of memory.
ray      Two workers of Ray against two processes of the local engine with a half each, in turn; the median of the
         ratios of neighbours, as a machine's speed drifts. Counted is the time from 10 % of all images until all of
         them are in the output, so that neither's start counts, and waiting for the slower half does. To hold: at
         least 0.9, with the fastest detector that is one; with ``dummy``, which takes next to nothing, what is seen is
         the cost of handing images around.
methods  The embedded weights, and networks at the papers' size with random weights: images per second of processor time
         from the file to the row, one thread, JPEGs of 512x512.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = (100, 1_000, 10_000, 100_000)
LITE = ("cnnspot", "corvi", "inpx", "mdmf", "patch_shuffle", "stay_positive", "ufd_clip")
WITHIN, LEAST = 0.10, 0.90
REAL = "patch_shuffle"
"""The fastest detector that is one."""


def picture(side: int, seed: int) -> bytes:
    """A JPEG of smooth random colour with grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((side, side), 3)
    grain = random.normal(0, 6, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make(folder: Path, count: int, side: int) -> Path:
    """JPEGs of 100 pictures, each with a number in a comment, so that no two are alike; 1,000 a folder."""
    pictures = [picture(side, seed) for seed in range(min(count, 100))]
    for start in range(0, count, 1000):
        below = folder / f"{start // 1000:03d}"
        below.mkdir(parents=True)
        for i in range(start, min(start + 1000, count)):
            data = pictures[i % 100]
            comment = b"\xff\xfe\x00\x0a" + i.to_bytes(8, "big")
            below.joinpath(f"{i:06d}.jpg").write_bytes(data[:2] + comment + data[2:])
    return folder


def child(function: Callable[..., Any], *arguments: Any) -> subprocess.Popen[str]:
    """Run a function of this module in a process of its own, with one thread for torch; it prints JSON."""
    words = [sys.executable, "-m", "benchmarks.scale", "--child", function.__name__, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    out, _ = process.communicate()
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(out)


def run_local(folder: str, first: int, last: int, times: int, name: str = "dummy") -> dict[str, Any]:
    """Score some of the images below a folder as `zoo score -o` does, several times over.

    Returns:
        Seconds of each run; of the last one the clock and the number of images, now and then and when all are in the
        output; bytes of the output; and the peak memory.
    """
    import torch

    from detector_zoo import load
    from detector_zoo.predictions import Journal
    from detector_zoo.scoring import Options, run
    from detector_zoo.sources import walk

    torch.set_num_threads(1)
    count = last - first
    detector = load(name, device="cpu")
    seconds = []
    clock: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as out:
        for attempt in range(-1, times):  # the first warms up
            output = Path(out) / f"{attempt}.parquet"
            start = time.perf_counter()
            paths = islice(walk([folder]), first, first + min(count, 200) if attempt < 0 else last)
            clock.clear()
            with Journal(output) as journal:
                for done, _ in enumerate(run(paths, [detector], Options(), journal), 1):
                    if done % 50 == 0:
                        clock.append((time.time(), done))
                journal.finish()
                clock.append((time.time(), count))
            seconds.append(time.perf_counter() - start)
        size = output.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds[1:], "clock": clock, "bytes": size, "peak": peak}


def local(folder: Path, sizes: Sequence[int], repeat: int) -> dict[str, Any]:
    """Rate and memory of the local engine by the number of images."""
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in (1, *sizes)}
    for _ in range(repeat):
        for size in found:
            found[size].append(result(child(run_local, str(folder), 0, size, max(1, min(20, 2000 // size)), REAL)))
    seconds = {size: statistics.median(s for run in runs for s in run["seconds"]) for size, runs in found.items()}
    table = [
        {
            "images": size,
            "rate": (size - 1) / (seconds[size] - seconds[1]),
            "whole": size / seconds[size],
            "peak": statistics.median(run["peak"] for run in found[size]),
            "bytes": found[size][0]["bytes"] / size,
        }
        for size in sizes
    ]
    rates, peaks = [row["rate"] for row in table], [row["peak"] for row in table]
    print(f"local engine, {REAL}, JPEGs of 64x64; {seconds[1] * 1000:.0f} ms a run whatever the number of images")
    for row in table:
        print(
            f"{row['images']:>8,} images  {row['rate']:8.1f} images/s  ({row['whole']:8.1f} with what a run takes)"
            f"  peak {row['peak'] / 1e6:6.0f} MB  {row['bytes']:6.1f} bytes an image in Parquet"
        )
    spread = {"rate": max(rates) / min(rates) - 1, "peak": max(peaks) / min(peaks) - 1}
    print(f"rates within {spread['rate']:.1%}, peaks within {spread['peak']:.1%}   (to hold: {WITHIN:.0%})")
    return {"start_seconds": seconds[1], "sizes": table, "spread": spread, "holds": max(spread.values()) <= WITHIN}


def rate(clocks: Sequence[Sequence[tuple[float, int]]], count: int) -> float:
    """Images a second of all processes together, from when 10 % of the images are done until all are."""
    steps = sorted(
        (now, done - before) for clock in clocks for (_, before), (now, done) in pairwise([(0.0, 0), *clock])
    )
    total = list(accumulate(images for _, images in steps))
    first = next(i for i, images in enumerate(total) if images >= count // 10)
    return (count - total[first]) / (steps[-1][0] - steps[first][0])


def run_ray(folder: str, count: int, name: str) -> dict[str, Any]:
    """Score the images below a folder with two workers of Ray: images a second after the first 10 %, and peaks."""
    import psutil

    from detector_zoo import distributed
    from detector_zoo.cli.score import load_chosen
    from detector_zoo.scoring import Options

    clock: list[tuple[float, int]] = []
    peaks: dict[int, int] = {}
    looked = [0.0]

    def report(images: int, errors: Sequence[str]) -> None:
        clock.append((time.time(), images + (clock[-1][1] if clock else 0)))
        # Looking through all processes takes what the workers could have: now and then is enough.
        if clock[-1][0] - looked[-1] < 3:
            return
        looked.append(clock[-1][0])
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "Score" in "".join(process.cmdline()):
                    peaks[process.pid] = max(peaks.get(process.pid, 0), process.memory_info().rss)

    load = partial(load_chosen, [name], None, None)
    folders = [str(path) for path in sorted(Path(folder).iterdir())[: count // 1000]]
    with tempfile.TemporaryDirectory() as out:
        start = time.time()
        distributed.score(
            folders, Path(out), load, options=Options(), cluster=distributed.Cluster(workers=2), report=report
        )
        seconds = time.time() - start
    return {"rate": rate([clock], count), "seconds": seconds, "peak": max(peaks.values())}


def ray(folder: Path, count: int, repeat: int, name: str) -> dict[str, Any]:
    """Ray with two workers against two local processes, in turn."""
    rates: dict[str, list[float]] = {"local": [], "ray": []}
    seconds, peaks = [], []
    half = count // 2
    for _ in range(repeat):
        halves = [child(run_local, str(folder), start, start + half, 1, name) for start in (0, half)]
        rates["local"].append(rate([result(process)["clock"] for process in halves], count))
        found = result(child(run_ray, str(folder), count, name))
        rates["ray"].append(found["rate"])
        seconds.append(found["seconds"])
        peaks.append(found["peak"])
    median = {which: statistics.median(values) for which, values in rates.items()}
    ratios = [ray / local for ray, local in zip(rates["ray"], rates["local"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"{count:,} images, {name}, JPEGs of 64x64, medians of {repeat}")
    print(f"two local processes {median['local']:8.1f} images/s")
    print(f"Ray, two workers    {median['ray']:8.1f} images/s   ratio {ratio:.2f}   (to hold: at least {LEAST:.2f})")
    print("ratios of neighbours", ", ".join(f"{each:.2f}" for each in ratios))
    print(f"whole run on Ray, its start included {statistics.median(seconds):.1f} s")
    print(f"peak of a worker    {max(peaks) / 1e6:8.0f} MB", flush=True)
    return {
        "images": count,
        **median,
        "ratio": ratio,
        "ratios": ratios,
        "seconds": statistics.median(seconds),
        "peak": max(peaks),
        "holds": ratio >= LEAST,
    }


def run_method(name: str, paper: bool, count: int) -> dict[str, Any]:
    """Images per second of processor time from file to row, and what the process takes of memory."""
    import torch

    from detector_zoo.scoring import Options, run

    torch.set_num_threads(1)
    detector = at_paper_size(name) if paper else __import__("detector_zoo").load(name, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in sorted(make(Path(folder) / "in", count + 1, 512).rglob("*.jpg"))]
        list(run(paths[:1], [detector], Options(workers=0)))
        start = time.process_time()
        rows = [rows[0] for rows in run(paths[1:], [detector], Options(workers=0))]
        seconds = time.process_time() - start
    if errors := {row.error for row in rows if row.error}:
        sys.exit(f"{name}: {errors}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"name": detector.name, "rate": count / seconds, "peak": peak}


def at_paper_size(name: str) -> Any:
    """A detector with the network of the paper's weights and random numbers in it."""
    import torch
    from benchmarks.methods import CASES

    from detector_zoo import registry
    from detector_zoo.detector import Weights
    from detector_zoo.loading import LoadedDetector, import_target

    case = next(case for case in CASES if case.weights == name)
    info, spec = registry.resolve(name)
    assert spec is not None
    torch.manual_seed(0)
    plain = case.build(spec)
    built = import_target(info).from_weights(Weights(spec=spec, tensors=plain.tensors, backbone=plain.backbone))
    return LoadedDetector(info=info, spec=spec, detector=built)


def methods(only: Sequence[str]) -> list[dict[str, Any]]:
    """The table of rates per core."""
    from benchmarks.methods import CASES

    found = []
    print("images per second of one core, JPEGs of 512x512, from file to row")
    for paper, names in ((False, LITE), (True, [case.weights for case in CASES])):
        for name in names:
            if only and name.split(".")[0] not in only:
                continue
            row = result(child(run_method, name, paper, 4 if paper else 32)) | {"paper": paper}
            print(f"{row['name']:<28}{row['rate']:8.2f} images/s   peak {row['peak'] / 1e6:6.0f} MB", flush=True)
            found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=["local", "ray", "methods"], default=[])
    parser.add_argument("--method", action="append", default=[], help="for methods: only these; repeatable")
    parser.add_argument("--ray-images", type=int, default=20_000, help="a multiple of 1,000")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--most", type=int, default=max(SIZES), help="leave larger sizes out")
    parser.add_argument("--json", type=Path, help="write the figures, beside those of an earlier run of other parts")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        function, arguments = args.child
        print(json.dumps(globals()[function](*json.loads(arguments))))
        return
    parts = args.only or ["local", "ray", "methods"]
    found = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    found["machine"] = {"cpu": processor(), "cores": os.cpu_count(), "system": platform.platform(terse=True)}
    with tempfile.TemporaryDirectory() as temporary:
        if {"local", "ray"} & {*parts}:
            images = max(args.most if "local" in parts else 0, args.ray_images if "ray" in parts else 0)
            folder = make(Path(temporary) / "in", images, 64)
        if "local" in parts:
            found["local"] = local(folder, [size for size in SIZES if size <= args.most], args.repeat)
        if "ray" in parts:
            found["ray"] = ray(folder, args.ray_images, args.repeat, REAL)
            found["ray_dummy"] = ray(folder, args.ray_images, args.repeat, "dummy")
        if "methods" in parts:
            found["methods"] = methods(args.method)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    if not all(found[part]["holds"] for part in parts if part != "methods"):
        sys.exit(1)


def processor() -> str:
    """What the processor is called."""
    info = Path("/proc/cpuinfo")
    lines: Iterator[str] = iter(info.read_text().splitlines() if info.exists() else ())
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()

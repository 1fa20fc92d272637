"""Time of `zoo list` against the bare imports that it cannot do without.

    python benchmarks/startup.py [--runs 21]

Prints the median seconds of each command and the ratio of `zoo list` to the imports (to hold: at most 1.5).
The two commands alternate, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

FLOOR = [sys.executable, "-c", "import click, pluggy, yaml"]
LIST = [str(Path(sys.executable).with_name("zoo")), "list"]


# pip compiles what it installs; a checkout is compiled at the first run, unless the environment forbids it.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=21)
    runs = parser.parse_args().runs
    floors, lists = [], []
    for _ in range(runs + 1):
        floors.append(seconds(FLOOR))
        lists.append(seconds(LIST))
    # The first pair fills the file cache and the bytecode cache.
    floor, listing = statistics.median(floors[1:]), statistics.median(lists[1:])
    print(f"import click, pluggy, yaml   {floor * 1000:7.1f} ms")
    print(f"zoo list                     {listing * 1000:7.1f} ms")
    print(f"ratio                        {listing / floor:7.2f}   (to hold: at most 1.50)")


if __name__ == "__main__":
    main()

"""Memory does not grow with the number of images. Slow: it scores 100,000 files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import photo

pytestmark = pytest.mark.slow

SCRIPT = """
import resource, sys
from detector_zoo.cli import main
try:
    main(sys.argv[1:])
except SystemExit as done:
    assert not done.code, done.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def peak(*words: str) -> int:
    """Peak resident memory, in kB, of a `zoo` command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """100 and 100,000 files, in folders of at most 1,000: links to 100 small pictures."""
    root = tmp_path_factory.mktemp("many")
    few, many = root / "few", root / "many"
    few.mkdir()
    for i in range(100):
        photo(24, 24, i).save(few / f"{i:02d}.png")
    for part in range(100):
        folder = many / f"{part:02d}"
        folder.mkdir(parents=True)
        for i in range(1000):
            os.link(few / f"{i % 100:02d}.png", folder / f"{i:03d}.png")
    return few, many


@pytest.mark.parametrize(("suffix", "growth"), [(None, 20_000), ("jsonl", 20_000), ("parquet", 45_000)])
def test_100000_images_take_the_memory_of_100(
    folders: tuple[Path, Path], tmp_path: Path, suffix: str | None, growth: int
) -> None:
    peaks = []
    for folder in folders:
        words = ["-o", str(tmp_path / f"{folder.name}.{suffix}")] if suffix else []
        peaks.append(peak("score", "-d", "dummy", str(folder), *words))
    # 100,000 rows held would take 60,000 kB more. Parquet is written in groups of 4,096 rows, which 100 do not fill.
    assert peaks[1] - peaks[0] < growth, peaks

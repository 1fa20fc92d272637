"""The command line: what it prints, where, and its exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detector_zoo import __version__
from detector_zoo.cli import COMMANDS, main
from detector_zoo.predictions import read

from conftest import FakePlugins, on_a_terminal, photo

ZOO = [sys.executable, "-m", "detector_zoo"]


def zoo(*words: object, **options: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], **options)  # type: ignore[arg-type]


def rows_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_help_names_every_command() -> None:
    result = zoo("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout
        assert zoo(command, "--help").exit_code == 0


def test_version() -> None:
    assert __version__ in zoo("--version").stdout


def test_list_formats() -> None:
    names = zoo("list", "-q").stdout.split()
    assert "dummy" in names
    facts = {fact["name"]: fact for fact in json.loads(zoo("list", "--json").stdout)}
    assert sorted(facts) == names
    assert facts["dummy"]["weights"] == "none needed"
    assert "NOT a detector" in zoo("list").stdout
    for fact in json.loads(zoo("list", "--json", "--capability", "localize").stdout):
        assert "localize" in fact["capabilities"]


def test_info_of_a_detector_without_weights() -> None:
    assert "can           score, localize" in zoo("info", "dummy").stdout
    assert json.loads(zoo("info", "dummy", "--json").stdout)["name"] == "dummy"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["info", "dumy"], "Error: unknown detector 'dumy'", "dummy"),
        (["score", "-d", "dumy", "x.png"], "Error: unknown detector 'dumy'", "dummy"),
        (["score", "-d", "dummy.tag", "x.png"], "Error: unknown weights 'dummy.tag'", ""),
        (["score", "-d", "dummy"], "no images given", ""),
        (["scor"], "No such command 'scor'", "Did you mean 'score'?"),
        (["score", "-d", "dummy", "--batch-size", "0", "x.png"], "Invalid value for '--batch-size'", ""),
    ],
)
def test_misuse_is_one_line_a_hint_and_exit_2(words: list[str], message: str, hint: str) -> None:
    result = zoo(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert hint in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback() -> None:
    done = subprocess.run([*ZOO, "--debug", "info", "dumy"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "UnknownDetectorError" in done.stderr


def test_machine_formats(pictures: Path) -> None:
    by_json = rows_of(zoo("score", "-d", "dummy", pictures).stdout)
    assert [Path(str(row["path"])).name for row in by_json] == sorted(path.name for path in pictures.iterdir())
    by_csv = list(csv.DictReader(io.StringIO(zoo("score", "-d", "dummy", "--format", "csv", pictures).stdout)))
    assert [float(row["log_odds"]) for row in by_csv] == [row["log_odds"] for row in by_json]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_output_files(pictures: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"scores.{suffix}"
    result = zoo("score", "-d", "dummy", pictures, "-o", output)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{output}: 12 rows\n"
    assert len(list(read(output))) == 12
    assert sorted(tmp_path.iterdir()) == sorted([pictures, output])


def test_a_table_for_people_on_a_terminal(pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"")
    environment = os.environ | {"COLUMNS": "110", "TERM": "xterm"}
    status, text, errors = on_a_terminal([*ZOO, "score", "-d", "dummy", str(pictures)], env=environment)
    assert status == 1
    assert "\x1b[" in text  # in colour
    assert "log-odds" in text
    assert "the file is empty" in text
    assert text.count("not calibrated") == 12
    assert errors == "1 of 13 images could not be scored\n"


def test_errors_stay_readable_above_the_progress_bar(pictures: Path, tmp_path: Path) -> None:
    (pictures / "00_broken.png").write_bytes(b"")
    output = tmp_path / "scores.csv"
    command = f"{shlex.join([*ZOO, 'score', '-d', 'dummy', str(pictures), '-o', str(output)])} 2>&1"
    environment = os.environ | {"COLUMNS": "110", "TERM": "xterm"}
    status, text, _ = on_a_terminal(["bash", "-c", command], env=environment)
    assert status == 1
    # Carriage returns and erasures are what a bar is made of: on a line with neither, nothing is wiped out.
    lasting = [line.rpartition("\x1b[2K")[2] for line in text.split("\n")]
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip("\r") for line in lasting]
    assert f"{pictures}/00_broken.png: the file is empty" in lines
    assert f"{output}: 13 rows" in lines
    assert "scoring" in text


def test_errors_go_to_stderr_rows_and_exit_status(pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.png").write_bytes(b"<html>")
    output = tmp_path / "scores.jsonl"
    result = zoo("score", "-d", "dummy", pictures, tmp_path / "missing.jpg", "-o", output)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"{pictures}/broken.png: not an image that Pillow can read")
    assert lines[1] == f"{tmp_path}/missing.jpg: no such file"
    assert lines[2] == f"{output}: 14 rows"
    assert lines[3] == "2 of 14 images could not be scored"
    assert [bool(row.error) for row in read(output)].count(True) == 2


def test_paths_from_standard_input(pictures: Path) -> None:
    listed = "\n".join(str(path) for path in sorted(pictures.iterdir())[:5])
    assert len(rows_of(zoo("score", "-d", "dummy", "-", input=listed).stdout)) == 5


@pytest.mark.parametrize("output", ["scores.txt", "missing/scores.csv", "."])
def test_an_unwritable_output_is_told_before_any_work(pictures: Path, tmp_path: Path, output: str) -> None:
    result = zoo("score", "-d", "dummy", pictures, "-o", tmp_path / output)
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith("Error: ")
    assert str(tmp_path) in result.stderr


def test_heatmaps(pictures: Path, tmp_path: Path) -> None:
    maps = tmp_path / "new" / "maps"
    assert zoo("score", "-d", "dummy", pictures, "--heatmap", maps).exit_code == 0
    assert len(list(maps.glob("*.dummy.png"))) == 12
    blocked = tmp_path / "file"
    blocked.touch()
    result = zoo("score", "-d", "dummy", pictures, "--heatmap", blocked / "maps")
    assert result.exit_code == 1
    assert "cannot write heatmaps here" in result.stderr


def test_max_pixels(tmp_path: Path) -> None:
    photo(30, 30).save(tmp_path / "p.png")
    result = zoo("score", "-d", "dummy", tmp_path / "p.png", "--max-pixels", "899")
    assert result.exit_code == 1
    assert "900 pixels; the limit is 899" in result.stderr
    assert zoo("score", "-d", "dummy", tmp_path / "p.png", "--max-pixels", "900").exit_code == 0


def test_all_without_any_weights_says_so(fake_plugins: FakePlugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTOR_ZOO_PLUGINS", "dummy")
    fake_plugins.add("bad", RuntimeError("must not be loaded"))
    result = zoo("score", "x.png")
    assert result.exit_code == 2
    assert "no installed detector has its weights at hand" in result.stderr


def test_not_resuming_starts_afresh(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    zoo("score", "-d", "dummy", pictures, "-o", output)
    zoo("score", "-d", "dummy", pictures / "00.jpg", "-o", output)
    assert len(list(read(output))) == 12
    zoo("score", "-d", "dummy", pictures / "00.jpg", "-o", output, "--no-resume")
    assert len(list(read(output))) == 1


def test_interrupt_keeps_what_is_scored(tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for i in range(400):
        Image.new("RGB", (64, 64), (i % 256, i // 256, 7)).save(many / f"{i:03d}.png")
    output = tmp_path / "scores.jsonl"
    command = [*ZOO, "score", "-d", "dummy", str(many), "-o", str(output)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("scores.jsonl.journal*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode != 0:  # it may have finished before the signal came
        assert process.returncode == 130
        assert "what is scored is kept" in errors
        assert not output.exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert Counter(row.path for row in read(output)) == Counter(str(path) for path in many.iterdir())


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(delays=st.lists(st.floats(0, 0.5), min_size=1, max_size=3), suffix=st.sampled_from(["jsonl", "parquet", "csv"]))
def test_killed_runs_add_up_to_every_image_and_detector_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, fake_home: Path, delays: list[float], suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("kill")
    images = folder / "images"
    images.mkdir()
    for i in range(250):
        Image.new("RGB", (40, 40), (i, 255 - i, i // 2)).save(images / f"{i:03d}.png")
    output = folder / f"scores.{suffix}"
    command = [*ZOO, "score", "-d", "dummy", "-d", "tenth", str(images), "-o", str(output), "--workers", "1"]
    environment = os.environ | {"PYTHONPATH": str(fake_home)}
    for delay in delays:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment, start_new_session=True)
        while not list(folder.glob(f"{output.name}*")) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    seen = Counter((row.path, row.detector) for row in read(output))
    assert seen == Counter((str(path), name) for path in images.iterdir() for name in ("dummy", "tenth"))
    assert not list(folder.glob("*.journal*"))


@pytest.fixture(scope="module")
def fake_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second detector for other processes: a distribution on PYTHONPATH, slow enough to be killed midway."""
    root = tmp_path_factory.mktemp("tenth")
    (root / "zoo_tenth.py").write_text(
        "import time\n"
        "import numpy as np\n"
        "from detector_zoo import DetectorInfo, hookimpl\n"
        "@hookimpl\n"
        "def register_detectors(register):\n"
        "    register(DetectorInfo(name='tenth', summary='slow', load='zoo_tenth:Tenth'))\n"
        "class Tenth:\n"
        "    def score(self, images):\n"
        "        time.sleep(0.002 * len(images))\n"
        "        return np.array([np.asarray(i)[..., 0].mean() for i in images], np.float32)\n"
    )
    info = root / "zoo_tenth-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-tenth\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[detector_zoo]\ntenth = zoo_tenth\n")
    return root


def test_shuffled_order_changes_no_score(pictures: Path) -> None:
    paths = [str(path) for path in pictures.iterdir()]
    random.Random(3).shuffle(paths)
    scores = [
        {row["path"]: row["log_odds"] for row in rows_of(zoo("score", "-d", "dummy", *order).stdout)}
        for order in (paths, sorted(paths))
    ]
    assert scores[0] == scores[1]

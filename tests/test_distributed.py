"""The engine for millions: the local engine's rows, whatever dies on the way."""

from __future__ import annotations

import io
import json
import os
import signal
import statistics
import tarfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector_zoo import distributed, load, predictions, scoring
from detector_zoo.cli import main
from detector_zoo.cli.score import load_chosen
from detector_zoo.distributed import Cluster, Count, inputs, parts
from detector_zoo.distributed.parts import Parts
from detector_zoo.errors import DatasetError, ZooError
from detector_zoo.predictions import Prediction
from detector_zoo.scoring import Options

from conftest import encoded, photo

pytestmark = pytest.mark.xdist_group("ray")
"""Two clusters at once on two cores would wait for each other."""

FAST = "cnnspot"
"""Real weights that need little."""


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A cluster of two workers on this machine, for all tests of this file."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = True  # as where somebody else imported Ray before
    with distributed.connected(Cluster(workers=2)):
        yield


def zoo(*words: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, words)], **options)


def on_ray(*words: str | Path, **options: Any) -> Result:
    return zoo("--engine", "ray", *words, **options)


def local(paths: Sequence[str | Path], *names: str, **options: Any) -> list[Prediction]:
    detectors = [load(name, device="cpu") for name in names]
    return [row for rows in scoring.run(map(str, paths), detectors, Options(**options)) for row in rows]


def same(found: Sequence[Prediction], expected: Sequence[Prediction]) -> None:
    """The same rows; what networks say to the last digits, which depend on what else is in the batch."""
    assert [row.path for row in found] == [row.path for row in expected]
    for one, other in zip(found, expected, strict=True):
        if one.log_odds is not None:
            changes = {"raw": other.raw, "log_odds": other.log_odds, "probability": other.probability}
            assert one.log_odds == pytest.approx(other.log_odds, abs=1e-4)
            one = replace(one, **changes)
        assert one == other


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty files, two of which are no images."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for i in range(28):
        photo(64, 48 + 16 * (i % 2), i).save(folder / ("deep" if i % 5 == 0 else "") / f"{i:02d}.jpg")
    (folder / "30.png").write_bytes(b"")
    (folder / "31.jpg").write_bytes(b"nonsense")
    return folder


def files(folder: Path) -> list[str]:
    from detector_zoo.sources import walk

    return list(walk([str(folder)]))


@pytest.mark.parametrize("decoders", [0, 1])
def test_rows_are_those_of_the_local_engine(ray: None, folder: Path, tmp_path: Path, decoders: int) -> None:
    words = ["-d", "dummy", "-d", FAST, "--fuse", "mean", "--workers", "1", "--decoders", str(decoders)]
    done = on_ray(folder, "-o", tmp_path / "out", "--part-size", "8", *words)
    assert done.exit_code == 1, done.output
    assert "2 of 30 images could not be scored" in done.stderr
    assert f"{folder / '30.png'}: the file is empty" in done.stderr
    same(list(predictions.read(tmp_path / "out")), local(files(folder), "dummy", FAST, fuse="mean"))
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 4


def test_a_second_run_scores_what_is_missing(ray: None, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [folder, "-o", out, "-d", "dummy", "--part-size", "8"]
    assert on_ray(*words).exit_code == 1
    before = {path: path.stat().st_mtime_ns for path in sorted(out.glob("part-*"))}
    lost = list(before)[1]
    lost.unlink()
    (out / f".{lost.name}.partial").write_bytes(b"half a part")
    photo(64, 64, 99).save(folder / "99.jpg")  # comes last, into the last part

    again = on_ray(*words)
    assert "2 of 31 images could not be scored" in again.stderr  # those of the parts that were kept, too
    after = {path: path.stat().st_mtime_ns for path in sorted(out.glob("part-*"))}
    kept = [path for path in after if after[path] == before.get(path)]
    assert kept == [*list(before)[:1], list(before)[2]]
    assert not list(out.glob(".*"))
    same(list(predictions.read(out)), local(files(folder), "dummy"))
    complete = json.loads((out / "_run.json").read_text())["complete"]
    assert complete == {"parts": 4, "images": 31, "rows": 31, "errors": 2}

    (folder / "deep").rename(tmp_path / "elsewhere")  # six images fewer: all slices move, and one is left over
    assert on_ray(*words).exit_code == 1
    same(list(predictions.read(out)), local(files(folder), "dummy"))

    refused = on_ray(*words, "--threshold", "1")
    assert refused.exit_code == 1
    assert "made with other detectors" in refused.stderr
    assert on_ray(*words, "--threshold", "1", "--no-resume").exit_code == 1
    assert {row.threshold for row in predictions.read(out) if not row.error} == {1.0}


def archive(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_archives(ray: None, tmp_path: Path) -> None:
    pictures = {f"{i:04d}.jpg": encoded(photo(48, 48, i), "JPEG") for i in range(8)}
    hostile = {"../../up.jpg": pictures["0000.jpg"], "/etc/passwd.jpg": pictures["0001.jpg"]}
    notes = {"0000.json": b"{}", ".hidden.jpg": b"", "empty.jpg": b"", "bad.jpg": b"no picture"}
    archive(tmp_path / "shard-08.tar", {**pictures, **notes})
    archive(tmp_path / "shard-09.tar", hostile)
    archive(tmp_path / "shard-10.tar.gz", {"x.png": pictures["0002.jpg"]}, "w:gz")
    archive(tmp_path / "none.tar", {"readme.txt": b""})
    whole = archive(tmp_path / "cut.tar", pictures).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:9000])
    (tmp_path / "short.tar").write_bytes(whole[: 2 * 2048 + 100])  # cut where tarfile sees an end

    words = [tmp_path / "shard-{08..09}.tar", tmp_path / "*.gz", tmp_path / "none.tar", *tmp_path.glob("[cs]*t.tar")]
    done = on_ray(*words, "-o", tmp_path / "out", "-d", "dummy")
    assert done.exit_code == 1, done.output
    rows = {row.path.removeprefix(f"{tmp_path}/"): row for row in predictions.read(tmp_path / "out")}
    for name in pictures:
        (tmp_path / name).write_bytes(pictures[name])
        expected = local([tmp_path / name], "dummy")[0]
        assert replace(rows[f"shard-08.tar::{name}"], path=expected.path) == expected
    assert rows["shard-09.tar::../../up.jpg"].log_odds == rows["shard-08.tar::0000.jpg"].log_odds
    assert rows["shard-09.tar::/etc/passwd.jpg"].log_odds == rows["shard-08.tar::0001.jpg"].log_odds
    assert rows["shard-10.tar.gz::x.png"].note == "content is JPEG, extension says .png"
    errors = {path: row.error for path, row in rows.items() if row.error}
    assert errors["shard-08.tar::empty.jpg"] == "the file is empty"
    assert "not an image" in errors["shard-08.tar::bad.jpg"]
    assert errors["none.tar"] == "no image in this archive"
    for name, cause in {"cut.tar": "unexpected end of data", "short.tar": "truncated header, where"}.items():
        read = sum(path.startswith(f"{name}::") and not row.error for path, row in rows.items())
        assert 2 <= read < 8
        assert errors[name].startswith(f"the archive cannot be read after {read} images ({cause}")
    assert len(errors) == 5


def test_urls_by_fsspec(ray: None, folder: Path, tmp_path: Path) -> None:
    url = f"file://{folder}"
    done = on_ray(url, f"{url}/0[12].jpg", f"{url}/missing.jpg", "-o", tmp_path / "out", "-d", "dummy")
    assert done.exit_code == 1, done.output
    rows = list(predictions.read(tmp_path / "out"))
    expected = local([*sorted(folder.rglob("*.*")), folder / "01.jpg", folder / "02.jpg"], "dummy")
    assert Counter(row.sha256 for row in rows[:-1]) == Counter(row.sha256 for row in expected)
    by_path = {f"file://{row.path}": row for row in expected}
    for row in rows[:-1]:
        assert replace(row, path="", sha256="") == replace(by_path[row.path], path="", sha256="")
    assert rows[-1].error == "no such file"


def test_a_list_on_standard_input(ray: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    names = ["photos/01.jpg", f"file://{folder}/02.jpg", "photos/deep"]
    done = on_ray("-", "-o", "out", "-d", "dummy", "--part-size", "3", input="\n".join(names))
    assert done.exit_code == 0, done.output
    assert [row.path for row in predictions.read("out")] == [*names[:2], *files(Path("photos/deep"))]
    assert sorted(path.name[:7] for path in Path("out").iterdir()) == ["_run.js", "part-00", "part-00", "part-00"]


def test_the_end_of_a_run_that_failed_is_one_line(ray: None, folder: Path, tmp_path: Path) -> None:
    def fails(*args: Any, **settings: Any) -> Any:
        if "device" not in settings:  # in a worker
            raise ZooError("no such weights", hint="look elsewhere")
        return [load("dummy")]

    with pytest.raises(ZooError, match="no such weights") as raised:
        distributed.score([str(folder)], tmp_path / "out", fails, options=Options(), cluster=Cluster(workers=1))
    assert raised.value.hint == "look elsewhere"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name it with --output"),
        (["-o", "out", "--format", "json"], "--format does not work with --engine ray"),
        (["-o", "out", "--heatmap", "maps"], "--heatmap does not work"),
        (["-o", "out", "--workers", "0"], "--workers 0 does not work"),
    ],
)
def test_what_does_not_go_with_ray_is_misuse(words: list[str], said: str, pictures: Path) -> None:
    done = on_ray(pictures, "-d", "dummy", *words)
    assert done.exit_code == 2
    assert said in done.stderr


def test_what_is_for_ray_alone_is_misuse(pictures: Path) -> None:
    for option in ("--address", "--gpus-per-worker", "--decoders", "--part-size"):
        done = zoo(pictures, "-d", "dummy", option, "1")
        assert done.exit_code == 2
        assert f"{option} is for --engine ray" in done.stderr


def test_outputs_and_inputs_that_cannot_be_are_refused(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").touch()
    (tmp_path / "file").touch()
    for name, said in {"taken": "holds something else", "file": "not a directory", "x.csv": "Parquet files"}.items():
        done = on_ray(pictures, "-d", "dummy", "-o", tmp_path / name)
        assert (done.exit_code, said in done.stderr) == (1, True), done.output
    for name, said in {
        str(tmp_path / "no*.jpg"): "nothing matches this pattern",
        "nosuch://bucket/x": "fsspec knows no such file system",
        "file:///no/such/folder/*.jpg": "no image there",
        "x{1..99999999}.jpg": "the braces stand for 99,999,999 names",
    }.items():
        done = on_ray(name, "-d", "dummy", "-o", tmp_path / "out")
        assert (done.exit_code, said in done.stderr) == (1, True), done.output


def test_a_file_system_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(scheme: str) -> None:
        raise ImportError(f"Install {scheme}fs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ZooError, match="Install s3fs") as raised:
        inputs.require(["here", "simplecache::s3://bucket/a"[13:]])
    assert raised.value.hint == "pip install s3fs"


def test_two_processes_do_not_write_one_directory(tmp_path: Path) -> None:
    with Parts.opened(tmp_path / "out", {}), pytest.raises(DatasetError, match="another process"):  # noqa: SIM117
        with Parts.opened(tmp_path / "out", {}):
            pass


def test_a_run_is_complete_or_says_what_is_missing(tmp_path: Path, pictures: Path) -> None:
    from detector_zoo.rows import to_table

    rows = local(sorted(pictures.iterdir()), "dummy")
    with Parts.opened(tmp_path / "out", {}) as out:
        out.add(0, "0" * 16, to_table(rows), Count(12, 12, 0))
        with pytest.raises(DatasetError, match="1 of 2 parts are missing"):
            out.finish(2)
        assert out.finish(1) == Count(12, 12, 0)
    assert list(predictions.read(tmp_path / "out")) == rows
    with pytest.raises(DatasetError, match="without predictions"):
        list(predictions.read(pictures))
    with pytest.raises(DatasetError, match="not a directory"):
        parts.ready(next((tmp_path / "out").glob("part-*")))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.sampled_from(["a.jpg", "b.tar", "c.png", "s3://x/d.tar.gz", "s3://x/e.jpg"]), max_size=12),
    size=st.integers(1, 5),
)
def test_slices_are_the_inputs_in_order(names: list[str], size: int) -> None:
    found = list(inputs.slices(["-"], size, io.StringIO("\n".join(names)))) if names else []
    assert [name for part in found for name in part.names] == names
    assert [part.number for part in found] == list(range(len(found)))
    for part in found:
        assert 1 <= len(part.names) <= (1 if part.archive else size)
        assert part.archive == part.names[0].endswith((".tar", ".gz"))
    assert len({part.digest for part in found}) == len({part.names for part in found})


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("{1..2}/{0..1}.jpg", ["1/0.jpg", "1/1.jpg", "2/0.jpg", "2/1.jpg"]),
        ("s3://b/{000..001}", ["s3://b/000", "s3://b/001"]),
        ("plain{x}.jpg", ["plain{x}.jpg"]),
    ],
)
def test_braces_count(argument: str, expected: list[str]) -> None:
    assert list(inputs._counted(argument)) == expected


def numbered(data: bytes, number: int) -> bytes:
    """A JPEG with a comment in it: other bytes, the same picture."""
    return data[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + data[2:]


def workers(stage: str = "Score") -> list[psutil.Process]:
    """The processes that score, or do another stage."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if f"MapBatches({stage}" in "".join(child.cmdline()):
                found.append(child)
    return found


def many(folder: Path, count: int) -> Path:
    """JPEGs of which no two are alike, and one of 1,009 is none."""
    pictures = [encoded(photo(64, 64, seed), "JPEG") for seed in range(50)]
    for i in range(count):
        path = folder / f"{i // 1000:02d}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"broken" if i % 1009 == 0 else numbered(pictures[i % 50], i))
    return folder


def scored(folder: Path, out: Path, cluster: Cluster, report: Callable[[int, Sequence[str]], None]) -> Count:
    loads = partial(load_chosen, ["dummy"], None, None)
    return distributed.score(
        [str(folder)], out, loads, options=Options(), cluster=cluster, part_images=500, report=report
    )


@pytest.mark.slow
def test_20000_images_and_a_worker_killed_on_the_way(ray: None, tmp_path: Path) -> None:
    folder = many(tmp_path / "many", 20_000)
    killed: list[int] = []
    memory: dict[int, list[int]] = defaultdict(list)
    seen = 0
    lock = threading.Lock()

    def report(images: int, errors: Sequence[str]) -> None:
        nonlocal seen
        with lock:
            seen += images
            alive = workers()
            for process in alive:
                # One that takes the killed one's place is seen while it still loads what the others have.
                if killed and process.pid not in memory:
                    continue
                with suppress(psutil.NoSuchProcess):
                    memory[process.pid].append(process.memory_info().rss)
            if seen > 6_000 and alive and not killed:
                killed.append(alive[0].pid)
                os.kill(alive[0].pid, signal.SIGKILL)

    found = scored(folder, tmp_path / "out", Cluster(workers=2), report)
    assert killed
    assert found == Count(20_000, 20_000, 20)
    rows = list(predictions.read(tmp_path / "out"))
    assert len({row.path for row in rows}) == len(rows)
    assert rows == local(files(folder), "dummy")
    # Of each worker, when it has warmed up and when it is nearly done.
    for samples in memory.values():
        if len(samples) >= 20:
            early, late = samples[len(samples) // 4 : len(samples) // 2], samples[-len(samples) // 4 :]
            assert statistics.median(late) < 1.1 * statistics.median(early), samples
    assert any(len(samples) >= 20 for samples in memory.values())


@pytest.mark.slow
def test_a_decoder_killed_on_the_way(ray: None, tmp_path: Path) -> None:
    folder = many(tmp_path / "many", 4_000)
    killed: list[int] = []
    seen = 0

    def report(images: int, errors: Sequence[str]) -> None:
        nonlocal seen
        seen += images
        # Later ones too: Ray hands on what a decoder made before it died, and it made some.
        if seen > 600 * (len(killed) + 1) and len(killed) < 3 and (alive := workers("Decode")):
            killed.append(alive[0].pid)
            os.kill(alive[0].pid, signal.SIGKILL)

    found = scored(folder, tmp_path / "out", Cluster(workers=1, decoders=1), report)
    assert killed
    assert found == Count(4_000, 4_000, 4)
    assert list(predictions.read(tmp_path / "out")) == local(files(folder), "dummy")


def test_ray_listens_on_the_loopback_interface_alone(ray: None) -> None:
    listening = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        # Ray's helpers come and go, and one that has ended listens to nothing.
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            name, connections = process.name(), process.net_connections("inet")
            listening += [
                (name, connection.laddr.ip.removeprefix("::ffff:"))
                for connection in connections
                if connection.status == psutil.CONN_LISTEN
            ]
    assert listening
    assert {ip for _, ip in listening} == {"127.0.0.1"}, listening

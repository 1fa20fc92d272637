"""The parts of the engine for millions that are the same without a cluster: cuts, pieces, inputs, what is told."""

from __future__ import annotations

import io
import json
import random
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch
from click.testing import CliRunner, Result
from fsspec.spec import AbstractFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from detector_zoo import distributed, images, load, predictions
from detector_zoo.cli import main
from detector_zoo.cli.score import load_chosen
from detector_zoo.distributed import Cluster, Count, engine, inputs, stages
from detector_zoo.distributed.assembly import assembled
from detector_zoo.distributed.inputs import Slice
from detector_zoo.distributed.ordered import in_order
from detector_zoo.distributed.parts import Parts
from detector_zoo.errors import DatasetError, ImageError, ZooError
from detector_zoo.loading import LoadedDetector
from detector_zoo.rows import to_table
from detector_zoo.scoring import Options, Source, run

from conftest import encoded, photo


def on_ray(*words: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(main, ["score", "--engine", "ray", *map(str, words)], **options)


@settings(max_examples=20, deadline=None)
@given(
    jobs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=30),
    workers=st.integers(1, 4),
    ahead=st.integers(0, 8),
    limit=st.integers(0, 100),
)
def test_results_come_in_order_whichever_thread_is_first(
    jobs: list[tuple[int, int]], workers: int, ahead: int, limit: int
) -> None:
    begun = 0

    def feed() -> Iterator[tuple[int, tuple[int, int]]]:
        nonlocal begun
        for begun, job in enumerate(jobs, 1):
            yield begun - 1, job

    def work(job: tuple[int, tuple[int, int]]) -> tuple[int, int]:
        number, (milliseconds, size) = job
        time.sleep(milliseconds / 1000)
        return number, size

    for expected, number in enumerate(in_order(feed(), work, workers=workers, ahead=ahead, limit=limit)):
        assert number == expected
        assert begun <= expected + workers + ahead
    assert begun == len(jobs)


def test_what_waits_for_a_slow_result_is_bounded_in_bytes() -> None:
    done: list[int] = []
    before_first: list[int] = []
    full = threading.Event()

    def work(number: int) -> tuple[int, int]:
        if number == 0:
            full.wait(30)
            time.sleep(0.1)  # for what should not come
            before_first.extend(done)
        else:
            done.append(number)
            if len(done) == 8:
                full.set()
        return number, 10

    assert list(in_order(range(40), work, workers=4, ahead=40, limit=50)) == list(range(40))
    assert sorted(before_first) == list(range(1, 9))  # five of ten bytes, and one with each of the three other threads


def test_an_error_comes_in_its_place_and_lets_the_threads_go() -> None:
    def work(number: int) -> tuple[int, int]:
        if number == 3:
            time.sleep(0.05)
            raise LookupError(number)
        return number, 10

    broken = in_order(range(20), work, workers=3, ahead=9, limit=0)
    assert [next(broken) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError):
        next(broken)
    left = in_order(range(20), work, workers=3, ahead=0, limit=0)
    assert next(left) == 0
    left.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("zoo-ordered")]


class Handle:
    """An actor's handle, of an actor in this process."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name))


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> stages.Attempts:
    monkeypatch.setattr("ray.get", lambda value: value)
    return stages.Attempts()


@pytest.fixture
def job(attempts: stages.Attempts) -> stages.Job:
    loads = partial(load_chosen, ["dummy"], None, None)
    return stages.Job(loads, Options(batch_size=4, workers=4), None, torch.get_num_threads(), Handle(attempts))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that are done in any order."""
    prepare = LoadedDetector.prepare

    def prepared(self: LoadedDetector, decoded: images.DecodedImage) -> Any:
        time.sleep(random.random() * 0.01)
        return prepare(self, decoded)

    monkeypatch.setattr(LoadedDetector, "prepare", prepared)


@pytest.fixture
def slice_of_files(tmp_path: Path) -> Slice:
    """Thirty images of two sizes and one broken file."""
    for i in range(30):
        photo(32, 20 + 12 * (i % 3 == 0), i).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "30.png").write_bytes(b"broken")
    return Slice(0, tuple(str(path) for path in sorted(tmp_path.glob("*.png"))))


def packs(job: stages.Job, part: Slice) -> list[dict[str, Any]]:
    decode = stages.Decode(job)
    return [pack for share in part.shares(stages._SHARE) for pack in decode(stages._share_table(share))]


def pieces_of(job: stages.Job, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    scorer = stages.ScorePrepared(job)
    return [row for pack in found for table in scorer(pack) for row in table.to_pylist()]


def test_a_decoder_that_runs_again_makes_the_same_packs(
    job: stages.Job, hasty: None, slice_of_files: Slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_PACK_BYTES", 10_000)
    first, *others = (packs(job, slice_of_files) for _ in range(3))
    cuts = [[item.index for item in pack["pack"][0][1]] for pack in first]
    assert [index for cut in cuts for index in cut] == list(range(31))
    assert 5 <= len(cuts) <= 12
    for other in others:
        assert [[item.index for item in pack["pack"][0][1]] for pack in other] == cuts

    # It dies after three packs: Ray keeps those, and hands on what comes after the third of the second run.
    (found,) = assembled(iter(pieces_of(job, first[:3] + others[0][3:])), lambda *_: None)
    assert found.complete
    table, count = found.rows()
    assert table["path"].to_pylist() == list(slice_of_files.names)
    assert count == Count(31, 31, 1)


@pytest.mark.parametrize("apart", [False, True])
def test_workers_divide_a_slice(
    apart: bool, job: stages.Job, slice_of_files: Slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_SHARE", 12)
    shares = list(slice_of_files.shares(12))
    assert [(share.first, len(share.names), share.last) for share in shares] == [
        (0, 12, False),
        (12, 12, False),
        (24, 7, True),
    ]
    tables = [stages._share_table(share) for share in shares]
    score = stages.Score(job)
    pieces = (
        pieces_of(job, packs(job, slice_of_files))
        if apart
        else [row for table in tables for piece in score(table) for row in piece.to_pylist()]
    )
    assert [piece["total"] for piece in pieces] == [-1, -1, 31]
    random.Random(5).shuffle(pieces)
    (found,) = assembled(iter(pieces), lambda *_: None)
    assert found.complete
    table, count = found.rows()
    assert table["path"].to_pylist() == list(slice_of_files.names)
    assert count == Count(31, 31, 1)


def test_an_archive_and_the_end_are_not_divided() -> None:
    (archive,) = Slice(3, ("photos.tar",), archive=True).shares(12)
    (end,) = Slice(4, ()).shares(12)
    assert (archive.names, archive.archive, archive.first, archive.last) == (("photos.tar",), True, 0, True)
    assert (end.names, end.archive, end.first, end.last) == ((), False, 0, True)


def test_images_without_a_tensor_weigh_what_their_pixels_do(
    job: stages.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_PACK_BYTES", 3 * 3 * 64 * 64)
    for i in range(7):
        photo(64, 64, i).save(tmp_path / f"{i}.png")
    found = packs(job, Slice(0, tuple(str(path) for path in sorted(tmp_path.iterdir()))))
    assert [len(pack["pack"][0][1]) for pack in found] == [3, 3, 1]


def test_pieces_that_do_not_fit_are_no_part(
    job: stages.Job, slice_of_files: Slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_PACK_BYTES", 10_000)
    pieces = pieces_of(job, packs(job, slice_of_files))
    good = [{**piece, "number": 1} for piece in pieces]
    random.Random(3).shuffle(good)
    # The image of one place is lost, another one is there twice: as many as there should be.
    pieces[0] = {**pieces[0], "indices": [1, *pieces[0]["indices"][1:]]}
    seen = []
    whole, misfit = assembled(iter([*pieces, *good]), lambda count, errors: seen.append((count, len(errors))))
    assert (whole.number, whole.complete, misfit.number, misfit.complete) == (1, True, 0, False)
    assert len(misfit.indices) == misfit.total == 31
    assert whole.rows()[0]["path"].to_pylist() == list(slice_of_files.names)
    assert [sum(column) for column in zip(*seen, strict=True)] == [62, 2]


Spoil = Callable[[int, dict[str, Any]], dict[str, Any]]


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch, attempts: stages.Attempts) -> Callable[[Spoil], None]:
    """The engine with its stages one after the other in this process; a function may spoil the pieces of a round."""
    rounds = 0
    spoils: Spoil = lambda number, piece: piece  # noqa: E731 (replaced below)

    def results(stage: Callable[[Any], Any], job: stages.Job, shape: object) -> Iterator[Mapping[str, Any]]:
        nonlocal rounds
        rounds += 1
        scorer = stages.Score(job)
        for table in stage(None):
            for piece in scorer(table):
                yield from (spoils(rounds, row) for row in piece.to_pylist())

    def spoil(function: Spoil) -> None:
        nonlocal spoils
        spoils = function

    monkeypatch.setattr(engine, "_require_ray", lambda cluster: None)
    monkeypatch.setattr(engine, "connected", lambda cluster: nullcontext())
    monkeypatch.setattr(engine, "_shape", lambda cluster, device: SimpleNamespace(threads=torch.get_num_threads()))
    monkeypatch.setattr(engine, "_attempts", lambda: Handle(attempts))
    monkeypatch.setattr(engine, "_results", results)
    return spoil


def scored(folder: Path, out: Path, report: Callable[[int, Sequence[str]], None]) -> Count:
    loads = partial(load_chosen, ["dummy"], None, None)
    return distributed.score(
        [str(folder)], out, loads, options=Options(), cluster=Cluster(), part_images=5, report=report
    )


def test_a_slice_whose_pieces_do_not_fit_is_scored_again(
    no_cluster: Callable[[Spoil], None], pictures: Path, tmp_path: Path
) -> None:
    came: list[tuple[int, int]] = []

    def spoil(number: int, piece: dict[str, Any]) -> dict[str, Any]:
        came.append((number, piece["number"]))
        return {**piece, "indices": [1, 1, 2, 3, 4]} if number == 1 and piece["number"] == 1 else piece

    no_cluster(spoil)
    said: list[str] = []
    found = scored(pictures, tmp_path / "out", lambda _, lines: said.extend(lines))
    assert found == Count(12, 12, 0)
    assert came == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 1), (2, 3)]  # 3 is the end
    assert said == ["slice 1: its pieces do not fit together, it is scored again"]
    expected = [row for rows in run(map(str, sorted(pictures.iterdir())), [load("dummy")], Options()) for row in rows]
    assert list(predictions.read(tmp_path / "out")) == expected


def test_a_slice_whose_pieces_never_fit_ends_the_run(
    no_cluster: Callable[[Spoil], None], pictures: Path, tmp_path: Path
) -> None:
    no_cluster(lambda _, piece: {**piece, "indices": [0] * 5} if piece["number"] == 0 else piece)
    said: list[str] = []
    with pytest.raises(ZooError, match="pieces of slice 0 do not fit together after 3 attempts"):
        scored(pictures, tmp_path / "out", lambda _, lines: said.extend(lines))
    assert len(said) == 2
    assert sorted(path.name[:13] for path in (tmp_path / "out").glob("part-*")) == ["part-00000001", "part-00000002"]


def test_an_empty_list_is_a_run_without_rows(
    no_cluster: object, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    done = on_ray("-", "-d", "dummy", "-o", out, input="")
    assert (done.exit_code, done.stderr) == (0, f"{out}: 0 rows\n"), done.output
    assert list(predictions.read(out)) == []
    assert on_ray(pictures, "-d", "dummy", "-o", out).exit_code == 0

    done = on_ray("-", "-d", "dummy", "-o", out, input="")  # a list that could not be made, perhaps
    assert done.exit_code == 1
    assert "parts of an earlier run, and nothing to score" in done.stderr
    assert len(list(predictions.read(out))) == 12
    assert "rows may be missing" in capsys.readouterr().err
    assert on_ray("-", "-d", "dummy", "-o", out, "--no-resume", input="").exit_code == 0
    assert list(predictions.read(out)) == []


@pytest.mark.parametrize("stage", [stages.Score, stages.Decode, stages.ScorePrepared])
def test_ten_deaths_end_the_run_wherever_they_are(
    stage: Any, job: stages.Job, attempts: stages.Attempts, slice_of_files: Slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_PIECE", 8)
    first, *others = (
        packs(job, slice_of_files)
        if stage is stages.ScorePrepared
        else [stages._share_table(share) for share in slice_of_files.shares(31)]
    )
    worker = stage(job)
    for _ in range(10):
        next(worker(first))  # it dies before it is asked for more
    with pytest.raises(ZooError, match=r"workers died 10 times at one of .*00\.png \.\.\. ") as raised:
        next(worker(first))
    assert str(raised.value).endswith("07.png" if others else "30.png")
    for other in others:
        assert len(list(worker(other))) == 1
    assert len(attempts.begun) == 1  # what is done is forgotten


@pytest.mark.parametrize(("detectors", "loaded"), [(["dummy"], []), (["all"], ["cpu"]), (["all", "dummy"], ["cpu"])])
def test_the_device_is_the_workers(
    detectors: list[str], loaded: list[str], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def loads(names: Sequence[str], *_: Any, **options: Any) -> list[Any]:
        calls.append({"names": list(names), **options})
        return [load("dummy")]

    def score(paths: object, output: object, load: Any, **_: Any) -> Count:
        load()
        return Count()

    monkeypatch.setattr("detector_zoo.cli.score.load_chosen", loads)
    monkeypatch.setattr(distributed, "score", score)
    words = [word for name in detectors for word in ("-d", name)]
    done = on_ray(pictures, *words, "--device", "cuda", "--precision", "fp16", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert [call["device"] for call in calls] == [*loaded, "cuda"]
    assert [call["precision"] for call in calls] == ["fp32"] * len(loaded) + ["fp16"]
    assert calls[-1]["names"] == ["dummy"]


class Elsewhere(Exception):  # noqa: N818 (as such exceptions are called)
    """What a file system raises that is no OSError."""


class Flaky(AbstractFileSystem):
    """One archive, which fails to open a few times, or somewhere in the middle."""

    protocol = "flaky"
    cachable = False
    data = b""
    failures = 0
    good = 1 << 30
    opened = 0

    def _open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> io.BytesIO:
        Flaky.opened += 1
        if Flaky.opened <= Flaky.failures:
            raise Elsewhere("payload\nincomplete")

        class Stream(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if self.tell() >= Flaky.good:
                    raise Elsewhere("connection lost")
                return super().read(size)

        return Stream(Flaky.data)

    def isdir(self, path: str) -> bool:
        raise Elsewhere("no credentials")


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("detector_zoo.distributed.inputs.time.sleep", lambda seconds: None)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i in range(40):
            data = encoded(photo(48, 48, i))
            info = tarfile.TarInfo(f"{i:02d}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for name, value in {"data": buffer.getvalue(), "opened": 0, "failures": 0, "good": 1 << 30}.items():
        monkeypatch.setattr(Flaky, name, value)
    return Flaky


def members() -> list[Source]:
    (share,) = Slice(0, ("flaky://b/x.tar",), archive=True).shares(1)
    found = list(inputs.open_share(share))
    assert all(isinstance(source, Source) for source in found)
    return found  # type: ignore[return-value]


def test_a_remote_archive_is_opened_four_times(flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flaky, "failures", 3)
    assert [source.name for source in members()] == [f"flaky://b/x.tar::{i:02d}.png" for i in range(40)]
    assert flaky.opened == 4
    monkeypatch.setattr(flaky, "opened", 0)
    monkeypatch.setattr(flaky, "failures", 4)
    (failed,) = members()
    assert failed.name == "flaky://b/x.tar"
    with pytest.raises(ImageError, match=r"^flaky://b/x.tar: cannot be read \(payload incomplete\)$"):
        failed.read()


def test_a_remote_archive_that_fails_in_the_middle_is_a_row_with_an_error(
    flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flaky, "good", len(flaky.data) // 2)
    *found, failed = members()
    assert 2 <= len(found) < 40
    assert [source.name for source in found] == [f"flaky://b/x.tar::{i:02d}.png" for i in range(len(found))]
    assert all(source.read() for source in found)
    with pytest.raises(ImageError, match=rf"cannot be read after {len(found)} images \(connection lost\)"):
        failed.read()


def test_a_file_system_that_cannot_list_is_one_line(flaky: type[Flaky]) -> None:
    with pytest.raises(DatasetError, match=r"^flaky://b/photos: cannot be listed \(no credentials\)$"):
        list(inputs.walk(["flaky://b/photos"]))


@pytest.mark.parametrize(
    ("name", "archive"),
    [
        ("https://h/x.tar?sig=1", True),
        ("https://h/x.TGZ?sig=a/b.jpg", True),
        ("https://h/x.jpg?of=x.tar", False),
        ("simplecache::https://h/x.tar.gz?sig=1", True),
        ("s3://bucket/x#1.tar", True),
        ("what?.tar", True),
        ("x.tar?.jpg", False),
        ("x.tar?sig=1", False),
    ],
)
def test_an_archive_is_known_by_its_path(name: str, archive: bool) -> None:
    assert inputs._is_archive(name) is archive


def test_a_folder_of_archives_tells_how_to_name_them(tmp_path: Path) -> None:
    folder = tmp_path / "[1] shards"
    folder.mkdir()
    with pytest.raises(DatasetError, match="no image in this directory") as raised:
        list(inputs.walk([str(folder)]))
    assert "images are files that end in" in str(raised.value.hint)
    (folder / "a.tgz").touch()
    for name in (str(folder), f"{folder}/"):
        with pytest.raises(DatasetError, match="no image in this directory") as raised:
            list(inputs.walk([name]))
        assert raised.value.hint == f"name its archives: {folder}/*.tgz"


def test_what_reads_half_a_run_is_told(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for rows in run(map(str, sorted(pictures.iterdir())), [load("dummy")], Options()) for row in rows]
    folder = tmp_path / "out"
    with Parts.opened(folder, {}) as out:
        for number in range(2):
            out.add(number, "0" * 16, to_table(rows), Count(12, 12, 0))
        assert list(predictions.read(folder)) == 2 * rows
        said = f"{folder}: rows may be missing, as no _run.json says that a run ended with these parts\n"
        assert capsys.readouterr() == ("", said)
        out.finish(2)
    assert list(predictions.read(folder)) == 2 * rows
    assert capsys.readouterr() == ("", "")
    described = (folder / "_run.json").read_text()
    for broken in ("", "[]", "{", json.dumps({"complete": False}), described.replace('"parts": 2', '"parts": 3')):
        (folder / "_run.json").write_text(broken)
        assert list(predictions.read(folder)) == 2 * rows
        assert capsys.readouterr() == ("", said)

"""Prediction files: round trips, resuming, and what survives a kill."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector_zoo import __version__
from detector_zoo.errors import DatasetError
from detector_zoo.predictions import Journal, Prediction, check_output, read, to_json

FORMATS = ("parquet", "jsonl", "csv")


def score(path: str = "a.png", **values: object) -> Prediction:
    given_ = {"sha256": f"sha of {path}", "detector": "mdmf", "weights_sha256": "w", "core_version": __version__}
    return Prediction(path=path, **{**given_, "log_odds": 1.5, **values})


def failure(path: str = "a.png", **values: object) -> Prediction:
    return score(path, **{"log_odds": None, "error": "the file is empty", **values})


def finished(path: Path, rows: list[Prediction]) -> Path:
    with Journal(path) as journal:
        journal.add(rows)
        assert journal.finish() == len(rows)
    return path


def find(journal: Journal, row: Prediction, **other: str) -> Prediction | None:
    key = {name: getattr(row, name) for name in ("sha256", "detector", "weights", "weights_sha256", "path")}
    return journal.find(**{**key, **other})


# --- rows


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"log_odds": None}, "neither a score nor an error"),
        ({"error": "bad"}, "a row with an error has no score"),
        ({"log_odds": None, "error": "bad", "raw": 1.0}, "a row with an error has no score"),
        ({"log_odds": None, "error": "bad", "label": "real"}, "a row with an error has no score"),
        ({"log_odds": float("nan")}, "log_odds is nan"),
        ({"log_odds": np.float32("inf")}, "log_odds is inf"),
        ({"raw": float("-inf")}, "raw is -inf"),
        ({"label": "fake"}, "label 'fake' is none of real, generated, inconclusive"),
    ],
)
def test_a_row_is_a_score_or_an_error(values, cause):
    with pytest.raises(ValueError, match=cause):
        score(**values)


def test_numpys_scalars_become_pythons():
    row = score(log_odds=np.float32(0.1), width=np.int64(3), calibrated=np.True_)
    assert (row.log_odds, row.width, row.calibrated) == (float(np.float32(0.1)), 3, True)
    assert [type(value) for value in (row.log_odds, row.width, row.calibrated)] == [float, int, bool]


def test_to_json_has_every_column_in_order_on_one_line():
    line = to_json(failure("new\nline \u2028 é.png"))
    assert line.isascii()
    assert len(line.splitlines()) == 1
    values = json.loads(line)
    assert list(values) == [field.name for field in fields(Prediction)]
    assert (values["path"], values["log_odds"], values["weights"]) == ("new\nline \u2028 é.png", None, "")


# --- round trips

numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text() | st.sampled_from(
    ["=1+1", "+x", "-x", "@x", 'a"b', "a,b", "a\r\nb", "\r", "\n", "\0", " ", "é\u2028"]
)
common = {
    "path": texts,
    "sha256": texts,
    "detector": texts,
    "weights": texts,
    "weights_sha256": texts,
    "core_version": texts,
    "threshold": numbers,
    "calibrated": st.none() | st.booleans(),
    "width": st.none() | st.integers(0, 2**31 - 1),
    "height": st.none() | st.integers(0, 2**31 - 1),
    "format": texts,
    "note": texts,
}
scores = st.builds(
    Prediction,
    **common,
    log_odds=st.floats(allow_nan=False, allow_infinity=False),
    probability=numbers,
    raw=numbers,
    label=st.sampled_from(["", "real", "generated", "inconclusive"]),
)
errors = st.builds(Prediction, **common, error=texts.filter(bool))


def unique(rows: list[Prediction]) -> list[Prediction]:
    """No two rows of which one would replace the other."""
    return list({(row.path, row.detector, row.weights_sha256): row for row in rows}.values())


@pytest.mark.parametrize("extension", FORMATS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(scores | errors, max_size=6).map(unique))
def test_round_trip(extension, rows, tmp_path):
    path = tmp_path / f"rows.{extension}"
    path.unlink(missing_ok=True)
    finished(path, rows)
    assert list(read(path)) == rows
    assert list(tmp_path.iterdir()) == [path]
    with Journal(path) as journal:  # and on from there
        journal.finish()
    assert list(read(path)) == rows


def test_a_name_that_is_not_valid_text(tmp_path):
    row = score(os.fsdecode(b"\xff.png"), sha256="s")
    assert list(read(finished(tmp_path / "a.jsonl", [row]))) == [row]
    for extension in ("csv", "parquet"):
        path = finished(tmp_path / f"a.{extension}", [row])
        assert list(read(path)) == [replace(row, path="\\udcff.png")]
        with Journal(path) as journal:
            assert find(journal, row).sha256 == row.sha256


def test_parquet_types_do_not_depend_on_the_rows(tmp_path):
    schemas = {
        str(pq.read_schema(finished(tmp_path / f"{i}.parquet", rows)))
        for i, rows in enumerate([[], [score()], [failure()], [score("b"), failure()]])
    }
    assert len(schemas) == 1
    schema = pq.read_schema(tmp_path / "0.parquet")
    assert schema.field("log_odds").type == pa.float64()
    assert schema.field("error").type == pa.string()
    assert schema.metadata[b"detector_zoo.predictions"] == b"1"


def test_order_is_that_of_insertion(tmp_path):
    rows = [score(f"{i}") for i in random.Random(3).sample(range(500), 500)]
    assert list(read(finished(tmp_path / "a.parquet", rows))) == rows


# --- files that are not what they should be


@pytest.mark.parametrize(
    ("name", "data", "cause"),
    [
        ("a.parquet", b"PAR1 not really", "damaged Parquet"),
        ("a.parquet", b"", "damaged Parquet"),
        ("a.jsonl", to_json(score()).encode() + b"\n{", "line 2: "),
        ("a.jsonl", b"\n[1]\n", "line 2: not a JSON object"),
        (
            "a.jsonl",
            b'{"path": "a", "detector": "b", "core_version": "c", "log_odds": NaN}',
            "line 1: NaN is not a number",
        ),
        ("a.jsonl", b'{"path": "a", "detector": "b", "core_version": "c", "log_odds": "1"}', "line 1: log_odds is '1'"),
        ("a.jsonl", b'{"path": "a", "detector": "b", "log_odds": 1}', "line 1: no value for core_version"),
        ("a.jsonl", b'{"path": "a", "truth": 1}', "line 1: unknown columns: truth"),
        ("a.jsonl", b'{"path": "\xff"}', "line 1: 'utf-8' codec"),
        ("a.csv", b"", "not even a header"),
        ("a.csv", b"name,score\n1,2\n", "line 1: unknown columns: name, score"),
        ("a.csv", b"path,detector\n1,2\n", "line 1: no column core_version"),
        ("a.csv", b"path,detector,core_version,log_odds\na,b,c,x\n", "line 2: log_odds is 'x', not a number"),
        ("a.csv", b"path,detector,core_version,log_odds\na,b,c,nan\n", "line 2: log_odds is nan"),
        ("a.csv", b"path,detector,core_version,log_odds\na,b\n", "line 2: 2 cells, where the header has 4"),
        ("a.csv", b'path,detector,core_version,log_odds\n"a,b,c,1\n', "line 2: unexpected end of data"),
        ("a.txt", b"", "prediction files end in .parquet, .jsonl, .csv"),
    ],
)
def test_a_bad_file_is_named_with_its_line(name, data, cause, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DatasetError) as caught:
        list(read(path))
    assert str(caught.value).startswith(f"{path}: {cause}") or cause in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


def test_missing_files_and_foreign_versions(tmp_path):
    for name in ("a.parquet", "a.jsonl", "a.csv"):
        with pytest.raises(DatasetError, match=r": no such file$"):
            list(read(tmp_path / name))
    table = pq.read_table(finished(tmp_path / "a.parquet", [score()]))
    for version, says in ((b"2", "says 2"), (None, "says none")):
        metadata = {b"detector_zoo.predictions": version} if version else None
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "b.parquet")
        with pytest.raises(DatasetError, match=f"version 1 expected, the file {says}"):
            list(read(tmp_path / "b.parquet"))


def test_outputs_are_checked_before_any_work(tmp_path):
    check_output(tmp_path / "a.PARQUET")
    (tmp_path / "d.csv").mkdir()
    os.mkfifo(tmp_path / "p.csv")
    for name, cause in [
        ("a.xlsx", "predictions are written as .parquet, .jsonl, .csv"),
        ("a", "predictions are written as"),
        ("d.csv", "a directory, not a file"),
        ("p.csv", "not a regular file"),
        ("none/a.csv", "there is no directory"),
    ]:
        for attempt in (check_output, Journal):
            with pytest.raises(DatasetError, match=f"{name}: {cause}"):
                attempt(tmp_path / name)
    script = """
        import os, tempfile
        from detector_zoo.predictions import check_output
        from detector_zoo.errors import DatasetError
        os.chdir(tempfile.mkdtemp())
        os.chmod(".", 0o555)
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            check_output("a.csv")
        except DatasetError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "a.csv: the directory . is not writable\n"


# --- the journal


def test_find_prefers_the_path_and_knows_contents(tmp_path):
    with Journal(tmp_path / "a.jsonl") as journal:
        here, there = score("here", sha256="s", log_odds=1), score("there", sha256="s", log_odds=2)
        journal.add([here, there])
        assert journal.find("s", "mdmf", "", "w", "there") == there
        assert journal.find("s", "mdmf", "", "w", "elsewhere") == here
        for other in ({"sha256": "t"}, {"detector": "other"}, {"weights": "lite@other"}, {"weights_sha256": "x"}):
            assert find(journal, here, **other) is None
        journal.add([score("old", sha256="o", core_version="0.0.0"), failure("bad", sha256="b")])
        assert journal.find("o", "mdmf", "", "w", "old") is None
        assert journal.find("b", "mdmf", "", "w", "bad") is None
        assert len(journal) == 4


def test_rows_replace_their_like(tmp_path):
    with Journal(tmp_path / "a.jsonl") as journal:
        journal.add([failure("a", sha256=""), score("b", log_odds=1), failure("a", detector="other")])
        journal.add([score("a", log_odds=2)])
        journal.add([score("b", log_odds=3), failure("c"), failure("c", error="again")])
        journal.finish()
    rows = [(row.path, row.detector, row.log_odds, row.error) for row in read(tmp_path / "a.jsonl")]
    assert rows == [
        ("b", "mdmf", 3, ""),
        ("a", "other", None, "the file is empty"),
        ("a", "mdmf", 2, ""),
        ("c", "mdmf", None, "again"),
    ]


@pytest.mark.parametrize("extension", FORMATS)
def test_resume_and_start_afresh(extension, tmp_path):
    output = tmp_path / f"a.{extension}"
    with Journal(output) as journal:
        journal.add([score("a")])
    assert not output.exists()
    with Journal(output) as journal:
        assert find(journal, score("a")) == score("a")
        journal.add([score("b")])
        journal.finish()
    assert list(tmp_path.iterdir()) == [output]
    with Journal(output) as journal:
        assert len(journal) == 2
    with Journal(output, resume=False) as journal:
        assert len(journal) == 0
        assert len(list(read(output))) == 2, "replaced only at the end"
        journal.add([score("c")])
        journal.finish()
    assert [row.path for row in read(output)] == ["c"]


def test_a_failed_transaction_leaves_nothing_behind(tmp_path):
    def rows():
        yield score("a")
        raise RuntimeError("in between")

    with Journal(tmp_path / "a.csv") as journal:
        with pytest.raises(RuntimeError):
            journal.add(rows())
        assert len(journal) == 0
        journal.add([score("b")])
        assert len(journal) == 1


def test_an_output_that_cannot_be_resumed_is_kept(tmp_path):
    output = tmp_path / "a.jsonl"
    output.write_text("{\n")
    with pytest.raises(DatasetError, match="line 1"):
        Journal(output)
    assert output.read_text() == "{\n"
    with Journal(output, resume=False) as journal:
        journal.finish()
    assert output.read_text() == ""


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "real" / "a.csv")
    finished(tmp_path / "link.csv", [score()])
    assert (tmp_path / "link.csv").is_symlink()
    assert list(read(tmp_path / "real" / "a.csv")) == [score()]


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_journal_is_named(tmp_path, damage):
    output = tmp_path / "a.parquet"
    with Journal(output) as journal:
        journal.add([score(str(i)) for i in range(2000)])
    data = bytearray(journal.path.read_bytes())
    where = slice(0, 100) if damage == "header" else slice(4096, len(data) - 4096)
    data[where] = os.urandom(len(data[where]))
    journal.path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"a\.parquet\.journal: the journal is damaged") as caught:
        Journal(output)
    assert "remove it" in caught.value.hint
    with Journal(output, resume=False) as journal:
        journal.add([score()])
        assert journal.finish() == 1


def test_a_journal_of_a_newer_version_is_refused(tmp_path):
    with Journal(tmp_path / "a.csv") as journal:
        pass
    connection = sqlite3.connect(journal.path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(DatasetError, match="newer version"):
        Journal(tmp_path / "a.csv")


def test_a_second_writer_is_refused_at_once(tmp_path):
    output = tmp_path / "a.parquet"
    script = f"""
        from pathlib import Path
        from detector_zoo.predictions import Journal
        for resume in (True, False):
            try:
                Journal(Path({str(output)!r}), resume=resume)
            except Exception as error:
                print(type(error).__name__, error)
    """
    with Journal(output) as journal:
        journal.add([score()])
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
        )
        assert time.monotonic() - started < 10
        expected = f"DatasetError {output}: another process is writing it"
        assert done.stdout.splitlines() == [expected] * 2
        with pytest.raises(DatasetError, match="another process"):
            Journal(output)
        journal.add([score("b")])
        assert journal.finish() == 2


def test_writers_that_take_turns_lose_nothing(tmp_path):
    """One finishes and removes the journal while others are about to open it."""
    output = tmp_path / "a.jsonl"
    script = f"""
        import sys, time
        from detector_zoo.errors import DatasetError
        from detector_zoo.predictions import Journal, Prediction
        done, end = 0, time.monotonic() + 2
        while time.monotonic() < end:
            try:
                with Journal({str(output)!r}) as journal:
                    path = f"{{sys.argv[1]}}-{{done}}"
                    journal.add([Prediction(path=path, detector="d", core_version="v", log_odds=1)])
                    journal.finish()
                    done += 1
            except DatasetError as error:
                assert "another process is writing" in str(error), error
        print(done)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    writers = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(3)]
    said = [writer.communicate()[0] for writer in writers]
    assert sum(map(int, said)) == len({row.path for row in read(output)}) > 0
    assert list(tmp_path.iterdir()) == [output]


def test_killed_at_any_moment_no_committed_row_is_lost_and_none_comes_twice(tmp_path):
    output = tmp_path / "a.parquet"
    script = f"""
        import itertools, sys
        from detector_zoo.predictions import Journal, Prediction
        with Journal({str(output)!r}) as journal:
            start = len(journal)
            print("open", start, flush=True)
            for i in itertools.count(start, 5):
                journal.add(
                    Prediction(path=f"{{k}}", sha256=f"{{k}}", detector="d", core_version="v", log_odds=k)
                    for k in range(i, i + 5)
                )
                print(i + 5, flush=True)
                if i % 200 == 0 and i > start:
                    journal.finish()
                    journal = Journal({str(output)!r})
    """
    dice = random.Random(11)
    committed = 0
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline().startswith("open")
        time.sleep(dice.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[0].split()
        committed = max([committed, *map(int, said)])
        with Journal(output) as journal:
            assert committed <= len(journal) <= committed + 5
            committed = len(journal)
    with Journal(output) as journal:
        journal.finish()
    paths = [int(row.path) for row in read(output)]
    assert paths == list(range(len(paths)))
    assert len(paths) == committed > 50


def test_memory_is_flat_in_the_number_of_rows(tmp_path):
    script = f"""
        import resource, sys
        from detector_zoo.predictions import Journal, Prediction, read
        import pyarrow.parquet
        def rows(first, count):
            for i in range(first, first + count):
                yield Prediction(path=f"photos/{{i:060}}.png", sha256=f"{{i:064x}}", detector="mdmf", core_version="1",
                                 log_odds=i / 7, probability=0.5, raw=i / 3, label="real")
        def grown(count):
            with Journal({str(tmp_path)!r} + "/a.parquet", resume=False) as journal:
                for first in range(0, count, 1000):
                    journal.add(rows(first, 1000))
                assert journal.finish() == count
            assert sum(1 for _ in read({str(tmp_path)!r} + "/a.parquet")) == count
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        small = grown(20_000)
        print(grown(100_000) - small)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60, "MiB more for five times the rows"


def test_reading_is_streamed(tmp_path):
    for extension in FORMATS:
        path = finished(tmp_path / f"a.{extension}", [score(f"{i:0100}") for i in range(8_000)])
        for _ in read(path):  # imports and caches
            break
        tracemalloc.start()
        assert sum(1 for _ in read(path)) == 8_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4_000_000, extension

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from detector_zoo import predictions
from detector_zoo.cli import main
from detector_zoo.errors import DatasetError
from detector_zoo.evaluation import datasets
from detector_zoo.evaluation.compare import compare, counterparts
from detector_zoo.evaluation.equalise import equalise_file
from detector_zoo.evaluation.equalised import copy_of, original_of
from detector_zoo.evaluation.evaluate import evaluate, merge
from detector_zoo.evaluation.metrics import measure
from detector_zoo.evaluation.results import read
from detector_zoo.rows import Prediction

from conftest import photo


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Six real and six generated pictures of two generators, the generated ones a little brighter."""
    root = tmp_path / "set"
    for i in range(12):
        label = "real/camera" if i % 2 else f"fake/{'one' if i % 4 else 'two'}"
        (root / label).mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(photo(64, 56, i), float) + (0 if i % 2 else 25)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / label / f"{i:02d}.png")
    return root


def rows_of(data: datasets.DataSet, score, **changes: object) -> list[Prediction]:
    defaults = {"detector": "m", "weights": "t", "weights_sha256": "w", "core_version": "1", "calibrated": True}
    return [
        Prediction(
            path=str(sample.path),
            sha256=sample.sha256,
            log_odds=score(i, sample),
            label="real",
            threshold=0.0,
            **{**defaults, **changes},
        )
        for i, sample in enumerate(data.samples)
    ]


def noisy(i: int, sample) -> float:
    return float(np.random.default_rng(i).normal()) + sample.generated


def write(rows: list[Prediction], path: Path) -> Path:
    with predictions.Journal(path, resume=False) as journal:
        journal.add(rows)
        journal.finish()
    return path


# Joining and counting.


def test_metrics_are_those_of_the_joined_scores(data_set):
    data = datasets.load(data_set)
    rows = rows_of(data, noisy)
    (one,) = evaluate(data, reversed(rows), resamples=200, seed=3).detectors
    labels = [sample.generated for sample in data.samples]
    assert one.metrics == measure(labels, [row.log_odds for row in rows], resamples=200, seed=3)
    assert one.log_odds == [row.log_odds for row in rows]
    assert (one.counts.scored_real, one.counts.scored_generated, one.counts.missing) == (6, 6, 0)


def test_abstentions_and_errors_are_counted_and_never_scored(data_set):
    data = datasets.load(data_set)
    rows = rows_of(data, noisy)
    plain = evaluate(data, rows[2:-1], resamples=100).detectors[0]
    rows[0] = replace(rows[0], label="inconclusive", log_odds=1000.0)
    rows[1] = Prediction(**{"path": rows[1].path, "error": "broken", "sha256": rows[1].sha256} | key(rows[1]))
    del rows[-1]
    one = evaluate(data, rows, resamples=100).detectors[0]
    assert one.metrics == plain.metrics
    assert (one.counts.abstained_generated, one.counts.abstained_real) == (1, 0)
    assert (one.counts.errors, one.counts.missing) == (1, 1)
    assert one.errors == [(1, "broken")]
    assert one.abstained == [0]
    assert one.with_abstentions["auroc"].value > plain.metrics["auroc"].value
    assert plain.with_abstentions == {}


def key(row: Prediction) -> dict[str, str]:
    return {name: getattr(row, name) for name in ("detector", "weights", "weights_sha256", "core_version")}


def test_rows_without_a_hash_are_joined_by_path(data_set, monkeypatch):
    data = datasets.load(data_set)
    monkeypatch.chdir(data_set.parent)
    rows = [replace(row, sha256="", path=os.path.relpath(row.path)) for row in rows_of(data, noisy)]
    assert evaluate(data, rows, resamples=100).detectors[0].counts.missing == 0
    other = [replace(row, sha256="0" * 64) for row in rows]
    with pytest.raises(DatasetError, match="no prediction is of an image"):
        evaluate(data, other, resamples=100)


def test_generators_worst_first_and_few_last(tmp_path):
    root = tmp_path / "set"
    for i in range(45):
        folder = root / ("real/x" if i < 15 else f"fake/{('good', 'bad', 'few')[0 if i < 28 else 1 if i < 41 else 2]}")
        folder.mkdir(parents=True, exist_ok=True)
        photo(24, 16, i).save(folder / f"{i:02d}.png")
    data = datasets.load(root)
    bias = {"good": 4.0, "bad": 0.0, "few": -4.0, "": 0.0}
    rows = rows_of(data, lambda i, s: bias[s.generator] + float(np.random.default_rng(i).normal()))
    one = evaluate(data, rows, resamples=100).detectors[0]
    assert [(g.name, g.few, g.generated, g.real) for g in one.generators] == [
        ("bad", False, 13, 15),
        ("good", False, 13, 15),
        ("few", True, 4, 15),
    ]
    assert evaluate(data, rows, by="source", resamples=100).by == "source"
    assert one.sources[0].real == 15


def test_generators_are_compared_with_their_own_real_images(tmp_path):
    for i, name in enumerate(("a/0_real", "a/1_fake", "b/0_real", "b/1_fake") * 3):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        photo(24, 16, i).save(tmp_path / name / f"{i}.png")
    data = datasets.load(tmp_path)
    one = evaluate(data, rows_of(data, noisy), resamples=100).detectors[0]
    assert [(g.name, g.against, g.real) for g in sorted(one.generators, key=lambda g: g.name)] == [
        ("a", "own", 3),
        ("b", "own", 3),
    ]


def test_uncalibrated_scores_have_no_probabilistic_metric(data_set):
    data = datasets.load(data_set)
    one = evaluate(data, rows_of(data, noisy, calibrated=False), resamples=100).detectors[0]
    assert "auroc" in one.metrics
    assert not {"ece", "brier"} & one.metrics.keys()


def test_threshold_is_the_weights_own(data_set):
    data = datasets.load(data_set)
    rows = [replace(row, threshold=0.7) for row in rows_of(data, noisy)]
    one = evaluate(data, rows, resamples=100).detectors[0]
    labels, scores = [s.generated for s in data.samples], [row.log_odds for row in rows]
    assert one.metrics["balanced_accuracy"] == measure(labels, scores, 0.7, resamples=100)["balanced_accuracy"]
    assert one.oracle["balanced_accuracy"] >= one.metrics["balanced_accuracy"].value
    rows[0] = replace(rows[0], threshold=0.6)
    with pytest.raises(DatasetError, match=r"different thresholds \(0\.6, 0\.7\)"):
        evaluate(data, rows, resamples=100)


def test_one_class_is_a_clear_error(tmp_path):
    (tmp_path / "set.csv").write_text("path,label\na.png,real\nb.png,real\n")
    for seed, name in enumerate("ab"):
        photo(24, 16, seed).save(tmp_path / f"{name}.png")
    data = datasets.load(tmp_path / "set.csv")
    with pytest.raises(DatasetError, match="2 real and 0 generated images; metrics need both"):
        evaluate(data, rows_of(data, noisy))


def test_a_detector_that_scores_one_class_only_says_so(data_set):
    data = datasets.load(data_set)
    rows = [row for row, s in zip(rows_of(data, noisy), data.samples, strict=True) if s.generated]
    one = evaluate(data, rows, resamples=100).detectors[0]
    assert (one.metrics, one.note) == ({}, "no image of one class is scored")


def test_versions_of_one_detector_are_told_apart(data_set):
    data = datasets.load(data_set)
    rows = rows_of(data, noisy) + rows_of(data, noisy, core_version="2") + rows_of(data, noisy, weights="u")
    names = [one.name for one in evaluate(data, rows, resamples=100).detectors]
    assert names == ["m.t (1)", "m.t (2)", "m.u"]


# Prediction files.


def test_files_merge_by_key(data_set, tmp_path):
    data = datasets.load(data_set)
    rows = rows_of(data, noisy)
    failed = Prediction(path=rows[0].path, sha256=rows[0].sha256, error="once", **key(rows[0]))
    first = write([failed, *rows[1:7]], tmp_path / "1.parquet")
    second = write([rows[0], *rows[6:]], tmp_path / "2.csv")
    for files in ((first, second), (second, first)):
        assert sorted(merge(files), key=lambda row: row.path) == sorted(rows, key=lambda row: row.path)
    third = write([replace(rows[3], log_odds=9.0)], tmp_path / "3.jsonl")
    with pytest.raises(DatasetError, match=r"two scores of one image by m\.t: .* and 9"):
        merge((first, third))


def test_eval_of_files_runs_no_model(data_set, tmp_path, monkeypatch):
    files = []
    for half in ("real", "fake"):
        files.append(tmp_path / f"{half}.parquet")
        assert run("score", "-d", "dummy", data_set / half, "-o", files[-1]).exit_code == 0
    monkeypatch.setattr("detector_zoo.loading.load", None)
    result = run("eval", *files, "--data", data_set, "--resamples", 200, "-o", tmp_path / "r.json", "--format", "csv")
    assert result.exit_code == 0, result.output
    one = read(tmp_path / "r.json").detectors[0]
    assert (one.name, one.equalised, one.counts.scored_real) == ("dummy", False, 6)
    lines = list(csv.DictReader(io.StringIO(result.stdout)))
    auroc = next(line for line in lines if (line["subset"], line["metric"]) == ("all", "auroc"))
    assert float(auroc["value"]) == one.metrics["auroc"].value
    assert {line["name"] for line in lines if line["subset"] == "generator"} == {"one", "two"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "x"), "give prediction files, or detectors"),
        (("a.csv", "-d", "dummy", "--data", "x"), "give prediction files, or detectors"),
        (("a.csv", "--data", "x", "-o", "r.txt"), "results are written as .json, .csv or .md"),
        (("a.csv", "--data", "x", "--audit", "r.json"), "--audit is for --report"),
        (("a.csv",), "Missing option '--data'"),
    ],
)
def test_misuse(words, message):
    result = run("eval", *words)
    assert result.exit_code == 2
    assert message in result.output


def test_bad_images_stop_or_are_recorded(data_set, tmp_path):
    (data_set / "real" / "text.png").write_text("no picture")
    result = run("eval", "-d", "dummy", "--data", data_set)
    assert result.exit_code == 1
    assert "--skip-bad records such images" in result.output
    result = run("eval", "-d", "dummy", "--data", data_set, "--skip-bad", "-o", tmp_path / "r.json", "--resamples", 100)
    assert result.exit_code == 0, result.output
    assert "Left out: real/text.png" in result.output
    assert read(tmp_path / "r.json").data.bad[0][0] == "real/text.png"


def test_an_image_that_cannot_be_scored_makes_the_status_1(data_set, tmp_path):
    content = (data_set / "real/camera/01.png").read_bytes()
    (data_set / "real/cut.png").write_bytes(content[: len(content) // 2])
    for name, option in (("a", "--equalise"), ("b", "--no-equalise")):
        out = tmp_path / f"{name}.json"
        result = run("eval", "-d", "dummy", "--data", data_set, option, "-o", out, "--resamples", 100)
        assert result.exit_code == 1
        assert "Images that could not be scored: 1" in result.output
        (one,) = read(out).detectors
        assert (one.counts.errors, one.counts.scored_real, one.equalised) == (1, 6, option == "--equalise")
        assert "truncated" in one.errors[0][1]


# Equalising.


def test_copies_are_the_equalised_pixels_and_know_their_original(data_set):
    sample = datasets.read(data_set)[0]
    path = copy_of(sample)
    with Image.open(path) as image:
        assert image.convert("RGB").tobytes() == equalise_file(sample.path).tobytes()
    assert original_of(str(path)) == sample.sha256
    assert original_of(str(sample.path)) == original_of(f"{sample.sha256}.jpg") == ""
    before = path.stat().st_mtime_ns
    assert copy_of(sample) == path
    assert path.stat().st_mtime_ns == before


def test_equalised_rows_join_again_and_are_told_from_plain_ones(data_set, tmp_path):
    options = ("--data", data_set, "--resamples", 100)
    equal, plain = tmp_path / "equal.json", tmp_path / "plain.json"
    assert run("eval", "-d", "dummy", *options, "-o", equal).exit_code == 0
    assert run("eval", "-d", "dummy", *options, "--no-equalise", "-o", plain).exit_code == 0
    files = [path.with_suffix(".predictions.parquet") for path in (equal, plain)]
    result = run("eval", *files, *options, "-o", tmp_path / "both.json")
    assert result.exit_code == 0, result.output
    both = {one.name: one for one in read(tmp_path / "both.json").detectors}
    assert list(both) == ["dummy (equalised)", "dummy (as found)"]
    assert both["dummy (equalised)"].log_odds == read(equal).detectors[0].log_odds
    assert both["dummy (equalised)"].log_odds != both["dummy (as found)"].log_odds


# Going on.


def test_rows_that_are_there_are_not_scored_again(data_set, tmp_path, monkeypatch):
    options = ("eval", "-d", "dummy", "--data", data_set, "--resamples", 100, "-o", tmp_path / "r.json")
    assert run(*options).exit_code == 0
    first = read(tmp_path / "r.json").detectors[0]
    monkeypatch.setattr("detector_zoo_dummy.detector.Dummy.score", lambda self, images: 1 / 0)
    assert run(*options).exit_code == 0
    assert read(tmp_path / "r.json").detectors[0] == first
    assert run(*options, "--no-equalise").exit_code == 1  # other images, which have to be scored


STUCK = """
import pathlib, sys, time
from detector_zoo_dummy.detector import Dummy
score, scored, marker = Dummy.score, [], pathlib.Path(sys.argv[1])
def stuck_at_the_eighth(self, images):
    scored.extend(images)
    if len(scored) >= 8:
        marker.touch()
        time.sleep(300)
    return score(self, images)
Dummy.score = stuck_at_the_eighth
from detector_zoo.cli import main
main(sys.argv[2:])
"""


def test_interrupted_eval_goes_on_where_it_stopped(data_set, tmp_path):
    out = tmp_path / "r.json"
    words = ["eval", "-d", "dummy", "--data", str(data_set), "--resamples", "100", "-o", str(out), "--batch-size", "1"]
    marker, journal = tmp_path / "stuck", tmp_path / "r.predictions.parquet.journal"
    command = [sys.executable, "-c", STUCK, str(marker), *words, "--workers", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "run the same command to go on" in errors
    assert not out.exists()
    with predictions.Journal(journal.with_suffix("")) as kept:
        scored = len(kept)
    assert scored == 7

    again = run(*words)
    assert again.exit_code == 0, again.output
    assert read(out).detectors[0].counts.scored_real == 6
    rows = list(predictions.read(tmp_path / "r.predictions.parquet"))
    assert len(rows) == 12


# Results.


def test_results_round_trip_and_say_where_they_come_from(data_set, tmp_path):
    data = datasets.load(data_set)
    rows = rows_of(data, noisy)
    rows[0] = replace(rows[0], label="inconclusive")
    results = evaluate(data, rows[:-1], resamples=100, seed=7)
    file = tmp_path / "results.json"
    file.write_text(results.to_json())
    assert read(file) == read(tmp_path) == results
    values = json.loads(file.read_text())
    assert (values["schema"], values["schema_version"], values["seed"]) == ("detector_zoo.results", 1, 7)
    assert values["data"]["sha256"] == data.sha256
    assert values["detectors"][0]["weights_sha256"] == "w"
    assert {"python", "numpy", "pillow", "torch", "scikit-learn"} <= values["environment"].keys()
    assert values["git"] is None or re.fullmatch("[0-9a-f]{40}", values["git"]["commit"])
    assert "| AUROC | " in results.to_markdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema="x"), "not the results of zoo eval"),
        (lambda v: v.update(schema_version=99), "results of version 1 expected, the file says 99"),
        (lambda v: v.pop("seed"), "damaged results"),
        (lambda v: v["detectors"][0]["log_odds"].pop(), "damaged results .*differ in number"),
        (lambda v: v["detectors"][0].pop("counts"), "damaged results"),
    ],
)
def test_damaged_results(data_set, tmp_path, change, message):
    data = datasets.load(data_set)
    values = json.loads(evaluate(data, rows_of(data, noisy), resamples=100).to_json())
    change(values)
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=message):
        read(tmp_path / "r.json")


def test_git_state_is_of_this_checkout_only(tmp_path, monkeypatch):
    from detector_zoo.evaluation import provenance

    copy = tmp_path / "site-packages/detector_zoo/evaluation"
    copy.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copy(provenance.__file__, copy)
    monkeypatch.setattr(provenance, "__file__", str(copy / "provenance.py"))
    assert provenance.git_state() is None


# Comparing.


def test_compare_uses_what_both_scored(data_set, tmp_path):
    data = datasets.load(data_set)
    rows = rows_of(data, noisy)
    better = [replace(row, weights="u", log_odds=(row.log_odds or 0) + 3 * s.generated)
              for row, s in zip(rows, data.samples, strict=True)]  # fmt: skip
    better[0] = replace(better[0], label="inconclusive")
    first, second = evaluate(data, rows, resamples=100), evaluate(data, better, resamples=100)
    found = compare((first, first.detectors[0]), (second, second.detectors[0]), resamples=300)
    assert (found.real, found.generated, found.left_out) == (6, 5, 1)
    labels = [s.generated for s in data.samples[1:]]
    assert found.before["auroc"] == measure(labels, [row.log_odds for row in rows[1:]], resamples=300)["auroc"]
    assert found.difference["auroc"].value == pytest.approx(found.after["auroc"].value - found.before["auroc"].value)
    for name, results in (("a", first), ("b", second)):
        (tmp_path / f"{name}.json").write_text(results.to_json())
    result = run("compare", tmp_path / "a.json", tmp_path / "b.json", "--resamples", 300)
    assert result.exit_code == 0, result.output
    assert "5 generated images that both scored (few: do not believe the intervals); left out, as only" in result.output
    assert f"{found.difference['auroc'].value:+.3f} [" in result.output
    as_json = json.loads(run("compare", tmp_path / "a.json", tmp_path / "b.json", "--format", "json").stdout)
    assert as_json[0]["difference"]["auroc"]["value"] == pytest.approx(found.difference["auroc"].value)


def test_compare_chooses_detectors_by_name(data_set, tmp_path):
    data = datasets.load(data_set)
    rows = rows_of(data, noisy) + rows_of(data, lambda i, s: float(i), weights="u")
    both = evaluate(data, rows, resamples=100)
    assert [(a.name, b.name) for a, b in counterparts(both, both)] == [("m.t", "m.t"), ("m.u", "m.u")]
    (tmp_path / "r.json").write_text(both.to_json())
    result = run("compare", f"{tmp_path}/r.json:m.t", f"{tmp_path}/r.json:m.u")
    assert result.exit_code == 0, result.output
    assert "M.T" in result.output
    result = run("compare", f"{tmp_path}/r.json:m", tmp_path / "r.json")
    assert result.exit_code == 1
    assert "2 detectors are called 'm'; there are m.t, m.u" in result.output
    other = evaluate(data, rows_of(data, noisy, weights="x"), resamples=100)
    with pytest.raises(DatasetError, match="no detector of one name"):
        list(counterparts(both, other))


def test_compare_refuses_other_images(data_set, tmp_path):
    data = datasets.load(data_set)
    first = evaluate(data, rows_of(data, noisy), resamples=100)
    shutil.copytree(data_set, tmp_path / "other")
    for path in (tmp_path / "other").rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    flipped = datasets.load(tmp_path / "other")
    second = evaluate(flipped, rows_of(flipped, noisy), resamples=100)
    with pytest.raises(DatasetError, match="0 real and 0 generated images in common"):
        compare((first, first.detectors[0]), (second, second.detectors[0]))

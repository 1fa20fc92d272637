"""`zoo audit` on the command line: what it prints, writes, and refuses."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from audit_fakes import bright_and_dark, planted, sample, triples
from detector_zoo import __version__
from detector_zoo.cli import main
from detector_zoo.evaluation import format_audit, in_memory


def zoo(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A labelled set of ten pictures, real/ and fake/."""
    found = tmp_path / "set"
    for name in ("real", "fake", "made"):
        (found / name).mkdir(parents=True)
    for made in bright_and_dark(found / "made", 5):
        shutil.move(made.path, found / ("fake" if made.generated else "real") / made.path.name)
    (found / "made").rmdir()
    return found


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    """Three folders of triples."""
    found = tmp_path / "triples"
    found.mkdir()
    for i, made in enumerate(triples(found, 4)):
        for role, path in (("original", made.original), ("inpainted", made.path), ("mask", made.mask)):
            (found / role).mkdir(exist_ok=True)
            shutil.move(str(path), found / role / f"{i}.png")
    return found


def test_format_finds_the_planted_shortcut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_audit, "_TREES", 10)
    folder = tmp_path / "set"
    for name in ("real", "fake", "made"):
        (folder / name).mkdir(parents=True)
    for made in planted(folder / "made", 8, side=340):
        shutil.move(made.path, folder / ("fake" if made.generated else "real") / made.path.name)
    (folder / "made").rmdir()
    out = tmp_path / "results.json"
    result = zoo("audit", "format", "--data", folder, "--resamples", 50, "-o", out)
    assert result.exit_code == 0, result.output
    assert "Files tell the classes apart" in result.stdout
    facts = json.loads(out.read_text())
    assert facts["before"]["codec"]["value"] == 1
    assert facts["after"]["all together"]["low"] <= 0.5 <= facts["after"]["all together"]["high"]
    assert facts["detector"] is None
    assert facts["origin"]["versions"]["detector-zoo"] == __version__
    assert not list(tmp_path.glob(".*"))


def test_laundering_as_table_json_and_csv(folders: Path, tmp_path: Path) -> None:
    words = ("audit", "laundering", "--data", folders, "-d", "dummy", "-p", "jpeg:50", "-p", "screenshot")
    table = zoo(*words, "--resamples", 50)
    assert table.exit_code == 0, table.output
    assert "jpeg:50" in table.stdout
    assert "5 real, 5 generated" in table.stdout
    facts = json.loads(zoo(*words, "--resamples", 50, "--format", "json", "--seed", 7).stdout)
    assert [point["perturbation"] for point in facts["points"]] == ["none", "jpeg:50", "screenshot"]
    assert facts["points"][0]["auroc"]["value"] == 1
    assert facts["origin"]["equalised"]
    plain = json.loads(zoo(*words, "--resamples", 50, "--format", "json", "--no-equalise").stdout)
    assert not plain["origin"]["equalised"]
    assert plain["points"][0]["real"] != facts["points"][0]["real"]
    assert (facts["origin"]["seed"], facts["origin"]["resamples"]) == (7, 50)
    assert facts["audit"] == "laundering"
    assert facts["schema_version"] == 1
    out = tmp_path / "results.csv"
    printed = zoo(*words, "--resamples", 50, "--format", "csv", "-o", out).stdout
    assert printed == out.read_text()
    rows = list(csv.DictReader(io.StringIO(printed)))
    (auroc,) = [row for row in rows if (row["row"], row["column"]) == ("jpeg:50", "AUROC")]
    assert float(auroc["low"]) <= float(auroc["value"]) <= float(auroc["high"])


def test_exchange_and_localization(edits: Path) -> None:
    words = ("-d", "dummy", "--resamples", 50, "--format", "json")
    result = zoo("audit", "exchange", "--triples", edits, "--jpeg", 90, *words)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["triples"] == 4
    assert facts["quality"] == 90
    assert set(facts["versions"]) == {"inpainted", "exchanged", "soft edges"}
    assert facts["maps"]["area"]["value"] == pytest.approx(40 * 44 / 96**2)
    assert json.loads(zoo("audit", "exchange", "--triples", edits, "--no-maps", *words).stdout)["maps"] is None
    maps = json.loads(zoo("audit", "localization", "--data", edits, "--threshold", "0.4", *words).stdout)
    assert maps["images"] == 4
    assert maps["threshold"] == "0.4"
    words = ("-d", "dummy", "--resamples", 50)
    assert "Share of the heatmap inside the mask" in zoo("audit", "exchange", "--triples", edits, *words).stdout
    assert "share of energy inside the mask" in zoo("audit", "localization", "--data", edits, *words).stdout


def test_semantics_with_contents(tmp_path: Path) -> None:
    lines = ["path,label,animal"]
    for i, made in enumerate(bright_and_dark(tmp_path, 4, (80, 72))):
        lines.append(f"{made.path.name},{made.label},{('cat', 'dog', 'cow')[i // 2 % 3]}")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    none = zoo("audit", "format", "--data", manifest, "--kind", "inpaint")
    assert none.exit_code == 1
    assert "no generated image of kind 'inpaint'" in none.stderr
    words = ("audit", "semantics", "--data", manifest, "-d", "dummy", "--side", 16, "--side", 32, "--resamples", 50)
    result = zoo(*words, "--content", "animal", "--pair", "dog,cat", "--format", "json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [shuffled["side"] for shuffled in facts["shuffled"]] == [16, 32]
    assert facts["inversion"]["contents"] == ["dog", "cat"]
    assert facts["inversion"]["counts"] == {"dog real": 1, "dog generated": 1, "cat real": 2, "cat generated": 2}
    assert "Label against content" in zoo(*words, "--content", "animal", "--pair", "dog,cat").stdout
    assert json.loads(zoo(*words, "--format", "json").stdout)["inversion"] is None
    failed = zoo(*words, "--content", "animal")
    assert failed.exit_code == 1
    assert failed.stderr.splitlines()[0].startswith("Error: label inversion compares two contents, the column has 3")


def test_invariance(folders: Path) -> None:
    result = zoo("audit", "invariance", folders, "-d", "dummy", "--batch", 3)
    assert result.exit_code == 0, result.output
    assert "batch of 3" in result.stdout
    assert "unlabelled" in result.stdout
    assert result.stdout.index("without the") < result.stdout.index("batch of 3")  # the largest first


def test_a_subset_is_of_both_classes_and_repeats(folders: Path) -> None:
    words = ("audit", "laundering", "--data", folders, "-d", "dummy", "-p", "none", "--resamples", 30, "--limit", 2)
    hashes = []
    for seed in (0, 0, 1):
        origin = json.loads(zoo(*words, "--format", "json", "--seed", seed).stdout)["origin"]
        assert (origin["real"], origin["generated"]) == (2, 2)
        hashes.append(origin["data_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]
    samples = [sample(Path(f"{i}.png"), "real" if i % 3 else "generated") for i in range(30)]
    drawn = in_memory.subset(samples, 4, 0)
    assert drawn == [s for s in samples if s in drawn]
    assert in_memory.subset(samples, None, 0) == samples


def test_bad_files_stop_or_are_told(folders: Path) -> None:
    (folders / "real" / "bad.png").write_bytes(b"nonsense")
    words = ("audit", "laundering", "--data", folders, "-d", "dummy", "-p", "none", "--resamples", 30)
    failed = zoo(*words)
    assert failed.exit_code == 1
    assert "bad.png" in failed.stderr
    skipped = zoo(*words, "--skip-bad", "--format", "json")
    assert skipped.exit_code == 0, skipped.output
    assert "bad.png" in skipped.stderr
    (failure,) = json.loads(skipped.stdout)["origin"]["failures"]
    assert "bad.png" in failure


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["laundering", "--data", "SET"], 2, "Missing option '-d'"),
        (["laundering", "--data", "SET", "-d", "dummy", "-p", "fog:1"], 2, "unknown perturbation 'fog'; known: avif"),
        (["laundering", "--data", "SET", "-d", "dummy", "-p", "jpeg:200"], 2, "a quality lies in 1 to 100, not 200"),
        (["laundering", "--data", "SET", "-d", "dumy"], 2, "unknown detector 'dumy'"),
        (["laundering", "--data", "SET/none", "-d", "dummy"], 1, "no such file"),
        (["format", "--data", "SET", "-o", "out.txt"], 2, "results are written as .json or .csv"),
        (["format", "--data", "SET", "-o", "SET/none/out.json"], 2, "there is no directory"),
        (["exchange", "--triples", "SET", "-d", "dummy"], 1, "has no triple"),
        (["localization", "--data", "SET", "-d", "dummy"], 1, "no image of the data set has a mask"),
        (["semantics", "--data", "SET", "-d", "dummy", "--pair", "a,b"], 2, "--pair takes two contents"),
        (["semantics", "--data", "SET", "-d", "dummy", "--content", "colour"], 1, "no content column 'colour'"),
        (["invariance", "-d", "dummy"], 2, "Missing argument 'PATHS...'"),
        (["invariance", "-d", "dummy", "--batch", "1", "SET"], 2, "Invalid value for '--batch'"),
    ],
)
def test_one_line_for_bad_input(folders: Path, words: list[str], status: int, message: str) -> None:
    result = zoo("audit", *[word.replace("SET", str(folders)) for word in words])
    assert result.exit_code == status
    assert message in result.stderr
    assert "Traceback" not in result.output

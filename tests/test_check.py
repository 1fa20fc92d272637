"""`zoo check`: the suite's verdicts from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from detector_zoo.cli import main
from detector_zoo.testing.properties import PROPERTIES
from strangers import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "site") as site:
        yield site


def check(*words: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, words)])


def test_a_line_a_property_and_exit_0(site: Site) -> None:
    site.install("two_words")
    result = check("two-words")
    assert (result.exit_code, result.stderr) == (0, "")
    *lines, blank, last = result.stdout.splitlines()
    assert [line[16:].split()[0] for line in lines] == list(PROPERTIES)
    assert (blank, last) == ("", "two_words: 17 of 22 properties hold, none fails")


def test_a_failure_is_a_line_and_exit_1(site: Site) -> None:
    site.install("bad", "return np.zeros((len(images), 2), np.float32)")
    result = check("bad")
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if "  shape  " in line]
    assert line.startswith("failed ")
    assert line.endswith("returned (1, 2) float32 for 1 images, expected (1,) float32")
    assert "fail: shape, sizes" in result.stdout.splitlines()[-1]


def test_json(site: Site) -> None:
    site.install("bad", "print('noise'); raise RuntimeError('two\\nlines')")
    result = check("bad", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["detector"], found["passed"]) == ("bad", False)
    facts = {fact["name"]: fact for fact in found["properties"]}
    assert list(facts) == list(PROPERTIES)
    assert facts["shape"]["detail"] == "bad failed: RuntimeError: two lines"
    assert {fact["status"] for fact in facts.values()} == {"ok", "failed", "does not apply", "not run"}


def test_the_examples_are_those_given(site: Site, tmp_path: Path) -> None:
    site.install("sound")
    for label, value in (("dark", 10), ("bright", 240)):
        Image.new("RGB", (8, 8), (value,) * 3).save(tmp_path / f"{label}.png")
    dark, bright = tmp_path / "dark.png", tmp_path / "bright.png"
    assert check("sound", "--real", dark, "--generated", bright).exit_code == 0
    assert check("sound", "--real", bright, "--generated", dark).exit_code == 1


def test_an_unknown_name_is_misuse() -> None:
    result = check("no-such-detector")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "unknown detector 'no_such_detector'" in result.stderr


def test_weights_of_a_folder_are_for_their_method(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    result = check("dummy", "--weights", tmp_path / "run")
    assert result.exit_code == 1
    assert "no weights.yaml, not a folder of weights" in result.stdout

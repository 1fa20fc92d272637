"""The conformance suite: a sound detector passes it, and every kind of broken one fails the property meant for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from detector_zoo.testing import conformance
from detector_zoo.testing.properties import PROPERTIES, examine, examine_all
from detector_zoo.testing.subject import Subject
from strangers import CARD, SCORE, Site

SOUND = "return np.array([np.asarray(i).mean() / 64 - 2 for i in images], np.float32)"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "site") as site:
        yield site


def outcome(detector: str | type, *names: str) -> dict[str, tuple[str, str]]:
    subject = Subject(detector)
    return {name: ((found := examine(subject, name)).status, found.detail) for name in names}


def test_a_sound_detector_passes_everything(site: Site, tmp_path: Path) -> None:
    package = site.install("sound")
    for label, value in (("real", 40), ("generated", 200)):
        folder = package / "examples" / label
        folder.mkdir(parents=True)
        Image.new("RGB", (20, 10), (value,) * 3).save(folder / "0.png")
    found = {finding.name: finding for finding in examine_all(Subject("sound"))}
    assert list(found) == list(PROPERTIES)
    assert {name for name, finding in found.items() if finding.status == "ok"} == set(PROPERTIES) - {
        "weights",
        "recipes",
        "heatmap",
        "evidence",
    }
    assert {finding.status for finding in found.values()} == {"ok", "does not apply"}
    assert found["direction"].detail.startswith("mean log-odds +1.125 of 1 generated, -1.375 of 1 real")


def test_a_class_is_found_by_what_its_plugin_registers(site: Site) -> None:
    site.install("sound")
    from zoo_sound.detector import D

    assert Subject(D).name == "sound"
    stray = type("Stray", (), {"__module__": "zoo_sound.other"})
    (status, detail), *_ = outcome(stray, "registered").values()
    assert status == "failed"
    assert "no installed plugin registers zoo_sound.other:Stray" in detail


SCORING = {
    "shape": [
        ("return np.zeros((len(images), 1), np.float32)", "(1, 1) float32"),
        ("return np.zeros(len(images))", "(1,) float64"),
        ("return [0.0] * len(images)", "list"),
        ("print('noise'); return np.zeros(len(images), np.float32)", "prints while it scores"),
    ],
    "sizes": [("return np.array([1 / (i.width - 1) for i in images], np.float32)", "ZeroDivisionError")],
    "extremes": [
        ("return np.array([np.asarray(i).std() for i in images], np.float32) * 0", "every image scores 0"),
        (
            "return np.array([np.asarray(i).mean() if np.asarray(i).any() else np.nan for i in images], 'f4')",
            "not a finite number",
        ),
    ],
    "untouched": [("images[0].putpixel((0, 0), (1, 2, 3)); return np.zeros(len(images), np.float32)", "was changed")],
    "batch": [(SOUND.replace("- 2", "- len(images)"), "in one batch and alone")],
    "order": [(SOUND[:-1] + ") + 0.1 * np.arange(len(images), dtype='f4')", "in the opposite order")],
    "seed": [(SOUND + " + np.float32(np.random.rand())", "after the seed")],
    "workers": [(SOUND.replace("- 2", "- len(images)"), "batches of 16")],
}


@pytest.mark.parametrize(("name", "body", "said"), [(n, *case) for n, cases in SCORING.items() for case in cases])
def test_a_broken_score_fails_its_property(name: str, body: str, said: str, site: Site) -> None:
    site.install("bad", body)
    status, detail = outcome("bad", name)[name]
    assert status == "failed"
    assert said in detail
    assert "\n" not in detail


def test_every_source_has_to_score_alike(site: Site) -> None:
    # The core's decoder gives all the same picture, so only a detector that remembers can tell them apart.
    site.install("bad", "self.n = getattr(self, 'n', 0) + len(images); return np.full(len(images), self.n, 'f4')")
    assert outcome("bad", "sources")["sources"][0] == "failed"


HEAT = SCORE.format(body=SOUND) + "\n    def heatmap(self, images):\n        {}\n"
LOCALIZE = 'summary="A stranger", capabilities=frozenset({"localize"})'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return np.zeros((len(images), 3, 3), np.float32)", "returned (2, 3, 3) float32 for two images"),
        ("return np.zeros((len(images), images[0].height, images[0].width))", "float64"),
        ("return np.full((len(images), images[0].height, images[0].width), np.nan, 'f4')", "not finite"),
        (
            "return np.full((len(images), images[0].height, images[0].width), len(images), 'f4')",
            "differs by 1 in a batch",
        ),
    ],
)
def test_a_broken_heatmap_fails(body: str, said: str, site: Site) -> None:
    site.install("bad", detector=HEAT.format(body), info=LOCALIZE)
    status, detail = outcome("bad", "heatmap")["heatmap"]
    assert (status, said in detail) == ("failed", True), detail


def test_evidence_has_to_be_finite(site: Site) -> None:
    code = SCORE.format(body=SOUND) + "\n    def evidence(self, image):\n        return {'a': float('inf')}\n"
    site.install("bad", detector=code, info='summary="A stranger", capabilities=frozenset({"explain"})')
    assert outcome("bad", "evidence", "protocol") == {
        "evidence": ("failed", "expected named finite numbers, got {'a': inf}"),
        "protocol": ("ok", "score, explain"),
    }


@pytest.mark.parametrize(
    ("info", "code", "said"),
    [
        (LOCALIZE, SCORE.format(body=SOUND), "declares 'localize' but zoo_bad.detector:D has no method heatmap"),
        ('summary="S"', HEAT.format("return 0"), "has a method heatmap; declare"),
        ('summary="S"', "class D: pass", "has no method score"),
        ('summary="S"', "raise RuntimeError('no luck')", "RuntimeError: no luck"),
    ],
)
def test_a_class_has_what_it_declares(info: str, code: str, said: str, site: Site) -> None:
    site.install("bad", detector=code, info=info)
    status, detail = outcome("bad", "protocol")["protocol"]
    assert (status, said in detail) == ("failed", True), detail


def test_a_detector_that_does_not_load_is_said_once(site: Site) -> None:
    site.install("bad", detector="class D:\n    def __init__(self):\n        raise OSError('no file')")
    found = {finding.name: finding for finding in examine_all(Subject("bad"))}
    assert found["loads"].status == "failed"
    assert "OSError: no file" in found["loads"].detail
    assert {found[name].status for name in PROPERTIES if PROPERTIES[name].scores} == {"not run"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import PIL.Image", "imports PIL; import them where they are used"),
        ("import numpy", "imports numpy"),
        ("print('hello')", "prints"),
        ("import os; os._exit(3)", "fails: no message"),
        ("raise SystemExit('bye')", "fails: bye"),
    ],
)
def test_a_heavy_import_is_found(line: str, said: str, site: Site) -> None:
    package = site.install("heavy")
    subject = Subject("heavy")
    assert subject.module == "zoo_heavy"  # registered while it still was light
    init = package / "__init__.py"
    init.write_text(f"{init.read_text()}\n{line}\n")
    found = examine(subject, "light")
    assert (found.status, said in found.detail) == ("failed", True), found.detail


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (CARD.replace("## Results", "## Figures"), "no '## Results'"),
        (CARD.replace("## Licence\n\nNone.", "## Licence\n"), "nothing under '## Licence'"),
        ("", "no '## Training data'"),
    ],
)
def test_a_card_has_its_sections(card: str, said: str, site: Site) -> None:
    site.install("bad", card=card)
    assert outcome("bad", "card")["card"] == ("failed", f"CARD.md: {said}")


def test_a_gigantic_card_is_not_read(site: Site) -> None:
    with site.install("bad").joinpath("CARD.md").open("a") as stream:
        stream.truncate(10**10)  # sparse: it takes no space
    assert outcome("bad", "card")["card"] == ("failed", "CARD.md is longer than 200000 characters, which nobody reads")


def test_there_has_to_be_a_card_and_a_licence(site: Site) -> None:
    site.install("bad", info='summary="A stranger"', licence="")
    found = outcome("bad", "card", "licence")
    assert found["card"][1].startswith("no card: register card=")
    assert found["licence"][1].startswith("zoo-bad states no licence")
    assert {status for status, _ in found.values()} == {"failed"}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import pickle", "detector.py, line 1: imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("import torch\ntorch.load('x')", "line 2: torch.load without weights_only=True"),
        ("import torch\ntorch.load('x', weights_only=False)", "torch.load without"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle=True"),
        ("f(trust_remote_code=True)", "trust_remote_code=True"),
        ("def", "detector.py is no Python"),
    ],
)
def test_pickles_are_found_in_the_code(code: str, said: str, site: Site) -> None:
    site.install("bad", detector=code)
    status, detail = outcome("bad", "pickle_free")["pickle_free"]
    assert (status, said in detail) == ("failed", True), detail


def test_pickles_are_found_among_the_files(site: Site) -> None:
    package = site.install("bad")
    assert outcome("bad", "pickle_free")["pickle_free"][0] == "ok"
    package.joinpath("model.pth").write_bytes(b"x")
    assert "holds model.pth" in outcome("bad", "pickle_free")["pickle_free"][1]


def test_the_direction_is_that_of_the_examples(site: Site, tmp_path: Path) -> None:
    site.install("sound")
    for label, value in (("dark", 10), ("bright", 240)):
        Image.new("RGB", (8, 8), (value,) * 3).save(tmp_path / f"{label}.png")
    dark, bright = tmp_path / "dark.png", tmp_path / "bright.png"
    assert examine(Subject("sound", real=dark, generated=[bright]), "direction").status == "ok"
    assert examine(Subject("sound", real=[bright], generated=dark), "direction").status == "failed"
    assert examine(Subject("sound", real=dark, generated=dark), "direction").status == "failed"
    assert examine(Subject("sound", real=dark), "direction").status == "not run"


def test_one_line_in_the_authors_tests(site: Site, tmp_path: Path) -> None:
    site.install("sound")
    site.install("bad", "return np.zeros((len(images), 2), np.float32)")
    tests = tmp_path / "test_them.py"
    tests.write_text(
        "from detector_zoo.testing import conformance\n"
        "test_sound = conformance('sound')\n"
        "test_bad = conformance('bad')\n"
        "def test_pictures(zoo_pictures, zoo_home):\n"
        "    assert len(zoo_pictures) == 6 and not zoo_home.exists()\n"
    )
    # By name, because an installation that is older than the entry point would not bring it.
    with_plugin = ["-p", "no:detector_zoo", "-p", "detector_zoo.testing.pytest_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rfs", "--rootdir", str(tmp_path), *with_plugin, str(tests)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "400"},
    )
    assert done.returncode == 1
    assert "detector-zoo: " in done.stdout
    assert (
        "test_them.py::test_bad[shape] - Failed: scores have the right shape and type: returned (1, 2)" in done.stdout
    )
    assert "no real examples: give --real" in done.stdout
    assert "test_sound" not in "".join(line for line in done.stdout.splitlines() if line.startswith("FAILED"))


def test_conformance_is_a_test_a_property() -> None:
    (mark,) = conformance("dummy").pytestmark  # type: ignore[attr-defined]
    assert mark.args[1] == list(PROPERTIES)

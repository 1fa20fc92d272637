"""A plugin, a card or a catalogue that means harm costs one clear line, and nobody else's detector."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from detector_zoo import PluginError, WeightsError, load, loading, plugins, weights
from detector_zoo.cli import main
from detector_zoo.cli.info import SHOWN_LIMIT
from detector_zoo.plain import one_line, plain
from strangers import CARD, INIT, Site

from conftest import photo

MARKUP = "\x1b[2J\x1b]0;owned\x07[bold red]x[/] \u202egnp.exe\r\nError: forged"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "site") as site:
        yield site


@pytest.fixture
def image(tmp_path: Path) -> Path:
    photo(20, 10).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def zoo(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def clean(text: str) -> bool:
    """Whether a terminal shows just this text."""
    return all(line.isprintable() for line in text.split("\n"))


RAISED = {
    "SystemExit(0)": "SystemExit: 0",
    "KeyboardInterrupt": "KeyboardInterrupt: no message",
    "GeneratorExit": "GeneratorExit: no message",
    "MemoryError": "MemoryError: out of memory",
    "RecursionError('deep')": "RecursionError: deep",
    "type('Own', (BaseException,), {})('mine')": "Own: mine",
    "RuntimeError('\\x1b[2J one\\n two')": "RuntimeError: \\x1b[2J one two",
    "RuntimeError('x' * 10**6)": "RuntimeError: xxx",
    "type('E', (Exception,), {'__str__': lambda self: 1 / 0})()": "E: no message (ZeroDivisionError while reading it)",
}


@pytest.mark.parametrize("place", ["import", "register"])
@pytest.mark.parametrize("error", RAISED)
def test_whatever_a_plugin_raises_is_one_row(error: str, place: str, site: Site, image: Path) -> None:
    init = INIT.format(name="bad", info='summary="S"')
    site.install("bad", init=f"raise {error}" if place == "import" else f"{init}    raise {error}\n")
    listed = zoo("plugins")
    assert listed.exit_code == 0
    assert clean(listed.stdout)
    (row,) = [plugin for plugin in plugins.catalogue().plugins if plugin.name == "bad"]
    assert row.status.startswith(RAISED[error])
    assert len(row.status) < 400
    assert "bad" not in zoo("list", "-q").stdout.split()
    assert json.loads(zoo("score", "-d", "dummy", image).stdout)["error"] == ""
    asked = zoo("score", "-d", "bad", image)
    assert asked.exit_code == 2
    assert RAISED[error] in asked.stderr.replace("\n", " ")
    assert clean(asked.stderr)


def test_the_users_own_interrupt_is_not_the_plugins(site: Site) -> None:
    site.install("slow", init="print('importing', flush=True)\nimport time\ntime.sleep(60)")
    command = [sys.executable, "-m", "detector_zoo", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 1  # click's Aborted!
    assert "dummy" not in rest


def test_what_a_plugin_prints_is_not_in_the_output(site: Site) -> None:
    init = "print('at import')\n" + INIT.format(name="loud", info='summary="S"').replace(
        "    register(", "    print('at register')\n    register("
    )
    site.install("loud", init=init)
    listed = zoo("list", "--json")
    assert "loud" in [detector["name"] for detector in json.loads(listed.stdout)]
    assert listed.stderr == "at import\nat register\n"


REGISTERED = {
    "summary=3": "summary must be str, got 3",
    'summary=""': "summary must be one printable line",
    'summary="a\\nb"': "summary must be one printable line",
    'summary="\\x1b[31mred"': "summary must be one printable line",
    'summary="x" * 301': "summary must be one printable line of at most 300 characters",
    'summary="S", card="CARD.md"': "card must be Path or NoneType, got 'CARD.md'",
    'summary="S", registry="registry.yaml"': "registry must be Path or NoneType",
    'summary="S", paper="arXiv"': "paper must be Paper or NoneType",
    'summary="S", capabilities="localize"': "capabilities must be frozenset or set",
    'summary="S", default_tag=1': "default_tag must be str or NoneType",
}


@pytest.mark.parametrize("info", REGISTERED)
def test_what_is_registered_has_to_be_of_its_kind(info: str, site: Site) -> None:
    site.install("bad", info=info)
    (row,) = [plugin for plugin in plugins.catalogue().plugins if plugin.name == "bad"]
    assert REGISTERED[info] in row.status
    for command in ("list", "plugins", "doctor --json" if info == "summary=3" else "list --json"):
        assert "Traceback" not in zoo(*command.split()).output
        assert zoo("list", "-q").exit_code == 0


SCORES = {
    "raise SystemExit(0)": "SystemExit: 0",
    "raise MemoryError": "MemoryError: out of memory",
    "return np.empty(2**58, np.float32)": "MemoryError: Unable to allocate 1.00 EiB",
    "return np.full(len(images), np.nan, np.float32)": "returned a score that is not a finite number",
    "return np.full(len(images), np.inf, np.float32)": "returned a score that is not a finite number",
    "return np.zeros((len(images), 2), np.float32)": "returned shape (1, 2) for 1 images",
    "return np.zeros(0, np.float32)": "returned shape (0,) for 1 images",
    "return np.array(['generated'])": "not numbers",
    "return np.zeros(len(images), complex)": "returned complex128, not numbers",
    "return None": "returned object, not numbers",
    "return [[1], [1, 2]]": "ValueError: ",
    "return images[0].nothing": "AttributeError: ",
    "raise RuntimeError('\\x1b[2J')": "RuntimeError: \\x1b[2J",
    "raise type('Own', (BaseException,), {})('mine')": "Own: mine",
}


@pytest.mark.parametrize("body", SCORES)
def test_a_score_that_fails_is_a_row_with_its_error(body: str, site: Site, image: Path) -> None:
    site.install("bad", body)
    result = zoo("score", "-d", "bad", "-d", "dummy", image)
    bad, dummy = (json.loads(line) for line in result.stdout.splitlines())
    assert result.exit_code == 1
    assert SCORES[body] in bad["error"]
    assert bad["log_odds"] is None
    assert clean(result.stderr)
    assert dummy["error"] == ""
    assert dummy["log_odds"] == pytest.approx(float(load("dummy").score([image])[0]))


BUILT = {
    "class D:\n    def __init__(self): raise SystemExit(0)": "cannot be built: SystemExit: 0",
    "class D:\n    def __init__(self): 1 / 0": "cannot be built: ZeroDivisionError",
    "class D: pass": "has no method score",
    "import sys\nsys.exit('bye')": "cannot load zoo_bad.detector:D: SystemExit: bye",
    "raise MemoryError": "MemoryError: out of memory",
    "D = None": "cannot be built: TypeError",
}


@pytest.mark.parametrize("detector", BUILT)
def test_a_detector_that_cannot_be_built_is_one_line(detector: str, site: Site, image: Path) -> None:
    site.install("bad", detector=detector)
    result = zoo("score", "-d", "bad", image)
    assert result.exit_code == 1
    assert (result.stdout, "Traceback" in result.stderr) == ("", False)
    assert BUILT[detector] in result.stderr.splitlines()[0]
    with pytest.raises(PluginError):
        load("bad")


def test_all_skips_what_cannot_be_built(site: Site, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("bad", detector="class D:\n    def __init__(self): 1 / 0")
    site.install("good")
    ours = plugins.list_detectors
    monkeypatch.setattr(loading, "list_detectors", lambda: [i for i in ours() if i.name in ("bad", "good")])
    skipped: list[str] = []
    assert [found.name for found in loading.load_all(["all"], skipped, device="cpu")] == ["good"]
    assert skipped == ["bad: zoo_bad.detector:D cannot be built: ZeroDivisionError: division by zero"]
    result = zoo("score", "-d", "all", image)
    assert (result.exit_code, json.loads(result.stdout)["detector"]) == (0, "good")
    assert "Skipped: bad: zoo_bad.detector:D cannot be built" in result.stderr
    for names in (["bad"], ["all", "bad"]):  # who was named has to be there
        with pytest.raises(PluginError, match="cannot be built"):
            loading.load_all(names, skipped)
    monkeypatch.setattr(loading, "list_detectors", lambda: [i for i in ours() if i.name == "bad"])
    with pytest.raises(PluginError, match="cannot be built"):
        loading.load_all(["all"], skipped)


def test_all_skips_weights_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"not these")
    shipped = weights._package_file
    monkeypatch.setattr(
        weights,
        "_package_file",
        lambda spec: tmp_path / "broken.safetensors" if spec.name == "patch_shuffle.lite" else shipped(spec),
    )
    ours = plugins.list_detectors
    monkeypatch.setattr(loading, "list_detectors", lambda: [i for i in ours() if i.name in ("patch_shuffle", "corvi")])
    skipped: list[str] = []
    assert [found.name for found in loading.load_all(["all"], skipped, device="cpu")] == ["corvi.lite"]
    assert len(skipped) == 1
    assert "patch_shuffle.lite" in skipped[0]
    with pytest.raises(WeightsError, match=r"patch_shuffle\.lite"):
        loading.load_all(["patch_shuffle"], skipped, device="cpu")


def test_a_heatmap_of_nan_is_a_note(site: Site, image: Path, tmp_path: Path) -> None:
    code = "import numpy as np\nclass D:\n    def score(self, images): return np.zeros(len(images), np.float32)\n"
    code += "    def heatmap(self, images): return np.full((1, images[0].height, images[0].width), np.nan)\n"
    site.install("bad", detector=code, info='summary="S", capabilities=frozenset({"localize"})')
    result = zoo("score", "-d", "bad", "--heatmap", tmp_path / "maps", image)
    assert result.exit_code == 0
    assert "no heatmap: bad returned a heatmap that is not finite" in json.loads(result.stdout)["note"]
    assert list((tmp_path / "maps").glob("*.png")) == []


def test_a_card_cannot_move_the_cursor(site: Site) -> None:
    heading = "## Limits and known shortcuts\n\n"
    site.install("bad", card=CARD.replace(heading, heading + MARKUP + "\n\n"))
    result = zoo("info", "bad")
    assert (result.exit_code, result.stderr) == (0, "")
    assert clean(result.stdout)
    assert "\\x1b[2J" in result.stdout
    assert "[bold red]x[/]" in result.stdout  # shown as it stands: nothing here reads markup
    assert "\u202e" not in result.stdout
    assert json.loads(zoo("info", "bad", "--json").stdout)["limits"].startswith("\x1b[2J")


def test_a_gigantic_card_is_read_and_shown_in_part(site: Site) -> None:
    package = site.install("bad")
    with package.joinpath("CARD.md").open("w") as stream:
        stream.write("## Limits and known shortcuts\n\nlimit\n")
        stream.truncate(10**10)  # sparse: ten gigabytes that take no space
    result = zoo("info", "bad")
    assert result.exit_code == 0
    assert len(result.stdout) < 5 * SHOWN_LIMIT  # a NUL is shown as four characters
    assert f"... and more: {package / 'CARD.md'}" in result.stdout


@pytest.mark.parametrize("content", [b"\xff\xfe\x00## Limits\n", b""])
def test_a_card_that_is_no_text_is_not_fatal(content: bytes, site: Site) -> None:
    site.install("bad").joinpath("CARD.md").write_bytes(content)
    assert zoo("info", "bad").exit_code == 0


def test_a_card_that_is_a_pipe_is_not_waited_for(site: Site) -> None:
    card = site.install("bad") / "CARD.md"
    card.unlink()
    os.mkfifo(card)
    assert zoo("info", "bad").exit_code == 0


PAPER = """
from detector_zoo import DetectorInfo, Paper, hookimpl

@hookimpl
def register_detectors(register):
    paper = Paper(title={text!r}, authors={authors!r}, year=2026, url={text!r}, bibtex={text!r})
    register(DetectorInfo(name="bad", summary="S", load="zoo_bad.detector:D", paper=paper))
"""


@pytest.mark.parametrize("authors", [", ", "A, B", "A B"])
def test_a_paper_cannot_move_the_cursor(authors: str, site: Site) -> None:
    site.install("bad", init=PAPER.format(text=MARKUP, authors=authors))
    for words in (["info", "bad"], ["list"]):
        result = zoo(*words)
        assert (result.exit_code, result.stderr) == (0, "")
        assert clean(result.stdout)


def test_a_catalogue_cannot_move_the_cursor(site: Site) -> None:
    package = site.install("bad", info='summary="S", default_tag="x", registry=Path(__file__).with_name("r.yaml")')
    text = json.dumps(MARKUP)
    package.joinpath("r.yaml").write_text(
        f"schema_version: 1\nweights:\n  bad.x: {{source: null, why: {text}, licence: {text}, summary: {text}}}\n"
    )
    for words in (["info", "bad"], ["list"], ["weights", "list"], ["plugins"], ["weights", "pull", "bad.x"]):
        result = zoo(*words)
        assert clean(result.output), words
    assert "no weights were published: \\x1b[2J" in zoo("weights", "pull", "bad.x").stderr


def test_a_catalogue_that_means_harm_costs_its_own_entries(site: Site, image: Path) -> None:
    package = site.install("bad", info='summary="S", default_tag="x", registry=Path(__file__).with_name("r.yaml")')
    package.joinpath("r.yaml").write_text("[" * 100_000)
    assert json.loads(zoo("score", "-d", "dummy", image).stdout)["error"] == ""
    assert "r.yaml: nested too deeply" in zoo("plugins").stdout
    asked = zoo("info", "bad")
    assert (asked.exit_code, asked.stdout) == (2, "")
    assert "r.yaml: nested too deeply" in asked.stderr


@pytest.mark.parametrize("policy", ["upright", 3, None])
def test_a_catalogue_with_an_unknown_policy_is_a_row(policy: object, site: Site, image: Path) -> None:
    code = "import numpy as np\nclass D:\n    @classmethod\n    def from_weights(cls, weights): return cls()\n"
    code += "    def score(self, images): return np.zeros(len(images), np.float32)\n"
    package = site.install(
        "bad", detector=code, info='summary="S", default_tag="x", registry=Path(__file__).with_name("r.yaml")'
    )
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(1, np.float32)}, package / "w.safetensors")
    spec = {"source": "package:zoo_bad/w.safetensors", "verified": True, "preprocessing": {"exif_orientation": policy}}
    package.joinpath("r.yaml").write_text(json.dumps({"schema_version": 1, "weights": {"bad.x": spec}}))
    result = zoo("score", "-d", "bad", image)
    assert result.exit_code == 1
    assert "orientation policy" in json.loads(result.stdout)["error"]


def test_what_nobody_thought_of_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from detector_zoo.cli import list as command

    def broken() -> None:
        raise KeyError("\x1b[2J")

    monkeypatch.setattr(command, "list_detectors", broken)
    result = zoo("list")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "Error: unexpected KeyError: '\\x1b[2J'"
    assert "Traceback" in zoo("--debug", "list").stderr


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.integers(1, 50))
def test_plain_text_is_printable_and_short(text: str, limit: int) -> None:
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)
    assert text.isprintable() <= (plain(text) == text)
    assert one_line(ValueError(text)).isprintable()
    assert len(plain(text, limit)) <= 10 * limit

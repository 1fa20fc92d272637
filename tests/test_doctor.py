"""`zoo doctor`: it finds what is amiss, says what to do, and keeps secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from detector_zoo.cli import doctor, main
from strangers import Site

TOKEN = "hf_" + "x" * 34


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the real Hub, or starts torch unless it is about that."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(doctor, "_TORCH", 'print(\'["9.9", "CPU", 1]\')')


def examined() -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert found["healthy"] == (result.exit_code == 0)
    return result.exit_code, {check["name"]: check for check in found["checks"]}


def test_a_healthy_installation() -> None:
    status, found = examined()
    assert status == 0
    assert found["device"]["found"].startswith("CPU, torch 9.9")
    assert found["requirements"]["state"] == "ok"
    assert "numpy" in found["requirements"]["found"]
    assert found["scoring"]["found"] == "dummy scores a grey image +1.29"
    assert "mdmf" in found["detectors"]["found"]
    assert found["Hub"]["found"].endswith("not asked, HF_HUB_OFFLINE is set")
    text = CliRunner().invoke(main, ["doctor"]).stdout
    assert text.splitlines()[-1] == "images can be scored"
    assert "-> weights that are here score as before" in text


def test_torch_is_not_imported_by_the_doctor() -> None:
    code = """
import sys
from detector_zoo.cli import doctor
doctor._TORCH = "print('[1, 2, 3]')"
list(doctor.examine())
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_broken_torch_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TORCH", "raise ImportError('libcudart.so.99: cannot open')")
    status, found = examined()
    assert status == 1
    assert found["device"]["state"] == "broken"
    assert "ImportError: libcudart.so.99" in found["device"]["found"]
    assert "pip install" in found["device"]["hint"]


def test_a_missing_and_an_old_requirement_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["zoo-no-such>=2", "numpy>=999.1", "click>=8.1", 'zoo-other>=1; extra == "train"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    status, found = examined()
    assert status == 1
    assert found["zoo-no-such"]["found"] == "not installed, needed: 2"
    assert found["numpy"]["state"] == "broken"
    assert found["requirements"]["hint"] == "pip install 'zoo-no-such>=2' 'numpy>=999.1'"
    assert found["extra train"] == {
        "name": "extra train",
        "state": "note",
        "found": "not installed: zoo-other",
        "hint": "pip install 'detector-zoo[train]'",
    }


@pytest.mark.parametrize(
    ("version", "least", "older"),
    [("2.9.1", "2.10", True), ("2.10", "2.10", False), ("2.14.1+cu130", "2.10", False), ("1.0", "", False)],
)
def test_versions_are_compared_as_numbers(version: str, least: str, older: bool) -> None:
    assert doctor._older(version, least) is older


def test_broken_plugins_are_warnings_with_a_hint(tmp_path: Path) -> None:
    with Site(tmp_path / "site") as site:
        site.install("bad", init="raise RuntimeError('\\x1b[2Jno luck')")
        status, found = examined()
        text = CliRunner().invoke(main, ["doctor"]).stdout
    assert status == 0
    assert found["plugin"]["state"] == "warning"
    assert found["plugin"]["found"] == "bad (zoo-bad 1.0): RuntimeError: \\x1b[2Jno luck"
    assert "pip uninstall zoo-bad" in found["plugin"]["hint"]
    assert "\x1b[2J" not in text


def test_no_detector_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Site(tmp_path / "site"):
        monkeypatch.setenv("DETECTOR_ZOO_PLUGINS", "")
        status, found = examined()
    assert status == 1
    assert found["detectors"]["state"] == "broken"


def test_a_home_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    monkeypatch.setenv("DETECTOR_ZOO_HOME", str(tmp_path / "file"))
    status, found = examined()
    assert status == 0
    assert found["zoo home"]["state"] == "warning"
    assert "DETECTOR_ZOO_HOME" in found["zoo home"]["hint"]


def test_little_space_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LITTLE_SPACE", 10**18)
    assert examined()[1]["zoo home"]["state"] == "warning"


class Answers(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("answer", "state"), [(200, "ok"), (404, "ok"), (503, "warning")])
def test_the_hub_is_asked_once(server: HTTPServer, answer: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "status", answer)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    (found,) = doctor.hub()
    assert found.state == state


def test_a_hub_that_cannot_be_reached_is_a_warning(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:secret@127.0.0.1:9")
    (found,) = doctor.hub()
    assert found.state == "warning"
    assert "cannot be reached" in found.found
    assert "secret" not in found.found + found.hint
    monkeypatch.setattr(constants, "ENDPOINT", "file:///etc/passwd")
    (found,) = doctor.hub()
    assert "no address of a server" in found.found


def test_the_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    result = CliRunner().invoke(main, ["doctor"])
    assert "there, not shown" in result.stdout
    assert TOKEN not in result.output
    assert TOKEN not in json.dumps(examined()[1])


def test_what_cannot_be_looked_at_does_not_stop_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def caches() -> Iterator[doctor.Check]:
        raise ImportError("no huggingface_hub")
        yield

    monkeypatch.setattr(doctor, "caches", caches)
    status, found = examined()
    assert status == 1
    assert found["caches"]["found"] == "cannot be looked at: ImportError: no huggingface_hub"
    assert found["scoring"]["state"] == "ok"

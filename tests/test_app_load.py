"""`zoo app` as its users start it: many uploads at once, large ones, hostile ones; memory, port, login, end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from app_toys import jpeg
from detector_zoo.app.analysis import Analyst

ZOO = [sys.executable, "-m", "detector_zoo"]
NAMES = ("dummy", "patch_shuffle", "ufd_clip")
UPLOADS = 50
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[str]

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def started(*arguments: str, folder: Path, **environment: str) -> Iterator[Server]:
    """`zoo app` on a free port."""
    process = subprocess.Popen(
        [*ZOO, "app", "--port", "0", "--device", "cpu", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**ENVIRONMENT, "TMPDIR": str(folder), "DETECTOR_ZOO_HOME": str(folder / "home"), **environment},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://"), f"{line}{process.communicate()}"
        yield Server(line.split()[0], process)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def folders(place: Path) -> list[str]:
    return [path.name for path in place.iterdir() if path.name != "home"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    names = [part for name in NAMES for part in ("-d", name)]
    limits = ["--queue", "8", "--max-upload", "5MB", "--max-pixels", "1000000"]
    with started("--no-page", *names, *limits, folder=tmp_path_factory.mktemp("server")) as found:
        httpx.post(f"{found.url}/api/v1/score", files={"file": jpeg()}, timeout=60).raise_for_status()
        yield found


@contextmanager
def watched(server: Server) -> Iterator[list[int]]:
    """The server's memory, every 20 ms."""
    seen, stop = [server.memory], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            seen.append(server.memory)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def upload(url: str, data: bytes) -> tuple[dict[str, object], int]:
    """Score a file; come back as often as the server says. Returns the answer and how often it said so."""
    waited, until = 0, time.monotonic() + 300
    while time.monotonic() < until:
        answer = httpx.post(f"{url}/api/v1/score", files={"file": ("a.jpg", data)}, timeout=120)
        if answer.status_code != 429:
            assert answer.status_code == 200, answer.text
            return answer.json(), waited
        assert answer.json()["error"]["type"] == "Busy"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        waited += 1
        time.sleep(0.2)  # sooner than it says, so that it has to say it again
    raise AssertionError("never answered")


def test_many_uploads_at_once_are_not_mixed_up(server: Server) -> None:
    files = [jpeg(seed, 160, 120) for seed in range(UPLOADS)]
    analyst = Analyst(NAMES, device="cpu")
    expected = [analyst.analyse(data) for data in files]
    with watched(server) as memory, ThreadPoolExecutor(UPLOADS) as pool:
        answers = list(pool.map(lambda data: upload(server.url, data), files))
    for (answer, _), wanted in zip(answers, expected, strict=True):
        assert answer["sha256"] == wanted.sha256
        scores = [(v["name"], v["log_odds"]) for v in answer["verdicts"]]  # type: ignore[attr-defined]
        assert scores == [(v.name, pytest.approx(v.log_odds, abs=1e-4)) for v in wanted.verdicts]
    assert len({json.dumps(answer["verdicts"]) for answer, _ in answers}) == UPLOADS
    assert sum(waited for _, waited in answers) > 0, "10 places for 50 uploads, and none was told to wait"
    assert max(memory) - memory[0] < 120_000_000


FORM = {"content-type": "multipart/form-data; boundary=x"}


def part(megabytes: int) -> Iterator[bytes]:
    """The begin of a form with one file."""
    yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    for _ in range(megabytes):
        yield b"\0" * 1_000_000


def leave(url: str, folder: Path) -> None:
    """Begin an upload, go away when some of it is in the folder, and wait until it is not."""
    address = httpx.URL(url)
    head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc.decode()}\r\nContent-Length: 9000000\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in FORM.items())
    before, until = set(folder.iterdir()), time.monotonic() + 60
    with socket.create_connection((address.host, address.port or 80)) as client:
        client.sendall(head.encode() + b"\r\n" + b"".join(part(3)))
        while set(folder.iterdir()) == before:
            assert time.monotonic() < until, "nothing is written: is the folder gradio's?"
            time.sleep(0.05)
    while set(folder.iterdir()) != before:
        assert time.monotonic() < until, "it stays"
        time.sleep(0.05)


def test_a_large_upload_is_refused_and_not_kept(server: Server) -> None:
    with watched(server) as memory:
        for headers in (FORM, {**FORM, "content-length": "500000000"}):
            answer = httpx.post(f"{server.url}/api/v1/score", content=part(500), headers=headers, timeout=60)
            assert answer.status_code == 413
            assert answer.json()["error"]["type"] == "TooLarge"
    assert max(memory) - memory[0] < 40_000_000


def test_a_port_that_is_taken_is_one_line(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    status, errors = ended("app", "--no-page", "-d", "dummy", "--port", port)
    assert status == 1
    assert re.fullmatch(rf"Error: cannot listen on 127.0.0.1:{port} \(.*\)\nHint: .*\n", errors)


def ended(*arguments: str, code: str = "", **environment: str) -> tuple[int, str]:
    """Exit status and standard error of `zoo`."""
    command: Sequence[str] = [sys.executable, "-c", code, *arguments] if code else [*ZOO, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**ENVIRONMENT, **environment}, timeout=120
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        (["--host", "0.0.0.0"], {}, "need a login"),
        (["--host", "not-an-address.invalid", "--auth", "a:b"], {}, "not an address"),
        ([], {"DETECTOR_ZOO_AUTH": "nopassword"}, "USER:PASSWORD"),
    ],
)
def test_an_address_is_checked_first(arguments: list[str], environment: dict[str, str], text: str) -> None:
    status, errors = ended("app", "--no-page", "--port", "0", *arguments, **environment)
    assert status == 1
    assert errors.startswith("Error: ")
    assert text in errors
    assert len(errors.splitlines()) <= 2


def test_without_the_extra_there_is_a_hint() -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('gradio', 'uvicorn') else find(name, *a)\n"
        "sys.argv[0] = 'zoo'; from detector_zoo.cli import main; main()"
    )
    status, errors = ended("app", code=code)
    assert status == 1
    assert errors == "Error: zoo app needs uvicorn, gradio\nHint: pip install 'detector-zoo[app]'\n"


@pytest.mark.parametrize("arguments", [["--help"], ["app", "--help"], ["list"]], ids=" ".join)
def test_nothing_heavy_is_imported_to_tell_what_there_is(arguments: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'numpy', 'gradio', 'fastapi', 'starlette', 'uvicorn', 'anyio', 'c2pa'}\n"
        "atexit.register(lambda: print('heavy', sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "import detector_zoo.app, detector_zoo.app.options, detector_zoo.app.server\n"
        "sys.argv[0] = 'zoo'; from detector_zoo.cli import main; main()"
    )
    status, errors = ended(*arguments, code=code)
    assert (status, errors) == (0, "heavy []\n")


def test_login_by_environment_ctrl_c_and_nothing_left_behind(tmp_path: Path) -> None:
    with started("--no-page", "-d", "dummy", folder=tmp_path, DETECTOR_ZOO_AUTH="me:secret") as server:
        url = f"{server.url}/api/v1/detectors"
        assert httpx.get(url, timeout=60).status_code == 401
        assert httpx.get(url, auth=("me", "secret"), timeout=60).status_code == 200
        assert not any("secret" in word for word in psutil.Process(server.process.pid).cmdline())
        server.process.send_signal(signal.SIGINT)
        output, errors = server.process.communicate(timeout=60)
        assert server.process.returncode == 0
        assert errors == "Detectors: dummy\n"
        assert output == ""
        with socket.socket() as free, pytest.raises(ConnectionRefusedError):
            free.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    assert folders(tmp_path) == []


def test_uploads_to_the_page_are_kept_in_a_folder_that_goes(tmp_path: Path) -> None:
    with started("-d", "dummy", folder=tmp_path) as server:
        page = httpx.get(server.url, timeout=60)
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "access-control-allow-origin" not in httpx.get(f"{server.url}/config", timeout=60).headers
        upload = f"{server.url}/gradio_api/upload"
        answer = httpx.post(upload, files={"files": ("../../../evil.jpg", jpeg())}, timeout=60)
        (kept,) = answer.raise_for_status().json()
        assert Path(kept).name == "evil.jpg"
        assert Path(kept).is_relative_to(tmp_path / folders(tmp_path)[0])
        large = httpx.post(upload, files={"files": b"x" * 33_000_000}, timeout=60)
        assert large.status_code == 413
        other = httpx.post(upload, files={"files": jpeg()}, headers={"origin": "http://evil.example"}, timeout=60)
        assert other.status_code == 403
        assert len(folders(tmp_path)) == 1
        # The page behind it leaves the interface's paths alone.
        for method, path, status, kind in (
            ("GET", "nope", 404, "NotFound"),
            ("POST", "nope", 404, "NotFound"),
            ("GET", "score", 405, "MethodNotAllowed"),
        ):
            refused = httpx.request(method, f"{server.url}/api/v1/{path}", timeout=60)
            assert (refused.status_code, refused.json()["error"]["type"]) == (status, kind)
        assert httpx.head(f"{server.url}/api/v1/health", timeout=60).status_code == 405
        # What is over the limit, and what a client leaves that goes away, is not kept.
        over = httpx.post(upload, content=part(40), headers=FORM, timeout=60)
        assert (over.status_code, over.json()["error"]["type"]) == (413, "TooLarge")
        leave(upload, Path(kept).parents[1])
        assert httpx.get(server.url, headers={"origin": "http://[bad"}, timeout=60).status_code == 403
        assert [path for path in tmp_path.glob("zoo-app-*/**/*") if path.is_file()] == [Path(kept)]
        server.process.terminate()
        assert server.process.communicate(timeout=60)[1] == "Detectors: dummy\n"
    assert server.process.returncode == 128 + signal.SIGTERM
    assert folders(tmp_path) == []

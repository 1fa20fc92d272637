"""The HTTP interface over a real server."""

from __future__ import annotations

import base64
import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app_toys import jpeg, opened, running, signed
from detector_zoo import heatmaps
from detector_zoo.app.analysis import Analyst
from detector_zoo.app.api import LAUNDERINGS, MAX_LAUNDERINGS
from detector_zoo.app.options import Options
from detector_zoo.app.problems import STATUS
from detector_zoo.scoring import score

from conftest import encoded, photo

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NAMES = ("dummy", "patch_shuffle")
OPTIONS = Options(
    detectors=NAMES, max_upload=2_000_000, max_pixels=1_000_000, page=False, concurrency=2, queue=4, device="cpu"
)


@pytest.fixture(scope="module")
def analyst() -> Analyst:
    return Analyst(NAMES, device="cpu", max_pixels=OPTIONS.max_pixels)


@pytest.fixture(scope="module")
def address(analyst: Analyst) -> Iterator[str]:
    with running(OPTIONS, analyst) as url:
        yield url


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{address}/api/v1", timeout=60) as client:
        yield client


def noise() -> bytes:
    """A picture just below the limit."""
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 790, 3), np.uint8)), "PNG")
    assert 1_800_000 < len(data) < 1_990_000
    return data


def refused(answer: httpx.Response, kind: str, text: str) -> dict[str, Any]:
    """Check the one form of all errors."""
    assert answer.status_code == STATUS[kind], answer.text
    assert answer.headers["content-type"] == "application/json"
    (error,) = answer.json().values()
    assert set(error) == {"type", "message", "hint"}
    assert error["type"] == kind
    assert text in error["message"]
    assert error["message"].isprintable()
    assert "Traceback" not in answer.text
    return dict(error)


def test_scores_are_those_of_the_pipeline(client: httpx.Client, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, data in enumerate([EXAMPLES.joinpath("generated_3_exchange.jpg").read_bytes(), jpeg(1, 90, 70, exif=exif)]):
        path = tmp_path / f"{i}.jpg"
        path.write_bytes(data)
        answer = client.post("/score", files={"file": (path.name, data)})
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        rows = list(score([path], NAMES, device="cpu"))
        assert len(rows) == len(answer.json()["verdicts"])
        for row, verdict in zip(rows, answer.json()["verdicts"], strict=True):
            for column in ("detector", "weights_sha256", "log_odds", "probability", "raw", "label", "threshold"):
                assert verdict[column] == getattr(row, column), column
            assert answer.json()["sha256"] == row.sha256


def test_detectors_are_chosen(client: httpx.Client) -> None:
    def names(detector: list[str]) -> list[str]:
        answer = client.post("/score", files={"file": jpeg()}, data={"detector": detector})
        return [verdict["name"] for verdict in answer.json()["verdicts"]]

    assert names([]) == names(["all"]) == names(["dummy", "patch_shuffle.lite"]) == ["dummy", "patch_shuffle.lite"]
    assert names(["patch_shuffle", "patch_shuffle.lite"]) == ["patch_shuffle.lite"]
    answer = client.post("/score", files={"file": jpeg()}, data={"detector": "patch_shufle"})
    assert "patch_shuffle" in refused(answer, "UnknownDetectorError", "'patch_shufle'")["hint"]


def test_what_is_loaded(client: httpx.Client, analyst: Analyst) -> None:
    found = client.get("/detectors").json()
    assert found["detectors"] == json.loads(json.dumps([served.to_dict() for served in analyst.detectors]))
    assert found["perturbations"] == list(LAUNDERINGS)
    assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("page.png", b"<html><script>alert(1)</script></html>", "page.png: not an image"),
        ("empty.png", b"", "the file is empty"),
        ("cut.jpg", jpeg()[:-200], "truncated"),
        ("bomb.png", encoded(Image.new("L", (30_000, 30_000)), "PNG", optimize=False), "900,000,000 pixels"),
        ("../../etc/passwd", b"root:x:0:0", "passwd: not an image"),
        ("a\x1b[31m\r\nb.png", b"text", "not an image"),
    ],
    ids=["html", "empty", "truncated", "bomb", "path", "control"],
)
def test_what_is_no_picture_is_refused(client: httpx.Client, name: str, data: bytes, text: str) -> None:
    error = refused(client.post("/score", files={"file": (name, data)}), "ImageError", text)
    assert "etc" not in error["message"]


def test_a_path_in_a_name_is_cut_off(client: httpx.Client) -> None:
    before = sorted(EXAMPLES.iterdir())
    found = client.post("/score", files={"file": ("../../etc/\u202epasswd.jpg", jpeg())}).json()
    assert found["name"] == found["file"]["name"] == "\\u202epasswd.jpg"
    assert sorted(EXAMPLES.iterdir()) == before


@pytest.mark.parametrize(
    ("path", "content", "headers", "kind", "text"),
    [
        ("/score", b"abc", {}, "UnsupportedMediaType", "multipart/form-data"),
        ("/score", b"{}", {"content-type": "application/json"}, "UnsupportedMediaType", "multipart/form-data"),
        ("/score", b"abc", {"content-type": "multipart/form-data"}, "InvalidRequest", "boundary"),
        ("/score", b"abc", {"content-type": "multipart/form-data; boundary=x"}, "InvalidRequest", "parsed"),
        ("/nope", b"", {}, "NotFound", "/api/v1/nope"),
        ("/health", b"", {}, "MethodNotAllowed", "POST"),
    ],
)
def test_what_is_no_request_is_refused(
    client: httpx.Client, path: str, content: bytes, headers: dict[str, str], kind: str, text: str
) -> None:
    refused(client.post(path, content=content, headers=headers), kind, text)


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/nope", "NotFound"),
        ("GET", "", "NotFound"),
        ("POST", "/score/", "NotFound"),
        ("GET", "/score", "MethodNotAllowed"),
        ("PUT", "/score", "MethodNotAllowed"),
        ("POST", "/openapi.json", "MethodNotAllowed"),
    ],
)
def test_what_is_no_path_is_refused(client: httpx.Client, method: str, path: str, kind: str) -> None:
    answer = client.request(method, f"{client.base_url}".rstrip("/") + path)
    refused(answer, kind, f"{method} /api/v1{path}")
    if kind == "MethodNotAllowed":
        assert answer.headers["allow"] == {"/score": "POST", "/openapi.json": "GET, HEAD"}[path]
    assert client.head("/health").status_code == 405


def test_fields_are_checked(client: httpx.Client) -> None:
    refused(client.post("/score", files={"picture": jpeg()}), "InvalidRequest", "file: Field required")
    refused(client.post("/score", data={"file": "no file"}, files={"x": b""}), "InvalidRequest", "file")
    many = [("file", (f"{i}.jpg", b"x")) for i in range(5)]
    refused(client.post("/score", files=many), "InvalidRequest", "Too many files")
    answer = client.post("/score", files={"file": jpeg()}, data={"detector": ["dummy"] * 100})
    refused(answer, "InvalidRequest", "Too many fields")
    answer = client.post("/heatmap", files={"file": jpeg()}, data={"detector": "dummy", "opacity": "2"})
    refused(answer, "InvalidRequest", "opacity")
    long = client.post("/score", files={"file": jpeg()}, data={"detector": "y" * 1025})
    refused(long, "InvalidRequest", "maximum size of 1KB")
    most = client.post("/score", files={"file": jpeg()}, data={"detector": "y" * 1024})
    refused(most, "UnknownDetectorError", "yyy")


def test_more_than_the_limit_is_refused(client: httpx.Client) -> None:
    def part() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        for _ in range(50):
            yield b"\0" * 1_000_000

    form = {"content-type": "multipart/form-data; boundary=x"}
    refused(client.post("/score", content=part(), headers=form), "TooLarge", "more than 2000000 bytes")
    declared = {**form, "content-length": "500000000"}
    refused(client.post("/score", content=part(), headers=declared), "TooLarge", "500000000 bytes")
    assert client.post("/score", files={"file": noise()}, data={"detector": "dummy"}).status_code == 200


def test_launder(client: httpx.Client, analyst: Analyst) -> None:
    data = jpeg(4, 200, 150)
    wanted = ["jpeg:75", "blur:1"]
    answer = client.post("/launder", files={"file": ("a.jpg", data)}, data={"perturbation": wanted})
    assert answer.json() == json.loads(json.dumps(analyst.launder(data, None, wanted, "a.jpg").to_dict()))
    assert client.post("/launder", files={"file": data}, data={"detector": "dummy"}).json()["rows"][0]["survives"]


@pytest.mark.parametrize("specs", [["resize_bicubic:8"], ["fog"], list(LAUNDERINGS[: MAX_LAUNDERINGS + 1])])
def test_launderings_that_cost_too_much_are_refused(client: httpx.Client, specs: list[str]) -> None:
    answer = client.post("/launder", files={"file": jpeg()}, data={"perturbation": specs})
    refused(answer, "InvalidRequest", "perturbation")


def test_heatmap(client: httpx.Client, analyst: Analyst) -> None:
    data = jpeg(5, 120, 80)
    fields = {"detector": "patch_shuffle", "opacity": "0.5"}
    answer = client.post("/heatmap", files={"file": data}, data=fields)
    assert answer.headers["content-type"] == "image/png"
    heat, image = analyst.heatmap(data, "patch_shuffle")
    assert np.array_equal(opened(answer.content), heatmaps.overlay(image, heat, 0.5))
    refused(client.post("/heatmap", files={"file": data}), "InvalidRequest", "detector: Field required")


def test_exchange(client: httpx.Client, analyst: Analyst) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 10:30] = 255
    files = {
        "original": encoded(photo(64, 48, 1)),
        "edited": encoded(photo(64, 48, 2)),
        "mask": encoded(Image.fromarray(mask)),
    }
    answer = client.post("/exchange", files=files, data={"picture": "true"}).json()
    expected = analyst.exchange(*files.values())
    picture = base64.b64decode(answer.pop("picture"))
    assert np.array_equal(opened(picture), expected.image)
    assert answer == json.loads(json.dumps(expected.to_dict()))
    assert client.post("/exchange", files=files).json()["picture"] is None
    wrong = {**files, "mask": encoded(Image.new("L", (10, 10)))}
    refused(client.post("/exchange", files=wrong), "DatasetError", "the mask has 10 x 10")


def test_no_page_of_documentation_that_loads_scripts_from_elsewhere(client: httpx.Client, address: str) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert httpx.get(address + path, timeout=60).status_code == 404
    described = client.get("/openapi.json").json()["paths"]
    assert set(described) == {
        f"/api/v1/{name}" for name in ("score", "launder", "exchange", "heatmap", "detectors", "health")
    }
    body = described["/api/v1/score"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data"}


def test_a_mistake_of_ours_is_told_without_a_traceback(
    address: str, analyst: Analyst, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("secret of the server")

    monkeypatch.setattr(analyst, "analyse", broken)
    answer = httpx.post(f"{address}/api/v1/score", files={"file": jpeg()}, timeout=60)
    error = refused(answer, "InternalError", "unexpected RuntimeError")
    assert "secret" not in str(error)


def test_a_login_is_asked_for(analyst: Analyst) -> None:
    with running(Options(detectors=NAMES, auth="me:secret", page=False), analyst) as address:
        url = f"{address}/api/v1/score"
        refused(httpx.post(url, files={"file": jpeg()}, timeout=60), "Unauthorized", "user and password")
        for login, status in ((("me", "wrong"), 401), (("me", "secret"), 200)):
            assert httpx.post(url, files={"file": jpeg()}, auth=login, timeout=60).status_code == status


def test_another_name_for_this_machine_is_refused(client: httpx.Client) -> None:
    refused(client.get("/health", headers={"host": "evil.example"}), "Forbidden", "Host")
    refused(client.get("/health", headers={"origin": "http://evil.example"}), "Forbidden", "another site")


def test_nothing_leaves_the_machine_and_nothing_is_written(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def only_here(self: socket.socket, address: Any) -> None:
        assert address[0] in ("127.0.0.1", "::1"), address
        connect(self, address)

    def only_known(host: Any, *args: Any, **options: Any) -> Any:
        assert host in ("127.0.0.1", "localhost", None), host
        return resolve(host, *args, **options)

    def written(*args: Any, **options: Any) -> None:
        raise AssertionError("a file was begun")

    monkeypatch.setattr(socket.socket, "connect", only_here)
    monkeypatch.setattr(socket, "getaddrinfo", only_known)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", written)
    for name in ("mkstemp", "mkdtemp", "TemporaryFile", "NamedTemporaryFile"):
        monkeypatch.setattr(tempfile, name, written)
    # For whoever holds one of these already; the environment is read once a process only.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for data in (signed(jpeg()), noise()):  # the second is larger than what Starlette keeps in memory by itself
        assert client.post("/score", files={"file": data}).status_code == 200
        assert client.post("/launder", files={"file": data}, data={"detector": "dummy"}).status_code == 200
        assert client.post("/heatmap", files={"file": data}, data={"detector": "dummy"}).status_code == 200
    assert list(tmp_path.iterdir()) == []

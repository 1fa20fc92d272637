"""Fetching, verifying, converting and reading weights, against a real server on loopback."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, file_download
from safetensors.torch import save
from torch import nn

from detector_zoo import convert, registry, weights
from detector_zoo.detector import TorchDetector, Weights
from detector_zoo.errors import WeightsError
from detector_zoo.registry import WeightSpec

from hub_server import HubServer

REPO = "org/repo"
TENSORS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)}


class Tiny(TorchDetector):
    """The smallest detector with weights: what fits is two tensors of known shapes."""

    @classmethod
    def from_weights(cls, loaded: Weights) -> Tiny:
        detector = cls()
        detector.network = nn.Sequential()
        detector.network.add_module("fc", nn.Linear(3, loaded.spec.config.get("out", 2)))
        detector.network.load_state_dict(dict(loaded.tensors))
        return detector


def pth(tensors: Any = TENSORS) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def spec(data: bytes = b"", **fields: Any) -> WeightSpec:
    known = {"name": "tiny.base", "format": "pth", "sha256": sha256(data) if data else None}
    return WeightSpec(**(known | fields))


def on_hub(server: HubServer, data: bytes, **fields: Any) -> WeightSpec:
    name = "w.safetensors" if fields.get("format") == "safetensors" else "w.pth"
    commit = server.commit(REPO, {name: data})
    return spec(data, **({"source": f"hub:{REPO}/{name}", "revision": commit} | fields))


def at_url(server: HubServer, data: bytes, **fields: Any) -> WeightSpec:
    return spec(data, **({"source": "url:" + server.put("/w.pth", data)} | fields))


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = TENSORS) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def failure(call: Callable[[], Any]) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "weights_only=False" not in str(caught.value)
    return caught.value


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The server as huggingface_hub's endpoint. It reads its environment once, at import: see also `run`."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    point_at(monkeypatch, server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    return server


def point_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # Early versions of huggingface_hub bind the constant by name.
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


PROGRAM = """
import json, sys
from detector_zoo import weights
from detector_zoo.errors import WeightsError
from detector_zoo.registry import WeightSpec
try:
    print(weights.fetch(WeightSpec(**json.loads(sys.argv[1]))))
except WeightsError as error:
    print(f"{error} ({error.hint})", file=sys.stderr)
    sys.exit(1)
"""


def start(wanted: WeightSpec, home: Path, *, prepare: Callable[[], None] | None = None, **env: str) -> Any:
    """Fetch in a process of its own, which has no cache and no environment of this one's."""
    fields = {k: getattr(wanted, k) for k in ("name", "source", "revision", "sha256", "md5", "bytes", "format")}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(fields)],
        env=clean | {"DETECTOR_ZOO_HOME": str(home), "OMP_NUM_THREADS": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def run(wanted: WeightSpec, home: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    process = start(wanted, home, **more)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


# ------------------------------------------------------------------------------------------------- the Hub


def test_from_the_hub_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = on_hub(hub, save(TENSORS), format="safetensors")
    assert weights.locate(wanted) is None
    assert weights.state(wanted) == "on the Hub"
    path = weights.fetch(wanted)
    assert same(weights.read(path))
    asked = len(hub.requests)
    go_offline(monkeypatch)
    monkeypatch.setattr(convert, "sha256_of", lambda _path: pytest.fail("hashed again"))
    assert weights.fetch(wanted) == weights.locate(wanted) == path
    assert weights.state(wanted) == f"cached {path.stat().st_size / 1000:.1f} kB"
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"model": TENSORS, "optimizer": {"lr": 0.1}, "total_steps": 3},
        {"state_dict": {f"module.{key}": value for key, value in TENSORS.items()}, "epoch": 1},
        {"net": TENSORS},
        {f"module.{key}": value for key, value in TENSORS.items()},
    ],
)
def test_a_pth_is_converted_once(hub: HubServer, content: Any, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = on_hub(hub, pth(content))
    path = weights.fetch(wanted)
    assert path == own_home / "weights" / "tiny.base.safetensors"
    assert same(weights.read(path))
    monkeypatch.setattr(convert, "read_tensors", lambda _path: pytest.fail("converted again"))
    assert weights.fetch(wanted) == path


def test_tied_and_strided_tensors_are_converted(hub: HubServer) -> None:
    tied = torch.arange(6.0)
    content = {"a": tied, "b": tied, "c": tied.reshape(2, 3).T, "d": tied[2:4], "steps": torch.tensor(3)}
    assert same(weights.read(weights.fetch(on_hub(hub, pth(content)))), content)


def test_a_pinned_revision(hub: HubServer) -> None:
    old, new = save({"x": torch.zeros(1)}), save({"x": torch.ones(1)})
    first = on_hub(hub, old, format="safetensors")
    second = on_hub(hub, new, format="safetensors")
    assert first.revision != second.revision
    assert weights.read(weights.fetch(first))["x"].item() == 0
    assert weights.read(weights.fetch(second))["x"].item() == 1
    assert weights.locate(first) is None, "the record is of the other revision"


def test_a_commit_without_a_hash_is_checked_against_the_hubs(hub: HubServer) -> None:
    data = save(TENSORS)
    wanted = on_hub(hub, data, format="safetensors", sha256=None)
    assert same(weights.read(weights.fetch(wanted)))
    assert weights.load_weights(wanted).spec.sha256 == sha256(data)
    hub.corrupt = True
    error = failure(lambda: weights.fetch(on_hub(hub, save({"y": torch.ones(3)}), format="safetensors", sha256=None)))
    assert "expected" in str(error)


def test_a_branch_with_an_md5(hub: HubServer) -> None:
    data = pth()
    wanted = on_hub(hub, data, sha256=None, md5=hashlib.md5(data).hexdigest(), revision="main")
    assert same(weights.read(weights.fetch(wanted)))
    assert weights.load_weights(wanted).spec.sha256 == sha256(data)
    on_hub(hub, pth({"x": torch.ones(1)}))
    assert weights.locate(wanted) is not None, "a branch that moves does not matter to what is here"
    weights.fetch(wanted).unlink()
    assert same(weights.read(weights.fetch(wanted))), "converted again from the Hub's cache"


def test_a_branch_that_moved_away_and_back(hub: HubServer, own_home: Path) -> None:
    data = save(TENSORS)
    on_hub(hub, save({"x": torch.ones(1)}), format="safetensors")
    other = spec(source=f"hub:{REPO}/w.safetensors", revision="main", format="safetensors", sha256=None, name="tiny.b")
    with pytest.raises(WeightsError):
        weights.fetch(other)
    from huggingface_hub import hf_hub_download

    hf_hub_download(REPO, "w.safetensors")  # what main was then is cached, and is not what is wanted
    wanted = on_hub(hub, data, format="safetensors", revision="main")
    assert same(weights.read(weights.fetch(wanted)))


def test_the_first_digits_of_a_hash(hub: HubServer) -> None:
    data = pth()
    wanted = on_hub(hub, data, sha256=None, sha256_prefix=sha256(data)[:16], revision="main")
    assert same(weights.read(weights.fetch(wanted)))
    wrong = on_hub(hub, data, sha256=None, sha256_prefix="0" * 16, revision="main", name="tiny.wrong")
    assert "expected 0000000000000000" in str(failure(lambda: weights.fetch(wrong)))


def test_nothing_to_verify_by(server: HubServer, hub: HubServer) -> None:
    for wanted in (on_hub(hub, pth(), sha256=None, revision="main"), at_url(server, pth(), sha256=None)):
        error = failure(lambda wanted=wanted: weights.fetch(wanted))
        assert "neither a commit nor a hash" in str(error)
        assert "zoo weights import tiny.base FILE" in (error.hint or "")
        assert "not pinned" in weights.state(wanted)
        assert not weights.fetchable(wanted)
    assert server.requests == []


def test_a_broken_connection_goes_on_where_it_stopped(hub: HubServer) -> None:
    # huggingface_hub keeps what it has in steps of 10 MiB.
    data = save({"x": torch.arange(3_000_000.0)})
    wanted = on_hub(hub, data, format="safetensors")
    hub.break_after = 11 << 20
    assert convert.sha256_of(weights.fetch(wanted)) == sha256(data)
    first, second = hub.bodies()
    assert (first.sent, first.range) == (11 << 20, None)
    assert (second.status, second.range) == (206, f"bytes={10 << 20}-")
    assert second.sent == len(data) - (10 << 20)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "hub:org/none/w.pth"}, "the Hub has no repository org/none, or it is private (401)"),
        ({"source": f"hub:{REPO}/none.pth"}, f"{REPO} on the Hub has no file none.pth at revision"),
        ({"revision": "0" * 40}, f"{REPO} on the Hub has no revision 000000"),
    ],
)
def test_not_on_the_hub(hub: HubServer, fields: dict[str, Any], message: str) -> None:
    error = failure(lambda: weights.fetch(on_hub(hub, pth(), **fields)))
    assert str(error).startswith("tiny.base: ")
    assert message in str(error)
    assert error.hint


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_gated_repository(hub: HubServer, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = on_hub(hub, pth())
    hub.gate(REPO, "hf_right")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = failure(lambda: weights.fetch(wanted))
    assert f"{REPO} is gated" in str(error)
    assert "hf auth login" in (error.hint or "")
    assert "HF_TOKEN" in (error.hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert same(weights.read(weights.fetch(wanted)))


def test_the_hub_is_down(hub: HubServer) -> None:
    wanted = on_hub(hub, pth())
    hub.status = 503
    assert "answered 503" in str(failure(lambda: weights.fetch(wanted)))


def test_nobody_answers(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = on_hub(hub, pth())
    with HubServer() as gone:
        url = gone.url
    point_at(monkeypatch, url)
    began = time.monotonic()
    error = failure(lambda: weights.fetch(wanted))
    assert "cannot fetch" in str(error)
    assert "zoo weights import" in (error.hint or "")
    assert time.monotonic() - began < 20, "no half minute of retries before the error"


def test_another_file_is_not_even_downloaded(hub: HubServer) -> None:
    data = pth()
    for fields in ({"sha256": "0" * 64}, {"bytes": 12}):
        error = failure(lambda fields=fields: weights.fetch(on_hub(hub, data, **fields)))
        assert "another file, or changed" in str(error)
    assert hub.bodies() == []


def test_wrong_bytes(hub: HubServer, own_home: Path) -> None:
    wanted = on_hub(hub, pth())
    hub.corrupt = True
    error = failure(lambda: weights.fetch(wanted))
    assert f"expected {wanted.sha256}" in str(error)
    assert "delete it" in (error.hint or "")
    assert not list(own_home.rglob("*.safetensors"))


def test_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = on_hub(hub, pth())
    go_offline(monkeypatch)
    error = failure(lambda: weights.fetch(wanted))
    assert "HF_HUB_OFFLINE" in str(error)
    assert "unset HF_HUB_OFFLINE" in (error.hint or "")
    assert hub.requests == []


def test_the_environment_of_the_hub(server: HubServer, tmp_path: Path) -> None:
    wanted = on_hub(server, pth())
    server.gate(REPO, "hf_right")
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
    assert "gated" in run(wanted, tmp_path / "home", **env).stderr
    done = run(wanted, tmp_path / "home", HF_TOKEN="hf_right", **env)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "hf" / "hub").glob("models--org--repo/snapshots/*/w.pth"))
    assert server.requests[-1].authorization == "Bearer hf_right"
    asked = len(server.requests)
    # Another home of the zoo's, but the same cache of the Hub's: enough without a network.
    again = run(wanted, tmp_path / "other", HF_HUB_OFFLINE="1", **env)
    assert again.returncode == 0, again.stderr
    cold = run(wanted, tmp_path / "third", HF_HUB_OFFLINE="1", **(env | {"HF_HOME": str(tmp_path / "cold")}))
    assert cold.returncode == 1
    assert "HF_HUB_OFFLINE" in cold.stderr
    assert len(server.requests) == asked


def test_killed_half_way_then_again(server: HubServer, tmp_path: Path) -> None:
    wanted = on_hub(server, pth({"x": torch.zeros(300_000)}))
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
    server.stall_after = 500_000
    killed = start(wanted, tmp_path / "home", **env)
    wait_for(server.bodies)
    time.sleep(0.2)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    server.stall_after = None
    killed.communicate()
    done = run(wanted, tmp_path / "home", **env)
    assert done.returncode == 0, done.stderr


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


# ------------------------------------------------------------------------------------ the authors' own servers


def test_from_a_url_once(server: HubServer, own_home: Path) -> None:
    data = pth()
    wanted = at_url(server, data, bytes=len(data))
    assert weights.state(wanted) == f"at the authors' server {len(data) / 1000:.1f} kB"
    assert same(weights.read(weights.fetch(wanted)))
    weights.fetch(wanted)
    assert len(server.requests) == 1
    assert sorted(p.name for p in own_home.rglob("*") if p.is_file() and not p.name.endswith(".lock")) == [
        "tiny.base.json",
        "tiny.base.safetensors",
    ]


def test_safetensors_from_a_url(server: HubServer) -> None:
    assert same(weights.read(weights.fetch(at_url(server, save(TENSORS), format="safetensors"))))


def test_a_url_that_breaks_off(server: HubServer) -> None:
    data = pth({"x": torch.zeros(300_000)})
    server.break_after = 400_000
    weights.fetch(at_url(server, data))
    first, second = server.requests
    assert (first.sent, first.range) == (400_000, None)
    assert (second.status, second.range, second.sent) == (206, "bytes=400000-", len(data) - 400_000)


def test_a_url_that_knows_no_ranges(server: HubServer) -> None:
    data = pth({"x": torch.zeros(300_000)})
    server.break_after, server.ranges = 400_000, False
    assert same(weights.read(weights.fetch(at_url(server, data))), {"x": torch.zeros(300_000)})
    assert [request.status for request in server.requests] == [200, 200]


def test_a_url_killed_half_way_then_again(server: HubServer, tmp_path: Path) -> None:
    data = pth({"x": torch.zeros(300_000)})
    wanted = at_url(server, data, bytes=len(data))
    server.stall_after = 500_000
    killed = start(wanted, tmp_path / "home")
    part = tmp_path / "home" / "weights" / "tiny.base.part"
    wait_for(lambda: part.exists() and part.stat().st_size > 0)
    killed.kill()
    killed.wait()
    killed.communicate()
    have = part.stat().st_size
    server.stall_after = None
    done = run(wanted, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert server.requests[-1].range == f"bytes={have}-"
    assert server.requests[-1].sent == len(data) - have
    assert not part.exists()


def test_a_part_of_what_the_server_has_no_more(server: HubServer, own_home: Path) -> None:
    data = pth({"x": torch.zeros(300_000)})
    wanted = at_url(server, data)
    part = own_home / "weights" / "tiny.base.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of an older file")
    part.with_name("tiny.base.part.json").write_text(json.dumps({"url": wanted.place, "validator": '"old"'}))
    weights.fetch(wanted)
    assert (server.requests[0].range, server.requests[0].status) == ("bytes=16-", 200)
    part.write_bytes(b"without a validator")
    weights.fetch(at_url(server, pth({"x": torch.ones(1)})))
    assert server.requests[-1].range is None


def test_a_part_longer_than_the_file(server: HubServer, own_home: Path) -> None:
    wanted = at_url(server, pth())
    part = own_home / "weights" / "tiny.base.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(100_000))
    validator = f'"{wanted.sha256}"'
    part.with_name("tiny.base.part.json").write_text(json.dumps({"url": wanted.place, "validator": validator}))
    assert same(weights.read(weights.fetch(wanted)))
    assert [request.status for request in server.requests] == [416, 200]


@pytest.mark.parametrize("status", [404, 403, 500])
def test_a_url_that_fails(server: HubServer, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    server.status = status
    error = failure(lambda: weights.fetch(at_url(server, pth())))
    assert f"the server answered {status}" in str(error)
    assert error.hint
    assert len(server.requests) == (3 if status == 500 else 1)


def test_a_url_with_another_file(server: HubServer, own_home: Path) -> None:
    wanted = at_url(server, b"<html>quota exceeded</html>", bytes=1_000_000, sha256="0" * 64)
    assert "has 27 bytes, expected 1000000" in str(failure(lambda: weights.fetch(wanted)))
    wanted = at_url(server, b"<html>quota exceeded</html>", sha256="0" * 64)
    assert "expected 0000" in str(failure(lambda: weights.fetch(wanted)))
    assert not list(own_home.rglob("*.part")), "nothing of it is worth going on from"


def test_redirects(server: HubServer) -> None:
    data = pth()
    server.put("/w.pth", data)
    assert same(weights.read(weights.fetch(spec(data, source="url:" + server.redirect("/to", server.url + "/w.pth")))))
    for target in ("http://example.org/w.pth", "ftp://example.org/w.pth", "file:///etc/passwd"):
        wanted = spec(data, name="tiny.away", source="url:" + server.redirect("/away", target))
        error = failure(lambda wanted=wanted: weights.fetch(wanted))
        assert target in str(error)
        assert "is not https" in str(error) or "is not allowed" in str(error)


def test_a_url_offline_or_out_of_reach(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = at_url(server, pth())
    with HubServer() as gone:
        unreachable = spec(pth(), source=f"url:{gone.url}/w.pth")
    error = failure(lambda: weights.fetch(unreachable))
    assert "cannot reach" in str(error)
    assert "zoo weights import" in (error.hint or "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in str(failure(lambda: weights.fetch(wanted)))
    assert server.requests == []


def test_two_processes_at_once(server: HubServer, tmp_path: Path) -> None:
    wanted = at_url(server, pth({"x": torch.zeros(300_000)}))
    both = [start(wanted, tmp_path / "home") for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.strip() == str(tmp_path / "home" / "weights" / "tiny.base.safetensors")
    assert len(server.requests) == 1, "fetched and converted once"


# --------------------------------------------------------------------------------- packages, and the user's own


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site" / "zoo_with_weights"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    sys.modules.pop("zoo_with_weights", None)


def test_embedded(package: Path) -> None:
    data = save({"x": torch.zeros(1_275_000)})
    (package / "weights" / "lite.safetensors").write_bytes(data)
    wanted = spec(data, source="package:zoo_with_weights/weights/lite.safetensors", format="safetensors")
    assert weights.locate(wanted) == weights.fetch(wanted) == package / "weights" / "lite.safetensors"
    assert weights.state(wanted) == "embedded 5.1 MB"
    (package / "weights" / "lite.safetensors").write_bytes(data[:-4] + b"oops")
    assert "expected" in str(failure(lambda: weights.fetch(wanted)))
    assert "expected" in str(failure(lambda: weights.verify(wanted)))
    (package / "weights" / "lite.safetensors").unlink()
    assert weights.state(wanted) == "missing from its package"
    assert "is missing from the package zoo_with_weights" in str(failure(lambda: weights.fetch(wanted)))
    absent = spec(data, source="package:zoo_without/lite.safetensors", format="safetensors")
    assert weights.locate(absent) is None


def test_an_embedded_pth_is_converted(package: Path) -> None:
    data = pth()
    (package / "weights" / "w.pth").write_bytes(data)
    wanted = spec(data, source="package:zoo_with_weights/weights/w.pth")
    assert same(weights.read(weights.fetch(wanted)))
    assert weights.state(wanted).startswith("embedded ")


def test_what_no_command_can_fetch() -> None:
    own = spec(source="file:", how_to_get="Ask the authors")
    error = failure(lambda: weights.fetch(own))
    assert error.hint == "Ask the authors; then run: zoo weights import tiny.base FILE"
    assert weights.state(own) == "bring your own"
    none = spec(source=None, why="nobody trained them")
    assert "nobody trained them" in str(failure(lambda: weights.fetch(none)))
    assert weights.state(none) == "not published"


# ------------------------------------------------------------------------------ files that are not what they seem


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["hub", "url", "import"])
def test_a_malicious_pickle_is_not_run(
    hub: HubServer, tmp_path: Path, own_home: Path, place: str, legacy: bool
) -> None:
    import io

    marker = tmp_path / "executed"
    buffer = io.BytesIO()
    content = {"model": TENSORS, "x": Bomb(marker)}
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    data = buffer.getvalue()
    if place == "import":
        file = tmp_path / "w.pth"
        file.write_bytes(data)
        error = failure(lambda: convert.read_tensors(file))
    else:
        wanted = on_hub(hub, data) if place == "hub" else at_url(hub, data)
        error = failure(lambda: weights.fetch(wanted))
    assert "refused, it holds more than tensors: " in str(error)
    assert "system" in str(error)
    assert not marker.exists()
    assert not list(own_home.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"not weights at all", ""),
        (pth()[:-200], ""),
        (pth([1, 2]), "holds list, expected a state dict"),
        (pth({}), "expected a state dict"),
        (pth({"a": torch.ones(1), "lr": 0.1}), "entry 'lr' is float, expected a tensor"),
        (pth({3: torch.ones(1)}), "entry 3"),
        (save(TENSORS)[:-4], "not safetensors, or truncated"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(data)
    error = failure(lambda: convert.read_tensors(file))
    assert str(file) in str(error)
    assert message in str(error)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    assert "TorchScript" in str(failure(lambda: convert.read_tensors(tmp_path / "w.pt")))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"fc.weight": TENSORS["fc.weight"]}, "key 'fc.bias' is missing"),
        ({"weight": TENSORS["fc.weight"], "bias": TENSORS["fc.bias"]}, "key 'fc.weight' is missing (and 1 more)"),
        (TENSORS | {"extra": torch.ones(1)}, "key 'extra' is not part of it"),
        (TENSORS | {"fc.weight": torch.ones(2, 5)}, "key 'fc.weight' has shape [2, 5], expected [2, 3]"),
    ],
)
def test_weights_that_do_not_fit(tensors: dict[str, torch.Tensor], message: str) -> None:
    error = failure(lambda: weights.instantiate(Tiny, Weights(spec(), tensors)))
    assert str(error) == f"tiny.base: does not fit Tiny: {message}"


def test_a_detector_that_raises_something_else() -> None:
    class Odd:
        @classmethod
        def from_weights(cls, loaded: Weights) -> Odd:
            return loaded.tensors["gate"]

    assert "key 'gate' is missing" in str(failure(lambda: weights.instantiate(Odd, Weights(spec(), TENSORS))))
    odd = failure(lambda: weights.instantiate(None, Weights(spec(), TENSORS)))
    assert "AttributeError" in str(odd)


def test_a_cached_file_that_changed(server: HubServer) -> None:
    wanted = at_url(server, pth())
    path = weights.fetch(wanted)
    os.utime(path, (0, 0))
    assert weights.locate(wanted) is None
    assert weights.fetch(wanted) == path, "only touched: hashed again, and as it was"
    assert len(server.requests) == 1
    assert weights.verify(wanted) == path

    broken = bytearray(path.read_bytes())
    broken[-1] ^= 1
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(broken)
    os.utime(path, ns=times)
    assert weights.locate(wanted) == path, "the price of not hashing 282 MB in every run ..."
    assert "expected" in str(failure(lambda: weights.verify(wanted))), "... and what finds it"
    path.write_bytes(broken + b"x")
    assert same(weights.read(weights.fetch(wanted)))
    assert len(server.requests) == 2


def test_a_damaged_record_is_no_record(server: HubServer, own_home: Path) -> None:
    wanted = at_url(server, pth())
    weights.fetch(wanted)
    (own_home / "weights" / "tiny.base.json").write_text('{"path": 3}')
    assert weights.locate(wanted) is None
    assert "not on this machine" in str(failure(lambda: weights.verify(wanted)))
    assert same(weights.read(weights.fetch(wanted)))


def test_a_home_that_moves(server: HubServer, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = at_url(server, pth())
    weights.fetch(wanted)
    own_home.rename(tmp_path / "moved")
    monkeypatch.setenv("DETECTOR_ZOO_HOME", str(tmp_path / "moved"))
    assert weights.locate(wanted) == tmp_path / "moved" / "weights" / "tiny.base.safetensors"


def test_other_weights_of_the_same_name(server: HubServer) -> None:
    first = at_url(server, pth())
    weights.fetch(first)
    second = at_url(server, pth({"x": torch.ones(1)}))
    assert weights.locate(second) is None
    assert weights.read(weights.fetch(second)).keys() == {"x"}


# ---------------------------------------------------------------------------------------- disks that do not take it


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


def test_a_file_too_large_for_the_disk(server: HubServer, tmp_path: Path) -> None:
    wanted = at_url(server, pth({"x": torch.zeros(300_000)}))
    full = run(wanted, tmp_path / "home", prepare=limit_files)
    assert full.returncode == 1
    assert "the disk is full" in full.stderr
    assert "DETECTOR_ZOO_HOME" in full.stderr
    assert "Traceback" not in full.stderr
    assert run(wanted, tmp_path / "home").returncode == 0, "and works once there is room"


def test_no_room_to_convert(server: HubServer, tmp_path: Path) -> None:
    # The download fits and the converted file does not: the pickle shares what safetensors has to copy.
    shared = torch.zeros(75_000)
    wanted = on_hub(server, pth({"a": shared, "b": shared}))
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
    full = run(wanted, tmp_path / "home", prepare=limit_files, **env)
    assert full.returncode == 1
    assert "the disk is full" in full.stderr
    assert not list((tmp_path / "home").rglob("*safetensors*")), "nothing half-written stays"
    assert run(wanted, tmp_path / "home", **env).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mount") or libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=512k") != 0:
        pytest.skip("needs the right to mount")
    yield folder
    libc.umount2(str(folder).encode(), 2)


@pytest.mark.parametrize("place", ["hub", "url"])
def test_a_full_disk(server: HubServer, small_disk: Path, place: str, tmp_path: Path) -> None:
    data = pth({"x": torch.zeros(300_000)})
    wanted = on_hub(server, data) if place == "hub" else at_url(server, data)
    full = run(wanted, small_disk / "home", HF_ENDPOINT=server.url, HF_HOME=str(small_disk / "hf"))
    assert full.returncode == 1
    assert "the disk is full: No space left on device" in full.stderr
    assert ("HF_HOME" if place == "hub" else "DETECTOR_ZOO_HOME") in full.stderr
    assert "Traceback" not in full.stderr


@pytest.fixture
def read_only_home(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A file where the directory should be stops root as well, which permissions do not.
    file = own_home / "file"
    file.touch()
    monkeypatch.setenv("DETECTOR_ZOO_HOME", str(file / "home"))
    return file / "home"


def test_a_home_that_cannot_be_written(hub: HubServer, read_only_home: Path) -> None:
    for wanted in (at_url(hub, pth()), on_hub(hub, pth())):
        error = failure(lambda wanted=wanted: weights.fetch(wanted))
        assert "cannot be written" in str(error)
        assert "DETECTOR_ZOO_HOME" in (error.hint or "")
    data = save(TENSORS)
    ready = on_hub(hub, data, format="safetensors")
    assert same(weights.read(weights.fetch(ready))), "what needs no conversion needs no home"
    assert weights.load_weights(ready).spec.sha256 == sha256(data)


def test_a_read_only_file_system(server: HubServer, small_disk: Path, tmp_path: Path) -> None:
    wanted = on_hub(server, save(TENSORS), format="safetensors")
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(small_disk / "hf")}
    assert run(wanted, small_disk / "home", **env).returncode == 0
    libc = ctypes.CDLL(None, use_errno=True)
    remount_read_only = 32 | 1
    assert libc.mount(b"tmpfs", str(small_disk).encode(), b"tmpfs", remount_read_only, None) == 0
    assert run(wanted, small_disk / "home", **env).returncode == 0, "cached: nothing has to be written"
    assert run(wanted, small_disk / "other", **env).returncode == 0, "in the Hub's cache: neither"
    other = run(on_hub(server, save({"x": torch.ones(1)}), format="safetensors"), tmp_path / "home", **env)
    assert other.returncode == 1
    assert "cannot be written: Read-only file system" in other.stderr
    assert "HF_HOME" in other.stderr
    converted = run(on_hub(server, pth()), small_disk / "home", **env)
    assert converted.returncode == 1
    assert "DETECTOR_ZOO_HOME" in converted.stderr


def test_a_lock_left_behind_does_not_block(server: HubServer, own_home: Path) -> None:
    lock = own_home / "weights" / ".tiny.base.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("of a process that was killed")
    (lock.parent / ".tiny.base.safetensors.tmp").write_bytes(b"half")
    assert same(weights.read(weights.fetch(at_url(server, pth()))))
    assert not (lock.parent / ".tiny.base.safetensors.tmp").exists()


# ------------------------------------------------------------------------------------------------ heads on backbones


def test_a_head_with_its_backbone(server: HubServer, own_home: Path) -> None:
    head, trunk = save({"w": torch.ones(2)}), save(TENSORS)
    entries = {
        "tiny.head": {"sha256": sha256(head), "source": "url:" + server.put("/h", head), "backbone": "backbone.trunk"},
        "backbone.trunk": {"sha256": sha256(trunk), "source": "url:" + server.put("/t", trunk)},
        "tiny.lost": {"sha256": sha256(head), "source": "url:" + server.url + "/h", "backbone": "backbone.none"},
    }
    text = json.dumps({"schema_version": 1, "weights": {k: v | {"why": "a test"} for k, v in entries.items()}})
    (own_home / "registry.yaml").write_text(text)
    registry.registry.cache_clear()
    loaded = weights.load_weights(registry.lookup("tiny.head"))
    assert loaded.tensors.keys() == {"w"}
    assert same(dict(loaded.backbone))
    error = failure(lambda: weights.load_weights(registry.lookup("tiny.lost")))
    assert "its backbone backbone.none is in no catalogue" in str(error)

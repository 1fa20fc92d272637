"""Limits and guard, as ASGI applications without a server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from detector_zoo.app import limits
from detector_zoo.app.guard import Guard
from detector_zoo.app.limits import Admission, App, BodyLimit
from detector_zoo.app.options import Options
from detector_zoo.app.problems import STATUS, Problem, Receive, Scope, Send, problem_of
from detector_zoo.errors import ImageError, UnknownDetectorError, ZooError


class Client:
    """One request to an application; counts what is read of its body."""

    def __init__(self, chunks: Iterable[bytes] = (), path: str = "/x", **headers: str) -> None:
        self.chunks = iter(chunks)
        self.read = 0
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        chunk = next(self.chunks, None)
        self.read += len(chunk or b"")
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def ask(self, app: App) -> Client:
        anyio.run(app, self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        (start,) = [message for message in self.sent if message["type"] == "http.response.start"]
        return int(start["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(b"".join(message.get("body", b"") for message in self.sent))["error"]
        assert set(error) == {"type", "message", "hint"}
        assert STATUS[error["type"]] == self.status
        return error


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await answer(send, str(size).encode())


async def answer(send: Send, body: bytes = b"ok") -> None:
    headers = [(b"access-control-allow-origin", b"*"), (b"x-own", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def swallows(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that makes something of its own of whatever happens while it reads."""
    try:
        await reads_all(scope, receive, send)
    except Exception:  # noqa: BLE001
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"cannot be parsed"})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12), st.booleans())
def test_a_body_is_taken_up_to_the_limit_and_no_further(sizes: list[int], told: bool) -> None:
    headers = {"content_length": str(sum(sizes))} if told else {}
    for app in (reads_all, swallows):
        client = Client(iter([b"x" * size for size in sizes]), **headers).ask(BodyLimit(app, 100))
        if sum(sizes) <= 100:
            assert (client.status, client.sent[-1]["body"]) == (200, str(sum(sizes)).encode())
        else:
            assert (client.status, client.error["type"]) == (413, "TooLarge")
            assert client.headers["connection"] == "close"


def test_a_large_body_is_not_read() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 65536

    declared = Client(endless(), content_length="500000000").ask(BodyLimit(reads_all, 1_000_000))
    assert declared.status == 413
    assert declared.read < 1_200_000  # what is thrown away so that the answer arrives
    counted = Client(endless()).ask(BodyLimit(reads_all, 1_000_000))
    assert counted.status == 413
    assert counted.read < 2_300_000
    assert Client(content_length="9" * 5000).ask(BodyLimit(reads_all, 100)).status == 413


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.05)
    monkeypatch.setattr("detector_zoo.app.problems._DISCARDED_SECONDS", 0.05)

    class Slow(Client):
        async def receive(self) -> dict[str, Any]:
            await anyio.sleep(10)
            return {}

    slow = Slow().ask(BodyLimit(reads_all, 100))
    assert (slow.status, slow.error["type"]) == (408, "Timeout")


def test_an_applications_own_failure_is_not_covered_up() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Client().ask(BodyLimit(broken, 100))


def test_a_client_that_leaves_is_no_failure() -> None:
    async def left(scope: Scope, receive: Receive, send: Send) -> None:
        raise ClientDisconnect

    assert Client().ask(BodyLimit(left, 100)).sent == []


def test_beyond_the_places_requests_are_told_to_come_back() -> None:
    most = running = 0

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await anyio.sleep(0.05)
        running -= 1
        await answer(send)

    admission = Admission(slow, places=3, at_a_time=1, applies=lambda scope: scope["path"] != "/free")
    clients = [Client(iter([b"body"])) for _ in range(10)]
    free = Client(path="/free")

    async def all_at_once() -> None:
        async with anyio.create_task_group() as group:
            for client in [*clients, free]:
                group.start_soon(admission, client.scope, client.receive, client.send)

    anyio.run(all_at_once)
    refused = [client for client in clients if client.status == 429]
    assert len(refused) == 7
    assert most == 4  # with the one that needs no place
    assert free.status == 200
    assert all(1 <= int(client.headers["retry-after"]) <= 60 for client in refused)
    assert refused[0].error["message"] == "1 analyses run and 2 requests wait already"
    assert Client().ask(admission).status == 200


def test_a_failed_request_gives_its_place_back() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    admission = Admission(broken, places=1, at_a_time=1, applies=lambda scope: True)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            Client().ask(admission)
    assert admission.taken == 0


def guarded(**options: Any) -> Callable[..., Client]:
    guard = Guard(reads_all, Options(**options))

    def ask(path: str = "/x", **headers: str) -> Client:
        return Client(path=path, **{"host": "127.0.0.1:7860", **headers}).ask(guard)

    return ask


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:1", "[::1]:80", "127.0.0.1", "LOCALHOST"])
def test_this_machine_by_its_names(host: str) -> None:
    assert guarded()(host=host).status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "10.0.0.1", "[::1", "localhost.evil"])
def test_another_name_for_this_machine_is_refused(host: str) -> None:
    client = guarded()(host=host)
    assert (client.status, client.error["type"]) == (403, "Forbidden")


def test_behind_a_login_any_name_will_do() -> None:
    login = "Basic " + base64.b64encode(b"me:secret").decode()
    ask = guarded(host="0.0.0.0", auth="me:secret")
    assert ask(host="zoo.example", authorization=login).status == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://localhost:7860", "http://[bad"]
)
def test_other_sites_pages_get_no_answer(origin: str) -> None:
    assert guarded()(origin=origin).status == 403


def test_the_own_page_gets_one_and_no_other_site_may_read_it() -> None:
    client = guarded()(origin="http://127.0.0.1:7860")
    assert client.status == 200
    assert not any(name.startswith("access-control") for name in client.headers)
    assert client.headers["x-own"] == "1"
    assert client.headers["x-content-type-options"] == "nosniff"
    policy = client.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy


def test_embedded_in_another_sites_frame() -> None:
    client = guarded(host="0.0.0.0", embed=True)(host="me-zoo.hf.space", origin="https://huggingface.co")
    assert client.status == 200
    assert "frame-ancestors https://huggingface.co" in client.headers["content-security-policy"]


@pytest.mark.parametrize(
    "given_",
    [
        *(None, "Basic", "Basic !!!", "Bearer abc", "Basic " + base64.b64encode(b"me").decode()),
        *("Basic " + base64.b64encode(login).decode() for login in (b"me:wrong", b"me:secret ", b"me:", b"you:secret")),
    ],
)
def test_without_the_login_nothing_is_answered(given_: str | None) -> None:
    ask = guarded(auth="me:secret")
    client = ask(**({} if given_ is None else {"authorization": given_}))
    assert (client.status, client.error["type"]) == (401, "Unauthorized")
    assert client.headers["www-authenticate"].startswith("Basic")
    assert "secret" not in str(client.sent)


def test_with_the_login() -> None:
    ask = guarded(auth="me:se:cr€t")
    assert ask(authorization="Basic " + base64.b64encode("me:se:cr€t".encode()).decode()).status == 200
    assert ask("/api/v1/health").status == 200
    assert ask("/api/v1/health/../score").status == 401


def test_a_websocket_of_another_site_is_closed() -> None:
    client = Client(host="evil.example")
    client.scope["type"] = "websocket"
    client.ask(Guard(reads_all, Options()))
    assert client.sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "zoo.example"])
def test_an_address_beyond_this_machine_needs_a_login(host: str) -> None:
    with pytest.raises(ZooError, match="need a login"):
        Options(host=host)
    assert Options(host=host, auth="me:secret").loopback is False


@pytest.mark.parametrize("auth", ["", "me", "me:", ":secret"])
def test_a_login_has_two_parts(auth: str) -> None:
    with pytest.raises(ZooError, match="USER:PASSWORD"):
        Options(auth=auth)


def test_a_login_is_not_printed() -> None:
    assert "secret" not in repr(Options(auth="me:secret"))


def test_every_error_of_the_zoo_has_a_status() -> None:
    assert problem_of(UnknownDetectorError("x", hint="y")).to_dict() == {
        "error": {"type": "UnknownDetectorError", "message": "x", "hint": "y"}
    }
    assert (problem_of(ImageError("x")).status, problem_of(ZooError("x")).kind) == (422, "InternalError")
    for name in ("PluginError", "WeightsError", "DatasetError", "LicenceError"):
        from detector_zoo import errors

        assert problem_of(getattr(errors, name)("x")).kind == name


def test_a_message_is_one_printable_line() -> None:
    problem = Problem("Busy", "a\n\x1b[31mb" + "c" * 9999)
    assert problem.message.isprintable()
    assert len(problem.message) < 1000

"""The folder of the page's uploads, without gradio."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from starlette.requests import ClientDisconnect

from detector_zoo.app import uploads
from detector_zoo.app.limits import BODY_SECONDS, App, BodyLimit
from detector_zoo.app.problems import Receive, Scope, Send
from detector_zoo.app.uploads import CLEAN_AFTER, CLEAN_EVERY, LARGEST_UPLOADS, UPLOAD, Uploads
from test_app_limits import Client, answer

LARGEST = 100_000


@pytest.fixture
def kept(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path, LARGEST)


def finished(kept: Uploads, name: str = "a.jpg", size: int = 10) -> Path:
    """An upload that has come through, as gradio stores it."""
    file = kept.folder / f"sha-of-{name}" / name
    file.parent.mkdir()
    file.write_bytes(bytes(size))
    kept.listed.add(str(file))
    return file


def partial(kept: Uploads, name: str = "tmp1") -> Path:
    file = kept.folder / name
    file.write_bytes(b"half of")
    return file


def storing(kept: Uploads, then: Callable[[], None] = lambda: None) -> App:
    """As gradio does it: a partial file while the body is read, in a folder of its own afterwards."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        file, more = partial(kept), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
        then()
        kept.folder.joinpath("sha").mkdir(exist_ok=True)
        file.rename(kept.folder / "sha" / "a.jpg")
        await answer(send)

    return app


def test_an_upload_stays(kept: Uploads) -> None:
    client = Client([b"abc"], UPLOAD).ask(kept.before(storing(kept)))
    assert client.status == 200
    assert [path.name for path in kept.folder.rglob("*")] == ["sha", "a.jpg"]
    assert (kept.under_way, kept.expected) == (0, 0)


def test_nothing_is_left_of_a_client_that_leaves(kept: Uploads) -> None:
    class Leaving(Client):
        async def receive(self) -> dict[str, object]:
            message = await super().receive()
            return message if message["more_body"] else {"type": "http.disconnect"}

    stays = finished(kept)
    client = Leaving([b"abc"], UPLOAD).ask(BodyLimit(kept.before(storing(kept)), LARGEST))
    assert client.sent == []
    assert [path for path in kept.folder.rglob("*") if path.is_file()] == [stays]


def test_nothing_is_left_of_what_is_over_the_limit(kept: Uploads) -> None:
    client = Client([bytes(LARGEST), b"x"], UPLOAD).ask(BodyLimit(kept.before(storing(kept)), LARGEST))
    assert (client.status, client.error["type"]) == (413, "TooLarge")
    assert list(kept.folder.iterdir()) == []


def test_an_upload_under_way_is_not_taken_away_from_another(kept: Uploads) -> None:
    """While one goes on, nobody can tell whose file is whose: what the other left waits until it is abandoned."""
    seen: list[bool] = []

    def meanwhile() -> None:
        partial(kept, "left")
        kept.sweep()
        seen.append(kept.folder.joinpath("tmp1").exists())

    assert Client([b"abc"], UPLOAD).ask(kept.before(storing(kept, meanwhile))).status == 200
    assert seen == [True]
    assert not kept.folder.joinpath("left").exists()


def test_what_is_old_goes(kept: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    file, left, now = finished(kept), partial(kept), time.time()
    kept.under_way = 1

    def after(seconds: float) -> None:
        monkeypatch.setattr(uploads.time, "time", lambda: now + seconds)
        kept.sweep()

    after(BODY_SECONDS)
    assert left.exists()
    after(2 * BODY_SECONDS + 5)
    assert not left.exists()
    after(CLEAN_AFTER - 2 * CLEAN_EVERY)
    assert file.exists()
    # The last sweep that comes before it is an hour old.
    after(CLEAN_AFTER - CLEAN_EVERY + 5)
    assert list(kept.folder.iterdir()) == []
    assert kept.listed == set()


def test_it_is_swept_by_itself(kept: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "CLEAN_EVERY", 0.01)
    monkeypatch.setattr(uploads, "CLEAN_AFTER", 0)
    file = finished(kept)

    async def serve() -> None:
        async with kept.cleaning(None):
            with anyio.fail_after(30):
                while file.parent.exists():
                    await anyio.sleep(0.01)

    anyio.run(serve)
    assert kept.folder.is_dir()


def test_there_is_room_for_so_many(kept: Uploads) -> None:
    app = kept.before(storing(kept))
    assert kept.most == LARGEST_UPLOADS * LARGEST
    file = finished(kept, "large.jpg", kept.most - LARGEST)
    assert Client([b"abc"], UPLOAD).ask(app).status == 200
    kept.folder.joinpath("sha", "a.jpg").unlink()
    for path in (UPLOAD, f"{UPLOAD}/"):
        # Without a declared length it may be as large as is allowed.
        for headers, status in (({}, 507), ({"content_length": "90000"}, 200), ({"content_length": "100000"}, 507)):
            file.write_bytes(bytes(kept.most - 99_999))
            client = Client([b"abc"], path, **headers).ask(app)
            assert client.status == status
            kept.folder.joinpath("sha", "a.jpg").unlink(missing_ok=True)
    assert client.error["type"] == "InsufficientStorage"
    assert "60 minutes" in client.error["hint"]
    assert client.read <= 3  # what is thrown away so that the answer arrives
    file.unlink()
    assert Client([b"abc"], UPLOAD).ask(app).status == 200


def test_uploads_under_way_have_their_room(kept: Uploads) -> None:
    """Many that begin at once would each find the folder empty."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep(0.05)
        await answer(send)

    app = kept.before(slow)
    clients = [Client(path=UPLOAD) for _ in range(LARGEST_UPLOADS + 3)]

    async def all_at_once() -> None:
        async with anyio.create_task_group() as group:
            for client in clients:
                group.start_soon(app, client.scope, client.receive, client.send)

    anyio.run(all_at_once)
    statuses = sorted(client.status for client in clients)
    assert statuses == [200] * LARGEST_UPLOADS + [507] * 3


def test_many_small_files_fill_it_too(kept: Uploads) -> None:
    small = Uploads(kept.folder, 1000)
    finished(small, size=1)
    assert small.sweep() > small.most
    assert Client([b"abc"], UPLOAD).ask(small.before(storing(small))).status == 507


def test_other_requests_need_no_room(kept: Uploads) -> None:
    kept.most = 0
    assert Client([b"abc"], "/gradio_api/queue/join").ask(kept.before(storing_nothing)).status == 200
    reading = Client([b"abc"], UPLOAD)
    reading.scope["method"] = "GET"
    assert reading.ask(kept.before(storing_nothing)).status == 200


async def storing_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send)


def test_what_cannot_be_removed_is_told(
    kept: Uploads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = partial(kept)

    def refused(self: Path) -> None:
        raise PermissionError("in use")

    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
        broken.setattr(Path, "unlink", refused)
        assert kept.sweep() > 0
    assert f"{file}: cannot be removed: in use" in caplog.text
    assert kept.sweep() == 0
    assert not file.exists()

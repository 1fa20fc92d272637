"""The folder of the page's uploads: what is old goes, what a failed upload left goes, and it is bounded.

Gradio deletes an upload only if it has come through, and a partial file neither where the client leaves nor where the
body is refused: so the folder is looked after here, whoever wrote into it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from detector_zoo.app.limits import BODY_SECONDS, App
from detector_zoo.app.problems import Problem, Receive, Scope, Send, refuse

__all__ = ["CLEAN_AFTER", "CLEAN_EVERY", "LARGEST_UPLOADS", "UPLOAD", "Uploads"]

CLEAN_EVERY, CLEAN_AFTER = 60, 3600
"""Seconds: how often the folder is looked through, and how long a file is kept at most."""
LARGEST_UPLOADS = 64
"""That the folder has room for."""
UPLOAD = "/gradio_api/upload"

_LEAST = 65536
"""Bytes that a file counts for at least: names and folders take room too, and time to look through."""

log = logging.getLogger(__name__)


class Uploads:
    """Looks after a folder into which gradio writes uploads: finished ones in subfolders, those under way at its top.

    Everything happens on the event loop, so that nothing is removed between two steps of gradio's.

    Args:
        folder: Nothing else is in it.
        largest: Bytes of an upload, at most.

    Attributes:
        most: Bytes that the folder may hold; an upload that might go beyond is refused before it is read.
        listed: Gradio's list of uploads that may be read, from which removed ones are taken.
    """

    def __init__(self, folder: Path, largest: int) -> None:
        self.folder = folder
        self.largest = largest
        self.most = LARGEST_UPLOADS * largest
        self.listed: set[str] = set()
        self.under_way = self.expected = 0

    def before(self, app: App) -> App:
        """Middleware in front of ``app`` that refuses uploads for which there is no room, and cleans up after each."""

        async def with_room(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].rstrip("/") != UPLOAD:
                await app(scope, receive, send)
                return
            size = int(dict(scope["headers"]).get(b"content-length", self.largest))
            if self.sweep() + self.expected + size > self.most:
                await refuse(send, self._full(), receive)
                return
            self.under_way += 1
            self.expected += size
            try:
                await app(scope, receive, send)
            finally:
                self.under_way -= 1
                self.expected -= size
                self.sweep()

        return with_room

    @asynccontextmanager
    async def cleaning(self, app: Any) -> AsyncIterator[None]:
        """Lifespan of an application: sweeps every `CLEAN_EVERY` seconds."""
        import anyio

        async def clean() -> None:
            while True:
                await anyio.sleep(CLEAN_EVERY)
                self.sweep()

        async with anyio.create_task_group() as group:
            group.start_soon(clean)
            yield
            group.cancel_scope.cancel()

    def sweep(self) -> int:
        """Remove what is old, and what no upload is writing any more.

        Returns:
            Bytes of what stays.
        """
        now, kept = time.time(), 0
        for place, _, names in os.walk(self.folder, topdown=False):
            folder = Path(place)
            for path in map(folder.joinpath, names):
                found = path.lstat()
                age = now - found.st_ctime
                # A body takes no longer than BODY_SECONDS, so a file that nobody wrote to for twice that is abandoned.
                partial = folder == self.folder and (not self.under_way or age > 2 * BODY_SECONDS)
                # Sooner by one round: the next would find it too old.
                if (partial or age > CLEAN_AFTER - CLEAN_EVERY) and self._removed(path):
                    continue
                kept += max(found.st_size, _LEAST)
            if folder != self.folder and not any(folder.iterdir()):
                folder.rmdir()
        return kept

    def _removed(self, path: Path) -> bool:
        try:
            path.unlink()
        except OSError as error:  # the next round tries again
            log.warning("%s: cannot be removed: %s", path, error)
            return False
        self.listed.discard(str(path))
        return True

    def _full(self) -> Problem:
        return Problem(
            "InsufficientStorage",
            f"the page keeps uploads of {self.most:,} bytes at most, and has no room for another",
            hint=f"try again later: each is deleted after {CLEAN_AFTER // 60} minutes at the latest",
        )

"""How much anybody may ask for: ASGI middleware that bounds bodies, and the requests that are in work or wait."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable

from detector_zoo.app.problems import Message, Problem, Receive, Scope, Send, refuse

__all__ = ["Admission", "BodyLimit"]

App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_SECONDS = 120.0
"""That a client has to send a body."""


class _Over(Exception):  # noqa: N818  never leaves the module
    """Raised into the application that reads a body which is refused."""


class BodyLimit:
    """Refuses bodies of more than ``limit`` bytes: by their declared length before a byte is read, else while counting.

    A client that takes longer than `BODY_SECONDS` to send one is refused too.
    """

    def __init__(self, app: App, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if len(declared) > 18 or int(declared) > self.limit:  # the server in front has seen to it that it is a number
            await refuse(send, self._too_large(declared.decode("latin-1")), receive)
            return
        await self._counted(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        import anyio
        from starlette.requests import ClientDisconnect

        seen = 0
        complete = started = False
        problem: Problem | None = None
        deadline = anyio.current_time() + BODY_SECONDS

        async def counting() -> Message:
            nonlocal seen, complete, problem
            if problem is not None:
                raise _Over
            if complete:  # what comes now is the client's leaving, which may take any time
                return await receive()
            try:
                with anyio.fail_after(deadline - anyio.current_time()):
                    message = await receive()
            except TimeoutError:
                problem = Problem("Timeout", f"the body did not arrive within {BODY_SECONDS:.0f} seconds")
                raise _Over from None
            seen += len(message.get("body", b""))
            complete = not message.get("more_body")
            if seen > self.limit:
                problem = self._too_large(f"more than {self.limit}")
                raise _Over
            return message

        async def unless_refused(message: Message) -> None:
            nonlocal started
            if problem is None or started:
                started = True
                await send(message)

        try:
            await self.app(scope, counting, unless_refused)
        # Whatever the application makes of it: what counts is that the body is refused.
        except Exception as error:
            # A client that left while it sent is no failure, and nobody is there to be told.
            if problem is None and not isinstance(error, ClientDisconnect):
                raise
        if problem is not None and not started:
            await refuse(send, problem, receive)

    def _too_large(self, size: str) -> Problem:
        return Problem("TooLarge", f"the request has {size[:20]} bytes; the limit is {self.limit:,} (--max-upload)")


class Admission:
    """Lets at most ``places`` requests in at a time; others are told when to come back, without their body being read.

    Args:
        app: Behind it.
        places: Requests in work or waiting.
        at_a_time: Of them, in work.
        applies: Whether a request needs a place.
    """

    def __init__(self, app: App, *, places: int, at_a_time: int, applies: Callable[[Scope], bool]) -> None:
        self.app = app
        self.places = places
        self.at_a_time = at_a_time
        self.applies = applies
        self.taken = 0
        self.seconds = 1.0
        """That one request took, all told, as an exponential mean."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        if self.taken >= self.places:
            await refuse(send, self._busy(), receive)
            return
        self.taken += 1
        begun = time.monotonic()
        try:
            await self.app(scope, receive, send)
        finally:
            self.taken -= 1
            self.seconds += 0.2 * (time.monotonic() - begun - self.seconds)

    def _busy(self) -> Problem:
        # What a request takes holds its waiting, so it is about the time until the queue has moved on once.
        seconds = min(max(math.ceil(self.seconds / 2), 1), 60)
        return Problem(
            "Busy",
            f"{self.at_a_time} analyses run and {self.places - self.at_a_time} requests wait already",
            hint=f"try again in {seconds} s",
            headers={"retry-after": str(seconds)},
        )

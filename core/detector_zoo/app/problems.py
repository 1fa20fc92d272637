"""What the HTTP interface answers where it does not give a result.

Always JSON of one form, with the status that fits::

    {"error": {"type": "ImageError", "message": "photo.png: not an image ...", "hint": null}}

``type`` is a class of `detector_zoo.errors`, or one of the names below; a program decides by it, never by the message.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from detector_zoo.errors import (
    DatasetError,
    ImageError,
    LicenceError,
    PluginError,
    UnknownDetectorError,
    WeightsError,
    ZooError,
)
from detector_zoo.plain import plain

__all__ = ["STATUS", "Message", "Problem", "Receive", "Scope", "Send", "problem_of", "refuse"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

STATUS: Mapping[str, int] = {
    "InvalidRequest": 400,
    "Unauthorized": 401,
    "Forbidden": 403,
    "NotFound": 404,
    "UnknownDetectorError": 404,
    "MethodNotAllowed": 405,
    "Timeout": 408,
    "TooLarge": 413,
    "UnsupportedMediaType": 415,
    "ImageError": 422,
    "DatasetError": 422,
    "NoHeatmap": 422,
    "Busy": 429,
    "PluginError": 500,
    "WeightsError": 500,
    "LicenceError": 500,
    "InternalError": 500,
    "InsufficientStorage": 507,
}
"""HTTP status by type."""

_CLASSES = (DatasetError, ImageError, LicenceError, PluginError, UnknownDetectorError, WeightsError)
_LIMIT = 600


class Problem(Exception):  # noqa: N818  an answer, not a failure
    """A refusal.

    Args:
        kind: A key of `STATUS`.
        message: One line.
        hint: What to do about it.
        headers: Further headers, lower-case names.
    """

    def __init__(
        self, kind: str, message: str, *, hint: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = plain(message, _LIMIT)
        self.hint = plain(hint, _LIMIT) if hint else None
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        """HTTP status."""
        return STATUS[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {"error": {"type": self.kind, "message": self.message, "hint": self.hint}}


def problem_of(error: ZooError) -> Problem:
    """What a client is told of an error of the zoo."""
    kind = next((cls.__name__ for cls in _CLASSES if isinstance(error, cls)), "InternalError")
    return Problem(kind, str(error), hint=error.hint)


async def refuse(send: Send, problem: Problem, receive: Receive | None = None) -> None:
    """Answer with a problem and close the connection, without reading what the client still sends.

    Args:
        send: ASGI.
        problem: The answer.
        receive: Where a body may be on its way: a little of it is read and thrown away, for a moment, because a
            connection that is closed with bytes unread is reset, and the client may lose the answer.
    """
    body = json.dumps(problem.to_dict()).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "connection": "close",
        **problem.headers,
    }
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": receive is not None})
    if receive is not None:
        await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_DISCARDED_BYTES, _DISCARDED_SECONDS = 1_000_000, 1.0


async def _discard(receive: Receive) -> None:
    import anyio

    seen = 0
    with anyio.move_on_after(_DISCARDED_SECONDS):
        while seen < _DISCARDED_BYTES:
            message = await receive()
            seen += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return

"""Who may ask, and what a browser may do with the answer: ASGI middleware in front of page and API."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from detector_zoo.app.limits import App
from detector_zoo.app.options import Options
from detector_zoo.app.problems import Message, Problem, Receive, Scope, Send, refuse

__all__ = ["Guard"]

OPEN = ("/api/v1/health",)
"""Paths that need no login: they tell that the server lives."""

_POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",  # what gradio's page is made of
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
_FRAMES = "https://huggingface.co https://*.huggingface.co https://*.hf.space"


class Guard:
    """Checks every request and adds headers to every answer.

    - On loopback the Host header must name this machine: a site whose name is made to point here (DNS rebinding) is
      refused.
    - A request that a browser sends from another site's page, by its Origin header, is refused; no answer carries
      headers that would let another site read it.
    - With a login, page and API ask for it by HTTP Basic; it is compared in constant time.
    - A policy keeps the browser from fetching anything of another machine.
    """

    def __init__(self, app: App, options: Options) -> None:
        self.app = app
        self.options = options
        self._login = _digest(options.auth.encode()) if options.auth else None
        frames = _FRAMES if options.embed else "'none'"
        policy = "; ".join(f"{name} {value}" for name, value in (_POLICY | {"frame-ancestors": frames}).items())
        self._headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"content-security-policy", policy.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [
                    (name, value)
                    for name, value in message.get("headers", ())
                    if not name.lower().startswith(b"access-control-")
                ]
                message = {**message, "headers": [*kept, *self._headers]}
            await send(message)

        problem = self._refusal(scope)
        if problem is None:
            await self.app(scope, receive, with_headers)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refuse(with_headers, problem, receive)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if not self.options.embed:  # there a proxy writes Host, and its own site asks
            if self.options.loopback and not _is_here(host):
                return Problem("Forbidden", "the Host header does not name this machine", hint="use http://127.0.0.1")
            origin = headers.get(b"origin")
            if origin is not None and not _is_of(origin.decode("latin-1"), host):
                return Problem("Forbidden", "requests from another site's page are not answered")
        if self._login is not None and scope["path"] not in OPEN and not self._logged_in(headers):
            challenge = {"www-authenticate": 'Basic realm="detector zoo", charset="UTF-8"'}
            return Problem("Unauthorized", "user and password are needed (HTTP Basic)", headers=challenge)
        return None

    def _logged_in(self, headers: Mapping[bytes, bytes]) -> bool:
        kind, _, coded = headers.get(b"authorization", b"").partition(b" ")
        try:
            given = base64.b64decode(coded, validate=True) if kind.lower() == b"basic" else b""
        except binascii.Error:  # no Base64 is no login, as a wrong one
            given = b""
        assert self._login is not None  # noqa: S101 (asked only where there is one)
        # Hashes have one length, so the time tells nothing, not even how long the right one is.
        return hmac.compare_digest(_digest(given), self._login)


def _digest(login: bytes) -> bytes:
    return hashlib.sha256(login).digest()


def _is_of(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # brackets that hold no IPv6 address
        return False


def _is_here(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:  # another name, or none at all: not this machine's
        return False

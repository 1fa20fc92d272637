"""A server on 127.0.0.1 that speaks what huggingface_hub needs of the Hub, and can be told to misbehave.

    with HubServer() as hub:
        commit = hub.commit("org/repo", {"model.safetensors": data})
        os.environ["HF_ENDPOINT"] = hub.url

It keeps every commit, so that a pinned revision can be told from a branch. Beside repositories it serves plain files
(`put`), for downloads that have nothing to do with the Hub.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """Files by commit, and which commit each branch is at."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    """Who may read it; None for everybody."""


@dataclass
class Request:
    """One request that was answered."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    status: int = 0
    sent: int = 0
    """Bytes of body that left."""


class HubServer:
    """The server; a context manager.

    Attributes:
        url: Its address, what HF_ENDPOINT has to be.
        requests: All that were made, in order.
        break_after: The next body is cut off after so many bytes, and the connection closed; then None again.
        stall_after: Bodies stop after so many bytes, with the connection open, until the server ends.
        corrupt: Bodies of the announced length, but with every byte inverted.
        ranges: Whether Range requests are honoured.
        status: If set, what every request is answered with.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[Request] = []
        self.break_after: int | None = None
        self.stall_after: int | None = None
        self.corrupt = False
        self.ranges = True
        self.status: int | None = None
        self.ending = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def commit(self, repo: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add files to a branch of a repository, which is made if need be; returns the commit."""
        target = self.repos.setdefault(repo, Repo())
        content = target.commits.get(target.branches.get(branch, ""), {}) | dict(files)
        digest = hashlib.sha1(repr((branch, len(target.commits), sorted(content.items()))).encode())
        commit = digest.hexdigest()
        target.commits[commit] = content
        target.branches[branch] = commit
        return commit

    def gate(self, repo: str, token: str) -> None:
        """Let only the bearer of ``token`` read a repository."""
        self.repos[repo].token = token

    def put(self, path: str, data: bytes) -> str:
        """Serve a plain file; returns its address."""
        self.files[path] = data
        return self.url + path

    def redirect(self, path: str, target: str) -> str:
        """Answer a path with a redirect; returns its address."""
        self.redirects[path] = target
        return self.url + path

    def bodies(self) -> list[Request]:
        """The requests that asked for content."""
        return [request for request in self.requests if request.method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    """One connection. HTTP/1.1, because clients of the Hub keep connections open."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Tests look at `HubServer.requests` instead."""

    @property
    def hub(self) -> HubServer:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        return hub

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.request_ = Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        self.hub.requests.append(self.request_)
        if self.hub.status is not None:
            self._fail(self.hub.status, "", "told to fail")
        elif path in self.hub.redirects:
            self._send(302, b"", {"Location": self.hub.redirects[path]})
        elif path in self.hub.files:
            data = self.hub.files[path]
            self._content(data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Last-Modified": formatdate(0)})
        elif found := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        else:
            self._fail(404, "", "nothing here")

    def _info(self, name: str, revision: str) -> None:
        commit = self._commit(name, revision)
        if commit is None:
            return
        siblings = [{"rfilename": path} for path in sorted(self.hub.repos[name].commits[commit])]
        info = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json", "X-Repo-Commit": commit})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        commit = self._commit(name, revision)
        if commit is None:
            return
        data = self.hub.repos[name].commits[commit].get(path)
        if data is None:
            self._fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        sha256 = hashlib.sha256(data).hexdigest()
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        self._content(data, {"ETag": f'"{sha256}"', "X-Repo-Commit": commit} | linked)

    def _commit(self, name: str, revision: str) -> str | None:
        """The commit that a revision means, or None once the error has been answered."""
        repo = self.hub.repos.get(name)
        if repo is None:
            # The Hub does not tell strangers whether a private repository exists.
            self._fail(401, "RepoNotFound", "Repository not found")
            return None
        if repo.token is not None and self.headers.get("Authorization") != f"Bearer {repo.token}":
            status = 403 if self.headers.get("Authorization") else 401
            self._fail(status, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit

    def _content(self, data: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.hub.ranges else None
        valid = self.headers.get("If-Range") in {None, headers["ETag"], headers.get("Last-Modified")}
        headers["Accept-Ranges"] = "bytes"
        if wanted is None or not valid:
            self._send(200, data, headers)
            return
        start = int(wanted[1])
        if start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206, data[start:], headers)

    def _fail(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        extra = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._send(status, b"", extra | dict(headers or {}))

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.request_.status = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.corrupt:
            body = bytes(255 - byte for byte in body)
        if self.hub.break_after is not None and body:
            body, self.hub.break_after = body[: self.hub.break_after], None
            self.close_connection = True
        stall = self.hub.stall_after is not None and len(body) > self.hub.stall_after
        body = body[: self.hub.stall_after] if stall else body
        self.request_.sent = len(body)
        try:
            self.wfile.write(body)
        except ConnectionError:  # a client that was killed, or has seen enough
            self.close_connection = True
        if stall:
            self.close_connection = True
            self.hub.ending.wait()

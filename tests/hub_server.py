"""A server on 127.0.0.1 that speaks what huggingface_hub needs of the Hub, and can be told to misbehave.

    with HubServer() as hub:
        commit = hub.commit("org/repo", {"model.safetensors": data})
        os.environ["HF_ENDPOINT"] = hub.url

It keeps every commit, so that a pinned revision can be told from a branch. Beside repositories it serves plain files
(`put`), for downloads that have nothing to do with the Hub. Repositories can be made and committed to by whoever has
`writer`; large files go the way of LFS, because Xet would need a second kind of server (HF_HUB_DISABLE_XET=1).
"""

from __future__ import annotations

import base64
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
    private: bool = False


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
        writer: The token that may write.
        bad_card: What the Hub has against a card's front matter, if anything.
        cards: Those that it was asked about.
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
        self.writer = "hf_writer"
        self.bad_card: str | None = None
        self.cards: list[str] = []
        self.large: dict[str, bytes] = {}
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

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
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
        body = self._body()
        if self.hub.status is not None:
            self._fail(self.hub.status, "", "told to fail")
        elif self.command in ("POST", "PUT"):
            self._write(path, body)
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

    def _body(self) -> bytes:
        """What came with the request; in chunks, where its length was not known beforehand."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _write(self, path: str, body: bytes) -> None:
        if found := re.fullmatch(r"/large/([0-9a-f]{64})", path):  # whoever has the address may, as with S3
            good = hashlib.sha256(body).hexdigest() == found[1]
            if good:
                self.hub.large[found[1]] = body
            self._send(200 if good else 400, b"", {})
        elif not (authorization := self.headers.get("Authorization")):
            self._fail(401, "", "Invalid username or password.")
        elif path == "/api/validate-yaml":
            self.hub.cards.append(json.loads(body)["content"])
            errors = [{"message": self.hub.bad_card}] if self.hub.bad_card else []
            self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif authorization != f"Bearer {self.hub.writer}":
            self._fail(403, "", "You don't have the rights to create a model under the namespace.")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.hub.repos
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.hub.repos.setdefault(name, Repo(private=private))
            self._json({"url": f"{self.hub.url}/{name}"}, 409 if known else 200)
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = [
                (file["path"], "lfs" if file["path"].endswith(".safetensors") else "regular")
                for file in json.loads(body)["files"]
            ]
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes]
            self._json({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for wanted in objects:
                wanted["actions"] = {"upload": {"href": f"{self.hub.url}/large/{wanted['oid']}"}}
            self._json({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            commit = self.hub.commit(found[1], self._operations(body))
            url = f"{self.hub.url}/{found[1]}/commit/{commit}"
            self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
        else:
            self._fail(404, "", "nothing here")

    def _operations(self, body: bytes) -> dict[str, bytes]:
        """The files of a commit, one a line of JSON."""
        files = {}
        for item in map(json.loads, body.splitlines()):
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        return files

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

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

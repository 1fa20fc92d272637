"""Fetching files: from the Hub through huggingface_hub, from the authors' own servers with resumable requests."""

from __future__ import annotations

import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from detector_zoo.convert import check, one_line, os_error
from detector_zoo.errors import WeightsError
from detector_zoo.hub_errors import bars, explain, offline
from detector_zoo.hub_specs import LARGEST
from detector_zoo.weight_specs import WeightSpec, loopback

__all__ = ["from_hub", "from_url", "offline"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
_TIMEOUT = 30.0
_ATTEMPTS = 3
"""Requests in a row that bring no byte before a download is given up."""

_Advance = Callable[[int, int | None], None]
"""Told the bytes at hand and, where known, of how many."""


def from_hub(spec: WeightSpec, *, progress: bool) -> Path:
    """Have a file in the Hub's cache; its content is not checked yet, except against the Hub's own sha256.

    Raises:
        WeightsError: If it cannot be had.
    """
    owner, name, filename = spec.place.split("/", 2)
    repo = f"{owner}/{name}"
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(repo, filename, revision=spec.revision)
        # What a branch pointed at some other day may be another file: then the network has to be asked.
        if isinstance(cached, str) and (spec.pinned or _fits(spec, Path(cached))):
            return _checked_by_name(spec, Path(cached))
        # The Hub knows size and sha256 beforehand: no need to download 282 MB to find out that they are others.
        # This request also fails at once without a network, where a download would first retry for half a minute.
        metadata = get_hf_file_metadata(hf_hub_url(repo, filename, revision=spec.revision))
        _check_offer(spec, f"{repo}/{filename} on the Hub", metadata.size, metadata.etag)
        with bars(progress):
            return _checked_by_name(spec, Path(hf_hub_download(repo, filename, revision=spec.revision)))
    except WeightsError:
        raise
    except Exception as error:
        by_hand = f"or {_by_hand(spec)}"
        missing = "only safetensors are read, never a pickle: ask its publisher for them" if "/" in spec.name else None
        raise explain(error, spec.name, repo, filename, spec.revision, by_hand=by_hand, missing=missing) from error


def _fits(spec: WeightSpec, path: Path) -> bool:
    try:
        check(spec, path)
    except WeightsError:
        return False
    return True


def _checked_by_name(spec: WeightSpec, path: Path) -> Path:
    """Without a hash in the spec, a commit still fixes one: the cache names large files by their sha256."""
    # One step: with Xet the blob may itself be a link, to a file whose name is another hash.
    blob = path.readlink().name if path.is_symlink() else path.name
    if not spec.hashed and _SHA256.fullmatch(blob):
        from dataclasses import replace

        check(replace(spec, sha256=blob), path)
    return path


def _check_offer(spec: WeightSpec, what: str, size: int | None, etag: str | None) -> None:
    if spec.bytes is not None and size is not None and size != spec.bytes:
        raise WeightsError(f"{spec.name}: {what} has {size} bytes, expected {spec.bytes}: another file, or changed")
    if spec.bytes is None and size is not None and size > LARGEST:
        raise WeightsError(f"{spec.name}: {what} has {size} bytes, at most {LARGEST} are fetched of an unknown file")
    if etag is None or not _SHA256.fullmatch(etag):
        return
    expected = spec.sha256 or spec.sha256_prefix
    if expected and not etag.startswith(expected):
        raise WeightsError(f"{spec.name}: {what} has sha256 {etag}, expected {expected}: another file, or changed")


def _by_hand(spec: WeightSpec) -> str:
    """What a user can do where this machine cannot; the sentence of the catalogue in the middle of another."""
    if "/" in spec.name:  # a reference, which no catalogue has: the Hub's own tools carry it over
        owner, name, _ = spec.place.split("/", 2)
        return f"on another machine: hf download {owner}/{name} --revision {spec.revision}; then copy its HF_HOME here"
    how = spec.how_to_get or "download it elsewhere"
    return f"{how[:1].lower()}{how[1:]}; then run: zoo weights import {spec.name} FILE"


class _BrokenOffError(Exception):
    """The server or the network broke off; what came is kept and the rest may be asked for."""


def from_url(spec: WeightSpec, part: Path, *, progress: bool) -> Path:
    """Download ``spec.place`` to ``part``, going on from what an earlier attempt left there.

    Raises:
        WeightsError: If it cannot be had; what has come stays in ``part`` for the next attempt.
    """
    if offline():
        raise WeightsError(
            f"{spec.name}: {spec.place} is not in the cache, and HF_HUB_OFFLINE forbids fetching it",
            hint=f"unset HF_HUB_OFFLINE, or {_by_hand(spec)}",
        )
    if spec.bytes is not None and _size(part) == spec.bytes:
        return part
    failures = 0
    with _bar(spec, progress) as advance:
        while True:
            before = _size(part)
            try:
                _request(spec, part, advance)
            except _BrokenOffError as error:
                failures = 0 if _size(part) > before else failures + 1
                if failures < _ATTEMPTS:
                    time.sleep(0.5 * 2**failures)
                    continue
                raise WeightsError(
                    f"{spec.name}: {spec.place}: broke off after {_size(part)} bytes: {one_line(error)}",
                    hint="run it again: it goes on where it stopped",
                ) from error
            except OSError as error:
                raise os_error(part, error) from error
            _validators(part).unlink(missing_ok=True)
            return part


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _validators(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _resumable(spec: WeightSpec, part: Path) -> str | None:
    """The validator (ETag or Last-Modified) by which the server can tell whether ``part`` is still of its file."""
    try:
        known: Any = json.loads(_validators(part).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(known, dict) or known.get("url") != spec.place:
        return None
    validator = known.get("validator")
    return validator if isinstance(validator, str) and validator else None


def _request(spec: WeightSpec, part: Path, advance: _Advance) -> None:
    """One request for what is missing of ``part``."""
    part.parent.mkdir(parents=True, exist_ok=True)
    headers = {"User-Agent": "detector-zoo", "Accept-Encoding": "identity"}
    have = _size(part)
    validator = _resumable(spec, part) if have else None
    if validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with _open(spec, part, urllib.request.Request(spec.place, headers=headers)) as response:  # noqa: S310 (checked)
        if response.status == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != have:
                part.unlink()
                raise _BrokenOffError(f"the server answered bytes {have}- with {response.headers.get('Content-Range')}")
        else:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        _check_offer(spec, spec.place, total, None)
        if have == 0:
            etag = response.headers.get("ETag", "")
            # A weak ETag cannot vouch for bytes, only for meaning.
            strong = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
            _validators(part).write_text(json.dumps({"url": spec.place, "validator": strong}), "utf-8")
        with part.open("ab" if have else "wb") as file:
            while chunk := _read(response):
                file.write(chunk)
                have += len(chunk)
                advance(have, total)
    if total is not None and have < total:
        raise _BrokenOffError(f"{total} bytes were announced")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        # What has come, not a full chunk: little is lost if the process is killed.
        return response.read1(_CHUNK)
    # Here, and only here, an OSError is the network's and not the disk's.
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(one_line(error)) from error


def _open(spec: WeightSpec, part: Path, request: urllib.request.Request) -> http.client.HTTPResponse:
    opener = urllib.request.build_opener(_Redirects)
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file has become shorter than what is here
            part.unlink(missing_ok=True)
            raise _BrokenOffError("the server has less than was fetched before") from error
        if error.code == 429 or error.code >= 500:
            raise _BrokenOffError(f"the server answered {error.code}") from error
        raise WeightsError(
            f"{spec.name}: {spec.place}: the server answered {error.code} {error.reason}",
            hint=_by_hand(spec),
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, WeightsError):
            raise reason from error
        if isinstance(reason, ConnectionResetError | http.client.HTTPException):
            raise _BrokenOffError(one_line(reason)) from error
        raise WeightsError(
            f"{spec.name}: cannot reach {spec.place}: {one_line(reason)}",
            hint=f"check the network, or {_by_hand(spec)}",
        ) from error
    return response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to a protocol that anyone on the way can read and change."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https:") and not (loopback(req.full_url) and loopback(newurl)):
            fp.close()
            raise WeightsError(f"{req.full_url}: redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _bar(spec: WeightSpec, progress: bool) -> Iterator[_Advance]:
    if not (progress and sys.stderr.isatty()):
        yield lambda _have, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(spec.name, total=spec.bytes)
        yield lambda have, total: bar.update(task, completed=have, total=total or spec.bytes)

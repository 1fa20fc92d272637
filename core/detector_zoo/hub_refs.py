"""References to the Hub as names of detectors: ``hub:org/name[@revision]`` and ``hf:org/model[@revision][#labels]``.

``hub:`` is a folder of weights of an installed method, as `zoo push` uploads it; ``hf:`` an image classifier of
transformers. Both become a `WeightSpec` pinned to a commit, and go the way of any other weights from there. Nothing
of a repository is read but the few files that are named here, within limits of size, and nothing in it is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from detector_zoo import convert, hub_specs, lockfile
from detector_zoo.errors import UnknownDetectorError, WeightsError
from detector_zoo.hub_errors import explain, offline, status_of
from detector_zoo.info import DetectorInfo
from detector_zoo.plain import plain
from detector_zoo.weight_specs import WeightSpec

__all__ = ["Found", "Ref", "find", "forget", "parse", "resolve"]

_NAME = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)
_REVISION = re.compile(r"[\w.-]+(?:/[\w.-]+){0,4}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference; its text is the key of a lock file."""

    scheme: str
    repo: str
    revision: str | None = None
    labels: str = ""
    method: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}:{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class Found:
    """What a reference stands for: who builds the detector, its weights, the commit, and the files that tell."""

    info: DetectorInfo
    spec: WeightSpec
    commit: str
    files: Mapping[str, Path]


def parse(name: str) -> Ref:
    """Read a reference, also as a row of predictions names it: ``mdmf.hub:org/name@...``, ``hf.org/model@...``.

    Raises:
        UnknownDetectorError: It has another form.
    """
    found = re.fullmatch(r"(?:(?P<method>[a-z][a-z0-9_]*)\.(?=hub:))?(?P<scheme>hub|hf)[:.](?P<rest>.+)", name)
    where, _, labels = (found["rest"] if found else "").partition("#")
    repo, at, revision = where.partition("@")
    valid = _is_repo(repo) and (not at or (_REVISION.fullmatch(revision) and ".." not in revision))
    if found is None or not valid or (labels and found["scheme"] == "hub"):
        raise UnknownDetectorError(
            f"{plain(name, 120)!r} is not a reference to the Hub",
            hint="hub:org/name, hub:org/name@revision, or hf:org/model@revision#generated=LABEL;real=LABEL",
        )
    return Ref(found["scheme"], repo, revision or None, labels, found["method"] or "")


def _is_repo(repo: str) -> bool:
    return _REPO.fullmatch(repo) is not None and "--" not in repo and ".." not in repo and not repo.endswith(".git")


def resolve(name: str) -> tuple[DetectorInfo, WeightSpec]:
    """What `detector_zoo.registry.resolve` gives for a name, for a reference; by the lock file, if there is one.

    Raises:
        UnknownDetectorError: The reference or its labels have another form, or no installed plugin provides the method.
        WeightsError: The repository cannot be read, is not what it should be, or differs from the lock file.
    """
    ref = parse(name)
    found = find(ref, _locked(ref))
    if ref.method and found.info.name != ref.method:
        raise UnknownDetectorError(f"{ref} holds weights of {found.info.name}, not of {ref.method}")
    return found.info, found.spec


def find(ref: Ref, locked: lockfile.Entry | None = None) -> Found:
    """Look at a repository, at the locked commit or at what the reference's revision is today.

    Raises:
        UnknownDetectorError: See `resolve`.
        WeightsError: See `resolve`.
    """
    commit = locked.commit if locked else _commit(replace(ref, labels="", method=""))
    files: dict[str, Path] = {}
    for filename, limit in hub_specs.FILES[ref.scheme].items():
        files[filename] = _small(ref, filename, commit, limit)
        if locked:
            _compare(ref, filename, files[filename], locked)
    if ref.scheme == "hf":
        info, spec = hub_specs.of_model(ref.repo, commit, files, ref.labels)
    else:
        info, spec = hub_specs.of_pushed(ref.repo, commit, files, lambda: _card(ref, commit))
    return Found(info, _as_locked(ref, spec, locked), commit, files)


def _card(ref: Ref, commit: str) -> str:
    """The model card, "" where there is none to be had: it is read for a hint only."""
    try:
        return _small(ref, "README.md", commit, hub_specs.CARD_LIMIT).read_text("utf-8", "replace")
    except WeightsError:
        return ""


def forget() -> None:
    """Ask again what branches point at; a process asks once, so that all of a run uses one commit."""
    _commit.cache_clear()


def _locked(ref: Ref) -> lockfile.Entry | None:
    path = lockfile.active()
    if path is None:
        return None
    entries = lockfile.read(path)
    repo = f"{ref.scheme}:{ref.repo}"
    same = [e for key, e in entries.items() if key.partition("@")[0] == repo and e.commit == ref.revision]
    entry = entries.get(str(ref)) or next(iter(same), None)
    if entry is None:
        raise WeightsError(f"{ref} is not in {path}", hint=f"zoo lock {ref}")
    return entry


def _compare(ref: Ref, filename: str, path: Path, locked: lockfile.Entry) -> None:
    expected, found = locked.files.get(filename), convert.sha256_of(path)
    if expected is None or expected.sha256 != found:
        raise WeightsError(
            f"{ref}: {filename} has sha256 {found}, the lock file has {expected.sha256 if expected else 'none'}",
            hint=f"if you trust the change: zoo lock {ref} --update",
        )


def _as_locked(ref: Ref, spec: WeightSpec, locked: lockfile.Entry | None) -> WeightSpec:
    """The spec with the lock's hash of the weights, which the fetching then holds the file to."""
    if locked is None:
        return spec
    filename = spec.place.split("/", 2)[2]
    expected = locked.files.get(filename)
    if expected is None or spec.sha256 not in (None, expected.sha256):
        raise WeightsError(
            f"{ref}: {filename} should have sha256 {spec.sha256}, the lock file has "
            f"{expected.sha256 if expected else 'none'}",
            hint=f"if you trust the change: zoo lock {ref} --update",
        )
    return replace(spec, sha256=expected.sha256, bytes=expected.bytes)


@cache
def _commit(ref: Ref) -> str:
    """The commit that a revision is at: as the server says, or offline as the Hub's cache remembers."""
    if ref.revision and _COMMIT.fullmatch(ref.revision):
        return ref.revision
    filename, limit = next(iter(hub_specs.FILES[ref.scheme].items()))
    # By the branch's name: that is how the Hub's cache learns what to answer when the network is gone.
    return _small(ref, filename, ref.revision or "main", limit).parent.name


def _small(ref: Ref, filename: str, revision: str, limit: int) -> Path:
    """A file of a repository in the Hub's cache, its size checked before it is fetched.

    Raises:
        WeightsError: It cannot be had, or is larger than ``limit`` bytes.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    where = f"{ref}: {filename}"
    cached = None
    try:
        cached = try_to_load_from_cache(ref.repo, filename, revision=revision)
        if isinstance(cached, str) and (_COMMIT.fullmatch(revision) or offline()):
            return _within(Path(cached), limit, where)
        size = get_hf_file_metadata(hf_hub_url(ref.repo, filename, revision=revision)).size
        if size is None or size > limit:
            raise WeightsError(f"{where} has {size or 'an unknown number of'} bytes, at most {limit} are read")
        return _within(Path(hf_hub_download(ref.repo, filename, revision=revision)), limit, where)
    except WeightsError:
        raise
    except Exception as error:
        # Nobody answered: what was fetched before still holds, as everywhere with the Hub. A refusal is an answer.
        if status_of(error) is None and isinstance(cached, str):
            return _within(Path(cached), limit, where)
        raise explain(error, str(ref), ref.repo, filename, revision, missing=hub_specs.MISSING[ref.scheme]) from error


def _within(path: Path, limit: int, where: str) -> Path:
    size = path.stat().st_size
    if size > limit:
        raise WeightsError(f"{where} has {size} bytes, at most {limit} are read")
    return path

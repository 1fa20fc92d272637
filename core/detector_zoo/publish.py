"""Publishing a folder of weights on the Hub: what is uploaded, the card that the Hub renders, and the one commit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from detector_zoo import convert, strict_yaml
from detector_zoo.catalogue_files import SPEC_FILE, WEIGHTS_FILE
from detector_zoo.errors import WeightsError, ZooError
from detector_zoo.hub_errors import LOGIN, bars, network_hint, offline, status_of
from detector_zoo.hub_specs import CARD_LIMIT, front_matter
from detector_zoo.plugins import catalogue
from detector_zoo.training.artifact import CARD_FILE, RECORD_FILE, read_spec
from detector_zoo.weight_specs import Result, WeightSpec

__all__ = ["Plan", "plan", "push"]

CARD = "README.md"
_PUBLISHED = (
    WEIGHTS_FILE,
    SPEC_FILE,
    RECORD_FILE,
    "metrics.jsonl",
    "curve.png",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
)
_TEXT = {".json", ".jsonl", ".md", ".txt", ".yaml", ""}
_LARGEST_TEXT = 20_000_000
_LEFT_OUT = (
    (r".*\.(pt|pth|bin|ckpt|pkl|pickle|joblib|npy|npz|h5)", "may be a pickle, which can run any program"),
    (r"(\.env.*|.*\.(pem|key|p12|token)|id_[a-z0-9]+|\.netrc|token|.*secret.*|.*credential.*)", "may hold a secret"),
    (r"(\.git|\.cache|__pycache__|\.ipynb_checkpoints|.*\.(tmp|part|lock|pyc)|\.DS_Store)", "a cache, or unfinished"),
    (r"(checkpoint.*|.*\.checkpoint.*|last.*|step.*)", "a checkpoint, which only training needs"),
)
_SECRET = re.compile(
    r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_HOME = re.compile(r"/(?:home|Users|root)/[\w.-]+|[A-Z]:\\+Users\\+[\w.-]+")
_LICENCES = frozenset({
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-4.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0",
    "isc", "lgpl-3.0", "mit", "mpl-2.0", "openrail", "unlicense",
})  # fmt: skip
"""Licences by the names that the Hub has for them; any other is published as "other", with its own name."""
_METRICS = {"AUROC": "roc_auc", "AP": "average_precision"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be published.

    Attributes:
        repo: On the Hub.
        spec: Of the weights.
        files: By name in the repository: a file, or its content where it is written for the occasion.
        left_out: Names in the folder that stay there, and why.
        warnings: What the publisher should know before.
    """

    repo: str
    spec: WeightSpec
    files: dict[str, Path | bytes]
    left_out: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    @property
    def card(self) -> str:
        """The model card as the Hub will render it."""
        content = self.files[CARD]
        assert isinstance(content, bytes)  # noqa: S101 (it is written here)
        return content.decode()

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: len(f) if isinstance(f, bytes) else f.stat().st_size for name, f in self.files.items()}


def plan(folder: Path, repo: str, *, licence: str | None = None, datasets: Sequence[str] = ()) -> Plan:
    """Decide what of a run's folder is published; asks no network and writes nothing.

    Args:
        folder: As `zoo train` leaves it (`detector_zoo.training.artifact.read_spec`).
        repo: ``org/name``.
        licence: SPDX, where the folder's own is missing or to be another.
        datasets: Of the Hub, that the weights were trained on.

    Raises:
        WeightsError: It is no folder of weights, a file leads out of it, or a text holds what looks like a secret.
    """
    spec = read_spec(folder)
    convert.read_safetensors(folder / WEIGHTS_FILE)
    files: dict[str, Path | bytes] = {}
    left_out = []
    for path in sorted(folder.iterdir()):
        if path.name not in (*_PUBLISHED, CARD_FILE):
            left_out.append((path.name, _why(path.name)))
        elif path.resolve().parent != folder.resolve() or not path.is_file():
            raise WeightsError(f"{path}: leads out of its folder, or is no file: not published")
        elif path.name != CARD_FILE:
            files[path.name] = path
    document = strict_yaml.read(folder / SPEC_FILE)
    entry = document["weights"][spec.name]
    entry["why"] = "published by its trainer, not verified by the detector zoo's own project"
    if licence:
        entry["licence"] = licence
    files[SPEC_FILE] = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110).encode()
    stated = licence or spec.licence
    files[CARD] = _card(folder, spec, repo, stated, datasets).encode()
    warnings = list(_checked_texts(files))
    if not stated:
        warnings.append("no licence is stated, so nobody may use these weights: --licence apache-2.0, say")
    if CARD_FILE not in {path.name for path in folder.iterdir()}:
        warnings.append(f"the folder has no {CARD_FILE}: the card says little")
    return Plan(repo=repo, spec=spec, files=files, left_out=tuple(left_out), warnings=tuple(warnings))


def push(made: Plan, *, private: bool = False) -> str:
    """Create the repository if need be, and upload everything in one commit.

    Returns:
        The commit.

    Raises:
        ZooError: There is no token, the Hub refuses it or the name, or cannot be reached; nothing is half published.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if offline():
        raise ZooError("HF_HUB_OFFLINE forbids the network", hint="unset it to publish")
    if not get_token():
        raise ZooError("no token for the Hub is set", hint=f"{LOGIN}; it must be allowed to write")
    api = HfApi()
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in made.files.items()]
    try:
        api.create_repo(made.repo, private=private or None, exist_ok=True)
        with bars(True):
            found = api.create_commit(made.repo, operations, commit_message=f"{made.spec.name} by the detector zoo")
    # Which exceptions come is up to the versions of huggingface_hub and its HTTP client.
    except Exception as error:
        raise _refused(made.repo, error) from error
    return str(found.oid)


def _refused(repo: str, error: Exception) -> ZooError:
    from huggingface_hub import constants

    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # of an upload in a thread
    status = status_of(error)
    said = convert.one_line(getattr(error, "server_message", None) or error)
    if status == 401:
        return ZooError(
            f"the Hub does not accept the token (401): {said}", hint=f"{LOGIN}; it must be allowed to write"
        )
    if status == 403:
        return ZooError(
            f"the token may not write to {repo} (403): {said}",
            hint=f"is {repo.partition('/')[0]} yours, and the token's role write?",
        )
    if status is not None:
        return ZooError(f"{constants.ENDPOINT} answered {status} for {repo}: {said}")
    if isinstance(error, ValueError):
        return ZooError(f"the Hub refuses the card of {repo}: {said}", hint=f"complete or correct {CARD_FILE}")
    return ZooError(f"cannot reach {constants.ENDPOINT}: {said}", hint=network_hint(error))


def _why(name: str) -> str:
    matching = (why for pattern, why in _LEFT_OUT if re.fullmatch(pattern, name, re.IGNORECASE))
    return next(matching, "not part of a published detector")


def _checked_texts(files: dict[str, Path | bytes]) -> Iterator[str]:
    """Refuse secrets; warn of what tells about the publisher's machine."""
    for name, file in files.items():
        if Path(name).suffix not in _TEXT:
            continue
        if isinstance(file, Path) and file.stat().st_size > _LARGEST_TEXT:
            raise WeightsError(f"{file}: {file.stat().st_size} bytes of text: not published")
        text = (file if isinstance(file, bytes) else file.read_bytes()).decode("utf-8", "replace")
        if found := _SECRET.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise WeightsError(f"{name}, line {line}: looks like a secret ({found[0][:6]}...): nothing is published")
        if found := _HOME.search(text):
            yield f"{name} names a folder of this machine, {found[0]}"


def _card(folder: Path, spec: WeightSpec, repo: str, licence: str, datasets: Sequence[str]) -> str:
    """The run's card with what the Hub reads at its head; keys that the publisher wrote there stay."""
    path = folder / CARD_FILE
    own = f"# {spec.name}\n\n{spec.summary}\n"
    if path.is_file():
        if path.stat().st_size > CARD_LIMIT:
            raise WeightsError(f"{path}: larger than {CARD_LIMIT} bytes, which the Hub does not render: not published")
        try:
            own = path.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise WeightsError(f"{path}: not UTF-8: {convert.one_line(error)}: not published") from error
    body = re.sub(r"\A---\s*\n.*?\n---\s*\n", "", own, flags=re.DOTALL) if front_matter(own) else own
    head = yaml.safe_dump(
        _head(spec, repo, licence, datasets) | front_matter(own), sort_keys=False, allow_unicode=True, width=110
    )
    use = f"""## Use

```
pip install {_package(spec)}
zoo score -d hub:{repo} photo.jpg
```

`zoo lock hub:{repo}` pins this very commit for later.
"""
    return f"---\n{head}---\n{body.rstrip()}\n\n{use}"


def _head(spec: WeightSpec, repo: str, licence: str, datasets: Sequence[str]) -> dict[str, Any]:
    name = licence.lower().removesuffix("-only").removesuffix("-or-later")
    results = [result for result in spec.reproduced if math.isfinite(result.value)]
    head: dict[str, Any] = {
        "library_name": "detector-zoo",
        "pipeline_tag": "image-classification",
        "license": "unknown" if not name else name if name in _LICENCES else "other",
    }
    if head["license"] == "other":
        head["license_name"] = re.sub(r"[^a-z0-9.-]+", "-", name).strip("-")
    head["tags"] = ["detector-zoo", "ai-generated-image-detection", spec.method]
    if datasets:
        head["datasets"] = list(datasets)
    if results:
        head["metrics"] = list(dict.fromkeys(_metric(result) for result in results))
        head["model-index"] = [{"name": repo.partition("/")[2], "results": list(_results(results))}]
    head["detector_zoo"] = {"method": spec.method, "weights": spec.name, "package": _package(spec)}
    return head


def _results(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    for data, group in groupby(sorted(results, key=lambda result: result.data), key=lambda result: result.data):
        slug = re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-")
        yield {
            "task": {"type": "image-classification", "name": "Detection of generated images"},
            "dataset": {"name": data, "type": slug or "unknown"},
            "metrics": [
                {"type": _metric(result), "value": result.value, "name": _described(result)} for result in group
            ],
        }


def _metric(result: Result) -> str:
    return _METRICS.get(result.metric, re.sub(r"[^a-z0-9]+", "_", result.metric.lower()).strip("_"))


def _described(result: Result) -> str:
    interval = f", 95 % interval [{result.interval[0]:.3f}, {result.interval[1]:.3f}]" if result.interval else ""
    return f"{result.metric}{interval}" + (f", {result.count}" if result.count else "")


def _package(spec: WeightSpec) -> str:
    """The distribution that provides the method here."""
    owner = catalogue().owners.get(("detectors", spec.method))
    return owner.distribution if owner else "detector-zoo"

"""`zoo doctor`: what this installation can do, what it cannot, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import click

from detector_zoo import __version__
from detector_zoo.plain import one_line, plain

DISTRIBUTION = "detector-zoo"
OLDEST_PYTHON = (3, 11)
LITTLE_SPACE = 2 * 10**9
"""Bytes below which the next download may fill a disk: CLIP ViT-L/14 has 1.7 GB."""
HUB_SECONDS = 5.0
TORCH_SECONDS = 120.0
COLOURS = {"warning": "yellow", "broken": "red"}
_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
name = torch.cuda.get_device_name() if cuda else "MPS" if torch.backends.mps.is_available() else "CPU"
float(torch.ones(2, 2).mm(torch.ones(2, 2)).sum())
print(json.dumps([torch.__version__, name, torch.get_num_threads()]))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: Of the thing.
        state: ``broken`` is what keeps images from being scored; a ``warning`` costs something else; a ``note``
            is neither.
        found: One line.
        hint: What to do about it.
    """

    name: str
    state: Literal["ok", "note", "warning", "broken"]
    found: str
    hint: str = ""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with every field.")
def command(as_json: bool) -> None:
    """Look at the installation: versions, device, caches, the Hub, plugins, extras; a hint for whatever is amiss.

    Exit status 1 when something is broken that keeps images from being scored. Asks the Hub one question, unless
    HF_HUB_OFFLINE is set; never prints a token.
    """
    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            state = click.style(f"{check.state:<8}", fg=COLOURS.get(check.state))
            click.echo(f"{state}  {check.name:<14}  {plain(check.found)}")
            if check.hint:
                click.echo(f"{'':<8}  {'':<14}  -> {plain(check.hint)}")
    broken = [check.name for check in checks if check.state == "broken"]
    if as_json:
        click.echo(json.dumps({"healthy": not broken, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        click.echo(f"\n{'broken: ' + ', '.join(broken) if broken else 'images can be scored'}")
    if broken:
        raise SystemExit(1)


def examine() -> Iterator[Check]:
    """Look at everything, the quick things first."""
    for look in (versions, requirements, device, caches, hub, token, plugins, detectors, scoring, extras):
        try:
            yield from look()
        # A doctor that cannot look at one thing still looks at the others.
        except Exception as error:  # noqa: BLE001
            yield Check(look.__name__, "broken", f"cannot be looked at: {type(error).__name__}: {one_line(error)}")


def versions() -> Iterator[Check]:
    """The zoo and Python."""
    yield Check("zoo", "ok", f"{__version__} in {Path(__file__).resolve().parents[1]}")
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Check("python", "broken", found, "the zoo needs Python {}.{} or newer".format(*OLDEST_PYTHON))
    else:
        yield Check("python", "ok", found)


def _required(extra: str | None = None) -> Iterator[tuple[str, str, str | None]]:
    """(name, least version, version installed or None) of what the zoo needs, or what one of its extras adds."""
    for line in metadata.requires(DISTRIBUTION) or ():
        requirement, _, marker = line.partition(";")
        wanted = re.search(r"""extra\s*==\s*['"]([^'"]+)""", marker)
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if name is None or (wanted[1] if wanted else None) != extra or name[0] == DISTRIBUTION:
            continue
        least = re.search(r">=\s*([\w.]+)", requirement)
        try:
            installed: str | None = metadata.version(name[0])
        except metadata.PackageNotFoundError:
            installed = None
        yield name[0], least[1] if least else "", installed


def _older(version: str, least: str) -> bool:
    """Whether a version is older than another, by its first three numbers."""
    numbers = [[int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3]] for text in (version, least)]
    return bool(least) and numbers[0] < numbers[1]


def requirements() -> Iterator[Check]:
    """What the zoo declares to need, by the metadata of what is installed; nothing is imported."""
    wrong = []
    held = []
    for name, least, installed in _required():
        held.append(f"{name} {installed}")
        if installed is None or _older(installed, least):
            wrong.append(f"{name}>={least}" if least else name)
            yield Check(name, "broken", f"{installed or 'not installed'}, needed: {least or 'any'}", "")
    if wrong:
        yield Check(
            "requirements", "broken", f"{len(wrong)} missing or too old", f"pip install {' '.join(map(repr, wrong))}"
        )
    else:
        yield Check("requirements", "ok", ", ".join(held) or "none recorded")


def device() -> Iterator[Check]:
    """In a process of its own: a torch with the wrong driver may take its process with it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield Check("device", "warning", f"importing torch takes longer than {TORCH_SECONDS:.0f} s", "try again")
        return
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        hint = "pip install --force-reinstall torch (see https://pytorch.org for other devices)"
        yield Check("device", "broken", f"torch does not work: {said[:300]}", hint)
        return
    version, name, threads = json.loads(done.stdout.splitlines()[-1])
    yield Check("device", "ok", f"{name}, torch {version}, {threads} of {os.cpu_count()} cores")


def caches() -> Iterator[Check]:
    """Where weights are kept."""
    from huggingface_hub import constants

    from detector_zoo.registry import zoo_home

    yield _cache("zoo home", zoo_home(), "DETECTOR_ZOO_HOME")
    yield _cache("Hub cache", Path(constants.HF_HUB_CACHE), "HF_HOME")


def _cache(name: str, folder: Path, variable: str) -> Check:
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        size = sum(path.stat().st_size for path in files)
    except (OSError, StopIteration) as error:
        return Check(name, "warning", f"{folder}: cannot be read: {error}", f"set {variable} to another folder")
    found = f"{folder}: {_size(size)} in {len(files)} files, {_size(free)} free"
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        hint = f"weights cannot be kept; set {variable} to a folder that you can write to"
        return Check(name, "warning", f"{found}, not writable", hint)
    if free < LITTLE_SPACE:
        return Check(name, "warning", found, f"large weights will not fit; set {variable} to a folder on another disk")
    return Check(name, "ok", found)


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def hub() -> Iterator[Check]:
    """Whether the Hub answers; any answer will do."""
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    from detector_zoo.download import offline

    parts = urlsplit(constants.ENDPOINT)
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # without a password, should one be in it
    by_hand = "weights that are here score as before; others: zoo weights import METHOD.TAG FILE"
    if offline():
        yield Check("Hub", "note", f"{place}: not asked, HF_HUB_OFFLINE is set", by_hand)
        return
    answer = _asked(constants.ENDPOINT) if parts.scheme in {"http", "https"} else "no address of a server"
    if isinstance(answer, int) and answer < 500:
        yield Check("Hub", "ok", f"{place}: answers")
        return
    why = f"answers {answer}" if isinstance(answer, int) else answer
    hint = f"{by_hand}; HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 stops asking"
    yield Check("Hub", "warning", f"{place}: {why}", hint)


def _asked(url: str) -> int | str:
    """The status that a server answers, or why it does not; in a thread, because looking up a name has no limit."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    answer: list[int | str] = []

    def ask() -> None:
        try:
            with urlopen(Request(url, method="HEAD"), timeout=HUB_SECONDS) as response:  # noqa: S310 - http, https
                answer.append(response.status)
        except HTTPError as error:
            error.close()
            answer.append(error.code)
        except (OSError, ValueError) as error:
            answer.append(f"cannot be reached: {getattr(error, 'reason', error)}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS + 1)
    return answer[0] if answer else f"no answer in {HUB_SECONDS:.0f} s"


def token() -> Iterator[Check]:
    """Whether there is one; what it is concerns nobody."""
    from huggingface_hub import get_token

    there = "there, not shown" if get_token() else "none; needed only for gated or private repositories"
    yield Check("Hub token", "ok", there)


def plugins() -> Iterator[Check]:
    """Those that failed to load, and catalogues that cannot be read."""
    from detector_zoo.plugins import catalogue
    from detector_zoo.registry import registry

    found = catalogue()
    for plugin in found.broken():
        ours = plugin.distribution == DISTRIBUTION
        hint = f"pip install --upgrade {plugin.distribution}, or pip uninstall {plugin.distribution}"
        state: Literal["broken", "warning"] = "broken" if ours else "warning"
        yield Check("plugin", state, f"{plugin.name} ({plugin.distribution} {plugin.version}): {plugin.status}", hint)
    for problem in registry().problems:
        yield Check("catalogue", "warning", problem, "its own entries are left out, the others hold")
    if os.environ.get("DETECTOR_ZOO_PLUGINS") is not None:
        allowed = os.environ["DETECTOR_ZOO_PLUGINS"]
        yield Check("plugins", "note", f"DETECTOR_ZOO_PLUGINS={allowed!r} restricts loading", "unset it to load all")
    good = len(found.plugins) - len(found.broken())
    yield Check("plugins", "ok", f"{good} of {len(found.plugins)} load")


def detectors() -> Iterator[Check]:
    """Those that can score now."""
    from detector_zoo.errors import UnknownDetectorError
    from detector_zoo.loading import select

    try:
        ready, waiting = select(["all"])
    except UnknownDetectorError as error:
        yield Check("detectors", "broken", str(error), "zoo weights list; zoo weights pull METHOD.TAG")
        return
    more = f"; {len(waiting)} more have no weights here" if waiting else ""
    yield Check("detectors", "ok", f"ready: {', '.join(ready)}{more}", "zoo weights list" if waiting else "")


def scoring() -> Iterator[Check]:
    """One small image through decoder and pipeline, by the first detector that needs no weights."""
    from detector_zoo.errors import ZooError
    from detector_zoo.loading import load
    from detector_zoo.plugins import list_detectors

    name = next((info.name for info in list_detectors() if info.default_tag is None and info.control), None)
    if name is None:
        yield Check("scoring", "note", "not tried: no control statistic is loaded")
        return
    try:
        import numpy as np

        (score,) = load(name, device="cpu").score([np.full((8, 8, 3), 200, np.uint8)])
    except (ZooError, ImportError) as error:
        yield Check("scoring", "broken", f"{name}: {error}", "pip install --force-reinstall detector-zoo")
        return
    yield Check("scoring", "ok", f"{name} scores a grey image {score:+.2f}")


def extras() -> Iterator[Check]:
    """What a few commands need beyond the core."""
    for extra in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ():
        if extra in {"all", "dev"}:
            continue
        absent = [name for name, least, there in _required(extra) if there is None or _older(there, least)]
        if absent:
            hint = f"pip install 'detector-zoo[{extra}]'"
            yield Check(f"extra {extra}", "note", f"not installed: {', '.join(absent)}", hint)
        else:
            yield Check(f"extra {extra}", "ok", "installed")

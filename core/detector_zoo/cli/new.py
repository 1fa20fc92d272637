"""`zoo new`: a detector's package, ready to be filled and published."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from pathlib import Path

import click

from detector_zoo import __version__
from detector_zoo.errors import ZooError

PREFIX = "detector-zoo-"
SCAFFOLD = Path(__file__).resolve().parents[1] / "scaffold"
MEANT = {"False", "Grain", "Image", "None", "TorchDetector", "True", "Weights"}
"""Names that mean something else in the templates, or in Python."""
FILES = {
    "pyproject.toml": "pyproject.toml.in",
    "README.md": "README.md.in",
    "LICENSE": "LICENSE.in",
    ".gitignore": "gitignore.in",
    ".github/workflows/test.yml": "test.yml.in",
    ".github/workflows/publish.yml": "publish.yml.in",
    "make_weights.py": "make_weights.py.in",
    "src/{package}/__init__.py": "init.py.in",
    "src/{package}/detector.py": "detector.py.in",
    "src/{package}/registry.yaml": "registry.yaml.in",
    "src/{package}/CARD.md": "CARD.md.in",
    "tests/test_{name}.py": "test_detector.py.in",
}
"""What is written, and the template of each."""


class _Template(string.Template):
    delimiter = "%%"  # a dollar means something in workflows


@click.command("new")
@click.argument("name")
@click.option("--author", default="", help="For pyproject.toml and LICENSE.  [default: The authors of NAME]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    show_default="the current one",
    help="Folder to make the package's own folder in.",
)
def command(name: str, author: str, out: Path) -> None:
    """Write a package for a new detector: an example that installs, scores and passes its own tests.

    NAME is lower-case, such as my-detector: the detector is then my_detector, and its package
    detector-zoo-my-detector.
    """
    values = values_of(name, author)
    target = out / values["distribution"]
    if target.exists() or target.is_symlink():
        raise ZooError(f"{target} is there already", hint="choose another name, or --out another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(target, values)
    except OSError as error:
        raise ZooError(f"{error.filename or target}: cannot be written: {error.strerror or error}") from error
    click.echo(f"{target}: a package with an example in it. What to do next:\n")
    for line in (f"cd {target}", "pip install --editable '.[test]'", "pytest", f"zoo check {values['dashed']}"):
        click.echo(f"    {line}")
    click.echo("\nThen make it yours: README.md says which file is for what.")


def values_of(name: str, author: str = "") -> dict[str, str]:
    """What the templates leave open.

    Args:
        name: As the user typed it, with or without the prefix of the distribution.
        author: One line, or "".

    Raises:
        click.BadParameter: The name is no name for a detector, or taken, or the author is not one printable line.
    """
    from datetime import datetime

    from detector_zoo.plugins import TAKEN, catalogue

    dashed = name.removeprefix(PREFIX).replace("_", "-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", dashed):
        near = "-".join(re.findall(r"[a-z0-9]+", dashed.lower())).lstrip("-0123456789")
        hint = f"; {near!r} would do" if near else ""
        raise click.BadParameter(f"{name!r} is not lower-case letters, digits and single dashes{hint}")
    detector = dashed.replace("-", "_")
    if detector in TAKEN["detectors"]:
        raise click.BadParameter(f"{dashed!r} means something else to `zoo`; choose another name")
    if len(dashed) > 50:
        raise click.BadParameter("the name is longer than 50 characters")
    known = catalogue()
    if ("detectors", detector) in known.owners:
        raise click.BadParameter(f"{detector!r} is taken by {known.owners['detectors', detector].distribution}")
    class_name = "".join(part.capitalize() for part in dashed.split("-"))
    author = author.strip() or f"The authors of {dashed}"
    if not author.isprintable():
        raise click.BadParameter("the author's name is not one printable line")
    return {
        "name": detector,
        "dashed": dashed,
        "title": dashed.replace("-", " ").capitalize(),
        "class_name": class_name + "Detector" if class_name in MEANT else class_name,
        "distribution": PREFIX + dashed,
        "package": (PREFIX + dashed).replace("-", "_"),
        "author": author,
        "author_quoted": json.dumps(author, ensure_ascii=False),  # a string of JSON is one of TOML
        "year": str(datetime.now().year),
        "zoo_version": __version__,
        "no_hash": "0" * 64,
    }


def write(target: Path, values: Mapping[str, str]) -> None:
    """Write the package, its weights and examples included; all of it or nothing.

    Raises:
        OSError: Something cannot be written.
        ZooError: The script that makes the weights failed.
    """
    import shutil
    import subprocess
    import sys
    from tempfile import mkdtemp

    staging = Path(mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for place, template in FILES.items():
            path = staging / place.format(**values)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = (SCAFFOLD / template).read_text("utf-8")
            path.write_text(_Template(text).substitute(values), "utf-8")
        done = subprocess.run(
            [sys.executable, "make_weights.py"], cwd=staging, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ZooError(f"make_weights.py failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        staging.chmod(0o755)  # mkdtemp's is the owner's alone
        staging.rename(target)
    finally:
        if staging.exists():
            shutil.rmtree(staging)

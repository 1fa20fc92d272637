"""Properties that are read off a package without scoring anything."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from detector_zoo.detector import PROTOCOLS, TorchDetector
from detector_zoo.loading import import_target
from detector_zoo.plain import plain
from detector_zoo.registry import registry
from detector_zoo.testing.subject import Subject
from detector_zoo.testing.verdicts import Broken, DoesNotApply

__all__ = ["HEADINGS", "card", "licence", "light", "pickle_free", "protocol", "recipes", "registered", "weights"]

HEADINGS = ("Training data", "Results", "Limits and known shortcuts", "Licence")
"""Sections that a model card has to have, at level 2, each with something in it."""
HEAVY = (
    "PIL",
    "cv2",
    "jax",
    "numpy",
    "open_clip",
    "pandas",
    "scipy",
    "sklearn",
    "tensorflow",
    "timm",
    "torch",
    "torchvision",
    "transformers",
)
CARD_LIMIT = 200_000
"""Characters of a card that `zoo info` reads."""
PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
UNPICKLERS = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
IMPORT_SECONDS = 60
_METHODS = {"localize": "heatmap", "explain": "evidence", "train": "fit"}
_IMPORT = """
import sys
before = set(sys.modules)
import json
try:
    __import__({module!r})
finally:
    print(json.dumps(sorted((set(sys.modules) - before) & set({heavy!r}))))
"""


def registered(subject: Subject) -> str:
    """By one plugin, with weights that a catalogue knows, from catalogues that can be read."""
    info, row = subject.info, subject.plugin
    problems = [line for line in registry().problems if info.registry is not None and str(info.registry) in line]
    if problems:
        raise Broken(problems[0])
    spec = subject.spec  # raises where the default tag is in no catalogue
    return f"{spec.name if spec else info.name} by {row.distribution} {row.version}"


def light(subject: Subject) -> str:
    """In a process of its own: here torch is likely to be loaded already."""
    code = _IMPORT.format(module=subject.module, heavy=HEAVY)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=IMPORT_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Broken(f"importing {subject.module} takes longer than {IMPORT_SECONDS} s") from None
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Broken(f"importing {subject.module} fails: {plain(last, 300)}")
    if len(lines) > 1:
        raise Broken(f"importing {subject.module} prints, which would end up in every command's output")
    heavy = json.loads(lines[-1])
    if heavy:
        raise Broken(f"importing {subject.module} imports {', '.join(heavy)}; import them where they are used")
    return subject.module


def protocol(subject: Subject) -> str:
    """The class has the methods of its capabilities, and no capability that it does not declare."""
    info = subject.info
    target = import_target(info)
    if not callable(getattr(target, "score", None)):
        raise Broken(f"{info.load} has no method score")
    built = getattr(target, "from_weights", None)
    if subject.spec is not None and (built is None or built == TorchDetector.from_weights):
        raise Broken(f"{info.load} has weights but no from_weights of its own")
    has = {name for name in PROTOCOLS if callable(getattr(target, _METHODS[name], None))}
    if missing := sorted(set(info.capabilities) - has):
        raise Broken(f"declares {missing[0]!r} but {info.load} has no method {_METHODS[missing[0]]}")
    if undeclared := sorted(has - set(info.capabilities)):
        name = undeclared[0]
        raise Broken(f"{info.load} has a method {_METHODS[name]}; declare capabilities=frozenset({{{name!r}}})")
    return ", ".join(["score", *sorted(info.capabilities)])


def card(subject: Subject) -> str:
    """The file that `DetectorInfo.card` names is there and says what a reader has to know."""
    info = subject.info
    if info.control:
        raise DoesNotApply("a control statistic claims nothing")
    if info.card is None:
        raise Broken('no card: register card=Path(__file__).with_name("CARD.md")')
    if not info.card.is_file():
        raise Broken(f"there is no {info.card}; does the wheel include it?")
    with info.card.open(encoding="utf-8", errors="replace") as stream:
        text = stream.read(CARD_LIMIT + 1)
    if len(text) > CARD_LIMIT:
        raise Broken(f"{info.card.name} is longer than {CARD_LIMIT} characters, which nobody reads")
    sections = _sections(text)
    for heading in HEADINGS:
        if not sections.get(heading):
            raise Broken(f"{info.card.name}: {'nothing under' if heading in sections else 'no'} '## {heading}'")
    return str(info.card)


def _sections(text: str) -> dict[str, str]:
    """What stands under each heading of level 2."""
    parts = re.split(r"^## +(.+?) *$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (body.strip() for body in parts[2::2]), strict=True))


def licence(subject: Subject) -> str:
    """Of the package, in its metadata, and of the weights, in their catalogue."""
    if subject.spec is not None and subject.spec.source is not None and not subject.spec.licence:
        raise Broken(f"{subject.spec.name} states no licence in {subject.spec.origin}")
    distribution = subject.plugin.distribution
    facts = metadata.metadata(distribution)
    stated = (facts.get_all("License-Expression") or facts.get_all("License") or [""])[0]
    classified = [c for c in facts.get_all("Classifier") or () if c.startswith("License ::")]
    if not stated.strip() and not classified:
        raise Broken(f"{distribution} states no licence: put license = ... into its pyproject.toml")
    code = stated.strip().splitlines()[0] if stated.strip() else classified[0].rpartition(" :: ")[2]
    weights = f", weights {subject.spec.licence}" if subject.spec is not None and subject.spec.licence else ""
    return f"code {code}{weights}"


def weights(subject: Subject) -> str:
    """A hash or a commit says which file is meant."""
    spec = subject.spec
    if spec is None:
        raise DoesNotApply("no weights")
    if spec.source is None:
        raise DoesNotApply("none published")
    if spec.scheme == "package" and spec.format != "safetensors":
        raise Broken(f"{spec.name} ships a {spec.format}: convert it to safetensors")
    if not spec.verifiable:
        raise Broken(f"{spec.name}: neither a hash nor a commit of {spec.place} is known")
    return f"{spec.source}"


def pickle_free(subject: Subject) -> str:
    """No file of the package is a pickle, and none of its code opens one without ``weights_only=True``."""
    files = subject.files_of_package
    if pickles := [path.name for path in files if path.suffix.lower() in PICKLES]:
        raise Broken(f"the package holds {pickles[0]}: a file of that kind can run any program")
    sources = [path for path in files if path.suffix == ".py"]
    for path in sources:
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError) as error:
            raise Broken(f"{path.name} is no Python: {plain(str(error), 200)}") from error
        for line, what in _unsafe(tree):
            raise Broken(f"{path.name}, line {line}: {what}")
    return f"{len(sources)} modules read"


def _unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((node.lineno, f"imports {n}") for n in names if n.partition(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.Call):
            options = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            if ast.unparse(node.func) == "torch.load" and options.get("weights_only") is not True:
                yield node.lineno, "torch.load without weights_only=True"
            for option in ("allow_pickle", "trust_remote_code"):
                if options.get(option) not in (None, False):
                    yield node.lineno, f"{option}={options[option]}"


def recipes(subject: Subject) -> str:
    """A detector that the zoo can train brings recipes that can be read."""
    if "train" not in subject.info.capabilities:
        raise DoesNotApply("cannot be trained")
    from detector_zoo.training import recipes as recipes_of

    folder = recipes_of.folder_of(subject.info)
    found: list[Any] = [recipes_of.load(folder, name)[0] for name in recipes_of.names(folder)]
    return ", ".join(found)

"""Put the weights of a run into the project: the file into the plugin, its entry into the catalogue.

    python tools/ship.py runs/corvi.lite
    python tools/ship.py runs/ufd_clip.b16 --backbone backbone.clip_vit_b16_openai

Reads a folder that `zoo train` left, scores the examples with it, copies its weights to
plugins/detector_zoo_METHOD/weights/TAG.safetensors and writes the entry METHOD.TAG of registry.yaml, touching nothing
else in that file. Weights tagged ``lite`` become the method's default ones. Results that the entry had are kept only if
the file is the same.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from detector_zoo import convert
from detector_zoo.errors import WeightsError, ZooError
from detector_zoo.training import artifact
from detector_zoo.weight_specs import WeightSpec, load_file

ROOT = Path(__file__).parents[1]
WIDTH = 118
"""Columns of folded text in the catalogue."""
LITE_BYTES = 25_000_000
"""What all lite weights together may take in the wheel."""
_ENTRY = re.compile(r"  ([a-z0-9_.]+):\s*")


def ship(run: Path, root: Path, changes: Mapping[str, Any]) -> WeightSpec:
    """Copy a run's weights into the plugin and write their entry.

    Args:
        run: See `artifact.load_folder`.
        root: Of the repository.
        changes: Fields of the spec that the catalogue has otherwise than the run.

    Returns:
        The entry, as read from the catalogue.

    Raises:
        ZooError: The run's weights do not load or do not score, or the catalogue would no longer be one; it is left
            as it was then.
    """
    found = artifact.load_folder(run).spec
    _try(run, sorted((root / "examples").glob("*.jpg")))
    package = f"detector_zoo_{found.method}"
    place = f"weights/{found.tag}.safetensors"
    target = root / "plugins" / package / place
    catalogue = root / "registry.yaml"
    before = load_file(catalogue).get(found.name)
    same = before is not None and before.sha256 == found.sha256
    spec = replace(
        found,
        source=f"package:{package}/{place}",
        verified=True,
        why="",
        how_to_get="",
        reported=(),
        reproduced=before.reproduced if before is not None and same else (),
        **changes,
    )
    text = with_entry(catalogue.read_text("utf-8"), spec.name, entry(spec))
    with convert.atomic(catalogue) as staging:
        staging.write_text(text, "utf-8")
        written = load_file(staging)[spec.name]
        if replace(written, origin="") != replace(spec, origin=""):
            raise WeightsError(f"{spec.name}: its entry does not read as what was written")
        with convert.atomic(target) as copy:
            shutil.copyfile(run / artifact.WEIGHTS_FILE, copy)
    convert.check(written, target)
    if spec.tag == "lite":
        make_default(root / "plugins" / package / "__init__.py", spec.tag)
    return written


def with_entry(text: str, name: str, block: str) -> str:
    """A catalogue with one entry put in the place of the one of that name, or else before its method's first.

    Args:
        text: Of the catalogue. Comments and all other entries stay as they are.
        name: ``method.tag``.
        block: The entry's lines, see `entry`.
    """
    lines = text.splitlines(keepends=True)
    starts = {match[1]: index for index, line in enumerate(lines) if (match := _ENTRY.fullmatch(line))}
    method = name.partition(".")[0]
    if name in starts:
        first = starts[name]
        # What is indented less than the entry's fields, a comment above the next section included, is not its own.
        last = next((i for i in range(first + 1, len(lines)) if re.match(r" {0,2}\S", lines[i])), len(lines))
    else:
        first = min((i for other, i in starts.items() if other.startswith(f"{method}.")), default=len(lines))
        last = first
    before = "".join(lines[:first])
    after = "".join(lines[last:])
    gap = "\n" if first == len(lines) else ""
    return f"{before}{gap}{block}" + (f"\n{after}" if after else "")


def entry(spec: WeightSpec) -> str:
    """The lines of a catalogue's entry: the fields that differ from their defaults."""
    blank = WeightSpec(name=spec.name)
    lines = [f"  {spec.name}:"]
    for key, value in asdict(spec).items():
        if key in {"name", "kind", "origin", "variant"} or value == getattr(blank, key):
            continue
        lines += [f"    {line}" for line in _field(key, value)]
    return "\n".join(lines) + "\n"


def make_default(module: Path, tag: str) -> None:
    """Have a plugin's ``DetectorInfo`` name the weights that its bare name stands for.

    Raises:
        WeightsError: The module does not have exactly one ``default_tag``.
    """
    text, count = re.subn(r'default_tag="\w+"', f'default_tag="{tag}"', module.read_text("utf-8"))
    if count != 1:
        raise WeightsError(f"{module}: expected one default_tag, found {count}")
    module.write_text(text, "utf-8")


def _field(key: str, value: Any) -> Iterator[str]:
    if key == "sha256":
        yield f"{key}: {json.dumps(value)}"
    elif key == "reproduced":
        yield f"{key}:"
        for result in value:
            yield f"  - {_flow({k: v for k, v in result.items() if v not in (None, '')})}"
    elif isinstance(value, str):
        plain = yaml.safe_dump({key: value}, width=10_000, allow_unicode=True).rstrip("\n")
        if len(plain) + 4 <= WIDTH:
            yield plain
        else:
            yield f"{key}: >-"
            yield from textwrap.wrap(value, WIDTH - 6, initial_indent="  ", subsequent_indent="  ")
    else:
        yield f"{key}: {_flow(value)}"


def _flow(value: Any) -> str:
    """YAML in one line."""
    if isinstance(value, Mapping | list | tuple):
        plain = json.loads(json.dumps(value))  # tuples as lists
        return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()
    return json.dumps(value)


def _try(run: Path, examples: list[Path]) -> None:
    """Score with the run: ``verified`` says that this was done."""
    if not examples:
        raise WeightsError("no examples/*.jpg to try the weights on")
    detector = artifact.load_detector(run, device="cpu")
    scores = [detector.score([Image.open(path).convert("RGB")])[0] for path in examples]
    if not np.isfinite(scores).all() or np.ptp(scores) == 0:
        raise WeightsError(f"{run}: the scores of the examples are {scores}")
    for path, score in zip(examples, scores, strict=True):
        print(f"{score:+8.3f}  {path.name}")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a folder that zoo train left")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    parser.add_argument("--summary", help="the entry's line, in the place of the recipe's")
    parser.add_argument("--trained-on", help="the data in words, in the place of the folders' names")
    parser.add_argument("--backbone", help="of the catalogue, in the place of the one that the head was trained on")
    options = parser.parse_args(arguments)
    given = {"summary": options.summary, "trained_on": options.trained_on, "backbone": options.backbone}
    try:
        spec = ship(options.run, options.root, {key: " ".join(value.split()) for key, value in given.items() if value})
    except ZooError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    lite = sum(path.stat().st_size for path in (options.root / "plugins").glob("*/weights/lite.safetensors"))
    print(f"{spec.name}: {spec.bytes or 0:,} bytes, sha256 {spec.sha256}")
    print(f"lite weights together: {lite:,} of {LITE_BYTES:,} bytes")
    return 0 if lite <= LITE_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())

"""Slices of the training split that no photograph is on both sides of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from detector_zoo.convert import sha256_of
from detector_zoo.errors import DatasetError, WeightsError
from detector_zoo.evaluation.samples import Sample

__all__ = ["components", "cut", "data_hash", "hashed", "select"]


def select(samples: Sequence[Sample], split: str | None = "train") -> list[Sample]:
    """The samples of one split, hashed, each file once; those of sets without splits are taken too.

    Args:
        samples: Of any split.
        split: None for all.

    Raises:
        DatasetError: None is left, or only one class is.
    """
    chosen = [s for s in samples if split is None or s.split in {split, ""}]
    unique = {s.sha256: s for s in reversed([hashed(s) for s in chosen])}
    found = sorted(unique.values(), key=lambda s: s.sha256)
    if not found:
        splits = ", ".join(sorted({repr(s.split) for s in samples})) or "no image"
        raise DatasetError(f"no image of split {split!r}, the data have {splits}")
    if len({s.label for s in found}) == 1:
        raise DatasetError(f"all {len(found)} images are {found[0].label}: both classes are needed")
    return found


def hashed(sample: Sample) -> Sample:
    """The sample with its file's SHA-256.

    Raises:
        DatasetError: The file cannot be read.
    """
    return sample if sample.sha256 else replace(sample, sha256=_sha256(sample.path))


def components(samples: Sequence[Sample]) -> list[str]:
    """Which photograph each of the (hashed) samples belongs to.

    Samples belong together that share a group, a file, or the original that they were made from; also by way of
    others.

    Returns:
        For each sample a name of its component: the smallest of its members' groups, or of their SHA-256 where they
        have none. What was made from a photograph has that photograph for its group, so that its component has one
        name whatever sets are trained on beside it, and two runs keep out the same photographs.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for sample in samples:
        for key in _keys(sample):
            parents[root(key)] = root(sample.sha256)
    names: dict[str, str] = {}
    for sample in samples:
        name, place = sample.group or sample.sha256, root(sample.sha256)
        names[place] = min(names.get(place, name), name)
    return [names[root(sample.sha256)] for sample in samples]


def cut(samples: Sequence[Sample], shares: Mapping[str, float], salt: str = "") -> dict[str, list[Sample]]:
    """Cut samples into slices by a hash of their photograph; the rest is called ``fit``.

    Args:
        samples: See `select`.
        shares: Name of each slice and its share of the photographs.
        salt: Another one cuts elsewhere.

    Returns:
        The slices by name, ``fit`` first; together they hold every sample once.

    Raises:
        DatasetError: A slice lacks one of the classes.
    """
    out: dict[str, list[Sample]] = {"fit": [], **{name: [] for name in shares}}
    for sample, component in zip(samples, components(samples), strict=True):
        draw = int.from_bytes(hashlib.sha256(f"{salt}{component}".encode()).digest()[:8], "big") / 2**64
        place = "fit"
        for name, share in shares.items():
            if draw < share:
                place = name
                break
            draw -= share
        out[place].append(sample)
    for name, members in out.items():
        if (name == "fit" or shares[name] > 0) and len({s.label for s in members}) < 2:
            raise DatasetError(
                f"the {name} slice ({len(members)} of {len(samples)} images) lacks a class: too few photographs",
                hint="give more data, or larger shares in the recipe's slices",
            )
    return out


def data_hash(samples: Sequence[Sample]) -> str:
    """One SHA-256 for a set of labelled files, whatever their order and place."""
    lines = sorted(f"{s.sha256} {s.label}" for s in samples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _keys(sample: Sample) -> list[str]:
    keys = [sample.sha256]
    if sample.group:
        keys.append(sample.group)
    if sample.original is not None and sample.original.is_file():
        keys.append(_sha256(sample.original))
    return keys


_known: dict[tuple[Path, int, int], str] = {}
"""Hashes of files, by path, size and time of change: a photograph may be the original of many."""


def _sha256(path: Path) -> str:
    try:
        now = path.stat()
        key = (path, now.st_size, now.st_mtime_ns)
        if key not in _known:
            _known[key] = sha256_of(path)
        return _known[key]
    except (OSError, WeightsError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error

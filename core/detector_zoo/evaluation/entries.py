"""What adapters of data sets yield, and how a name becomes a label: by whole folder names and whole words only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from detector_zoo.evaluation.samples import Label

__all__ = ["LABEL_WORDS", "Adapter", "Entry", "Folders", "label_of_word"]

LABEL_WORDS: dict[str, Label] = {
    "real": "real",
    "0_real": "real",
    "nature": "real",
    "fake": "generated",
    "1_fake": "generated",
    "ai": "generated",
    "generated": "generated",
}
"""Words that are labels, in lower case. Numbers are not: half of the published sets say 1 for real."""

_PAIRS = (("0_real", "1_fake"), ("nature", "ai"), ("real", "fake"), ("real", "generated"))
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One image as an adapter finds it: a file, or the content of one that lies in an archive.

    Attributes:
        name: What messages call it.
        path: The file; None where ``content`` is given.
        content: The bytes of the file.
        label: None where it cannot be told.
        problem: Why it cannot be used, or "".
        generator: As in `Sample`, and so for the fields below.
        source: The collection.
        split: ``train``, ``val``, ``test`` or the set's own name.
        kind: Such as ``photo``.
        group: What a split must not cut.
        original: File of the photograph that an edit was made from.
        mask: File of the edited area.
        sha256: As a manifest gives it; checked against the file.
    """

    name: str
    path: Path | None = None
    content: bytes | None = None
    label: Label | None = None
    problem: str = ""
    generator: str = ""
    source: str = ""
    split: str = ""
    kind: str = ""
    group: str = ""
    original: Path | None = None
    mask: Path | None = None
    sha256: str = ""


@runtime_checkable
class Adapter(Protocol):
    """Reads one layout of data sets; `register_datasets` names its class, which is built without arguments."""

    def accepts(self, place: str) -> bool:
        """Whether ``place``, a path or whatever else this layout is named by, is one; looks at as little as it can."""
        ...

    def entries(self, place: str, *, absolute_paths: bool) -> Iterator[Entry]:
        """The images, in a fixed order.

        Args:
            place: What `accepts` accepted.
            absolute_paths: Whether paths in the set may lead out of its folder.

        Raises:
            DatasetError: The set as a whole cannot be read.
        """
        ...


def label_of_word(word: object) -> Label | None:
    """The label that a cell or a file holds, None where it is not one of `LABEL_WORDS`."""
    return LABEL_WORDS.get(word.strip().lower()) if isinstance(word, str) else None


class Folders:
    """Labels from folder names: one pair of names decides, compared whole, and an image lies in one of the two.

    Args:
        paths: Folder names above each image, from the top of the set down.
    """

    def __init__(self, paths: Sequence[Sequence[str]]) -> None:
        names = {part.lower() for parts in paths for part in parts}
        self.pairs = [pair for pair in _PAIRS if names.issuperset(pair)]

    def entry(
        self, name: str, parts: Sequence[str], *, path: Path | None = None, content: bytes | None = None
    ) -> Entry:
        """The image below the folders ``parts``; one whose label cannot be told says why."""
        words = [part.lower() for part in parts]
        pair = self.pairs[0]
        found = [index for index, word in enumerate(words) if word in pair]
        if len(found) != 1:
            wanted = " and ".join(pair)
            how = "lies below none of the folders" if not found else "lies below more than one of the folders"
            return Entry(name=name, path=path, content=content, problem=f"its label cannot be told: it {how} {wanted}")
        at = found[0]
        label = LABEL_WORDS[words[at]]
        split = next((_SPLITS[word] for word in words[:at] if word in _SPLITS), "")
        above = [part for part in parts[:at] if part.lower() not in _SPLITS]
        collection = (above or [*parts[at + 1 :]] or [""])[0]
        return Entry(
            name=name,
            path=path,
            content=content,
            label=label,
            generator=collection if label == "generated" else "",
            source=collection,
            split=split,
        )

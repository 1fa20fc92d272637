"""WebDataset shards: tar files whose members of one name and several suffixes are one sample.

Read by the standard library and in place: nothing is unpacked under a member's own name, and members that are no
plain files are passed over. A sample has one image, and its label in ``.json`` (``{"label": "real", ...}``), in
``.cls``, ``.label`` or ``.txt`` as a word, or in the name of a folder (see `detector_zoo.evaluation.entries`).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.entries import Entry, Folders, label_of_word
from detector_zoo.sources import IMAGE_SUFFIXES, printable

__all__ = ["WebDataset"]

_LARGEST = 1 << 30
_WORDS = ("cls", "label", "txt")
_TEXT = ("generator", "source", "split", "kind", "group")


class WebDataset:
    """A .tar file, or a folder of them."""

    def accepts(self, place: str) -> bool:
        """A file that ends in .tar, .tar.gz or .tgz, or a folder of such files and no other."""
        return bool(_shards(place))

    def entries(self, place: str, *, absolute_paths: bool) -> Iterator[Entry]:
        """A sample an image; ``absolute_paths`` means nothing here.

        Raises:
            DatasetError: A shard is damaged.
        """
        shards = _shards(place)
        parents = [PurePosixPath(name).parts[:-1] for shard in shards for name, _ in _members(shard, content=False)]
        folders = Folders(parents)
        for shard in shards:
            key = ""
            members: dict[str, bytes] = {}
            for name, data in _members(shard, content=True):
                stem, _, suffix = PurePosixPath(name).name.partition(".")
                this = str(PurePosixPath(name).parent / stem)
                if members and this != key:
                    yield _entry(shard.name, key, members, folders)
                    members = {}
                key = this
                members[suffix.lower()] = data
            if members:
                yield _entry(shard.name, key, members, folders)


def _shards(place: str) -> list[Path]:
    path = Path(place)
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    return files if all(file.name.lower().endswith((".tar", ".tar.gz", ".tgz")) for file in files) else []


def _members(shard: Path, *, content: bool) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(shard, "r|*") as tar:
            for member in tar:
                if not member.isreg() or member.size > _LARGEST:
                    continue
                stream = tar.extractfile(member) if content else None
                yield member.name, stream.read() if stream else b""
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DatasetError(f"{printable(str(shard))}: cannot be read as a tar file ({error})") from error


def _entry(shard: str, key: str, members: dict[str, bytes], folders: Folders) -> Entry:
    name = printable(f"{shard}/{key}")
    pictures = [suffix for suffix in members if f".{suffix}" in IMAGE_SUFFIXES]
    if len(pictures) != 1:
        return Entry(name=name, problem=f"a sample has one image, this one has {len(pictures)}")
    content = members[pictures[0]]
    name = f"{name}.{pictures[0]}"
    try:
        facts = json.loads(members.get("json", b"{}"))
        words = [members[suffix].decode() for suffix in _WORDS if suffix in members]
    except ValueError as error:
        return Entry(name=name, content=content, problem=f"its label cannot be read ({error})")
    if isinstance(facts, dict) and "label" in facts:
        words.append(facts["label"])
    if not words and len(folders.pairs) == 1:
        return folders.entry(name, PurePosixPath(key).parts[:-1], content=content)
    labels = {label_of_word(word) for word in words}
    label = labels.pop() if len(labels) == 1 else None
    problem = "" if label else f"its label cannot be told from {words}" if words else "it has no label"
    text: dict[str, Any] = {
        column: str(facts[column]) for column in _TEXT if isinstance(facts, dict) and facts.get(column)
    }
    return Entry(name=name, content=content, label=label, problem=problem, **text)

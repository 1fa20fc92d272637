"""From a place to labelled images that can be relied on: every file read, hashed, and in one class and one split.

A place is a folder, a file, or ``NAME:PLACE`` to name the adapter (``hf:owner/name``). What is wrong with a set stops
the reading with all of it counted, unless bad images are to be skipped, which records them and goes on: a file that
cannot be read or is no image, a label that cannot be told, one content under two labels or in two splits.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

from PIL import Image

from detector_zoo import images
from detector_zoo.errors import DatasetError, ImageError, PluginError
from detector_zoo.evaluation import adapters
from detector_zoo.evaluation.entries import Adapter, Entry
from detector_zoo.evaluation.samples import Sample
from detector_zoo.loading import blamed
from detector_zoo.plugins import catalogue
from detector_zoo.registry import zoo_home
from detector_zoo.sources import IMAGE_SUFFIXES, SUFFIX_FORMATS, printable

__all__ = ["Bad", "DataSet", "collect", "load", "read"]


@dataclass(frozen=True, slots=True)
class Bad:
    """An image that cannot be used: what it is called, and why."""

    name: str
    cause: str


@dataclass(frozen=True, slots=True)
class DataSet:
    """A set as it was read.

    Attributes:
        place: As it was named.
        adapter: That read it.
        split: That was asked for, "" for all.
        samples: The usable images.
        bad: The others.
    """

    place: str
    adapter: str
    split: str
    samples: list[Sample]
    bad: list[Bad] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        """Of the images' hashes with label, generator and source, in sorted order: not of names or places."""
        lines = sorted("\t".join((s.sha256, s.label, s.generator, s.source)) for s in self.samples)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def name(self, sample: Sample) -> str:
        """What to call an image: its path within the set."""
        root = Path(self.place) if Path(self.place).is_dir() else Path(self.place).parent
        return str(sample.path.relative_to(root)) if sample.path.is_relative_to(root) else sample.path.name


def read(
    place: str | Path, *, split: str | None = None, skip_bad: bool = False, absolute_paths: bool = False
) -> list[Sample]:
    """The labelled images of a set; see `load`."""
    return load(place, split=split, skip_bad=skip_bad, absolute_paths=absolute_paths).samples


def load(
    place: str | Path, *, split: str | None = None, skip_bad: bool = False, absolute_paths: bool = False
) -> DataSet:
    """Read a set.

    Args:
        place: A folder, a file, or ``NAME:PLACE``.
        split: Only these images; the others are still compared with them.
        skip_bad: Record what cannot be used and go on.
        absolute_paths: Let a manifest's paths lead out of its folder.

    Returns:
        Images in the set's order, each with its hash.

    Raises:
        DatasetError: No adapter knows the place, the set has no such split or no image, or something in it is bad
            and not to be skipped.
    """
    found = collect(place, split=split, absolute_paths=absolute_paths)
    bad = [*found.bad, *conflicts(found.samples)]
    if bad and not skip_bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise DatasetError(
            f"{printable(str(place))}: {bad[0].name}: {bad[0].cause}{more}",
            hint="--skip-bad records such images and goes on; zoo data check lists them",
        )
    refused = {one.name for one in bad}
    samples = [s for s in found.samples if split in (None, s.split) and str(s.path) not in refused]
    if not samples:
        raise DatasetError(f"{printable(str(place))}: no image that can be used")
    return replace(found, samples=samples, bad=bad)


def collect(place: str | Path, *, split: str | None = None, absolute_paths: bool = False) -> DataSet:
    """Read a set with all its splits and refuse nothing: for `zoo data check`, which tells what is wrong with it.

    Files of other splits than ``split`` are not read where the set's own manifest gives their hashes.

    Raises:
        DatasetError: No adapter knows the place, or the set has no such split.
    """
    name, where, adapter = _adapter(str(place))
    samples: list[Sample] = []
    bad: list[Bad] = []
    splits: set[str] = set()
    for entry in adapter.entries(where, absolute_paths=absolute_paths):
        splits.add(entry.split)
        ours = split in (None, entry.split)
        try:
            samples.append(_sample(entry, trust_hash=not ours))
        except (DatasetError, ImageError) as error:
            # A bad image of another split is that split's trouble.
            if ours:
                bad.append(Bad(entry.name, str(error)))
    if split is not None and split not in splits:
        known = ", ".join(sorted(splits - {""})) or "none"
        raise DatasetError(f"{printable(where)}: no split {split!r}; the set has {known}")
    return DataSet(where, name, split or "", samples, bad)


def known_adapters() -> dict[str, str]:
    """Adapters by name, ours first: the order in which they are asked.

    Ours are registered by the same hook as a plugin's, but not through an entry point, so that the safe mode
    (``DETECTOR_ZOO_PLUGINS=``) can still read a folder.
    """
    ours: dict[str, str] = {}
    adapters.register_datasets(register=ours.__setitem__)
    return ours | catalogue().datasets


def _adapter(place: str) -> tuple[str, str, Adapter]:
    """The adapter of a place, its name, and the place without that name."""
    known = known_adapters()
    name, colon, rest = place.partition(":")
    if colon and name in known and not os.path.lexists(place):
        return name, rest, _build(name, known[name])
    if not os.path.lexists(place):
        raise DatasetError(f"{printable(place)}: no such file or folder", hint="a data set of the Hub is hf:OWNER/NAME")
    for candidate, target in known.items():
        adapter = _build(candidate, target)
        if adapter.accepts(place):
            return candidate, place, adapter
    raise DatasetError(
        f"{printable(place)}: no data set that is understood",
        hint="a folder with real/ and fake/ (or 0_real/1_fake, nature/ai), a manifest.csv, a .parquet or a .tar file",
    )


def _build(name: str, target: str) -> Adapter:
    module, _, attribute = target.partition(":")
    with blamed(f"data-set adapter {name}: cannot load {target}"):
        adapter = getattr(import_module(module), attribute)()
    if not isinstance(adapter, Adapter):
        raise PluginError(f"data-set adapter {name}: {target} has no accepts and entries")
    return adapter


def _sample(entry: Entry, *, trust_hash: bool) -> Sample:
    """An entry as a sample, its file read and hashed.

    Raises:
        DatasetError: It cannot be used.
        ImageError: Its file cannot be read.
    """
    if entry.problem or entry.label is None:
        raise DatasetError(entry.problem or "it has no label")
    if entry.path is not None and trust_hash and entry.sha256:
        path, sha256 = entry.path, entry.sha256
    else:
        path, sha256 = _read(entry)
    for file in (entry.original, entry.mask):
        if file is not None and not file.is_file():
            raise DatasetError(f"{printable(str(file))}: no such file")
    return Sample(
        path=path,
        label=entry.label,
        generator=entry.generator,
        source=entry.source,
        split=entry.split,
        kind=entry.kind,
        group=entry.group,
        original=entry.original,
        mask=entry.mask,
        sha256=sha256,
    )


def _read(entry: Entry) -> tuple[Path, str]:
    if entry.content is not None:
        data, shown = entry.content, entry.name
    elif entry.path is not None:
        data, shown = images.read_file(entry.path), str(entry.path)
    else:
        raise DatasetError("it is neither a file nor the content of one")
    sha256 = hashlib.sha256(data).hexdigest()
    if entry.sha256 and entry.sha256.lower() != sha256:
        raise DatasetError("it is not the file that its manifest describes (sha256 differs)")
    _require_image(data, shown)
    return (entry.path or _kept(data, sha256, entry.name)), sha256


def _require_image(data: bytes, name: str) -> None:
    """Read the header; the pixels are decoded when they are scored."""
    formats = sorted(set(SUFFIX_FORMATS.values()) & _opened())
    try:
        with Image.open(io.BytesIO(data), formats=formats):
            pass
    # Parsers of damaged headers raise far more than they document.
    except Exception as error:
        raise ImageError(f"{printable(name)}: not an image that can be read") from error


def _opened() -> set[str]:
    Image.init()
    return set(Image.OPEN)


def _kept(data: bytes, sha256: str, name: str) -> Path:
    """A file with content that lay in an archive, named by its hash alone, in the zoo's cache."""
    suffix = Path(name.removesuffix(")")).suffix.lower()
    folder = zoo_home() / "datasets" / sha256[:2]
    path = folder / f"{sha256}{suffix if suffix in IMAGE_SUFFIXES else ''}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        partial.write_bytes(data)
        partial.replace(path)
    return path


def conflicts(samples: Sequence[Sample]) -> list[Bad]:
    """Every copy of a content that comes under two labels or in two splits, named by its path."""
    return [*_shared(samples, "label", "comes under two labels"), *_shared(samples, "split", "is in two splits")]


def _shared(samples: Sequence[Sample], column: str, what: str) -> Iterator[Bad]:
    copies: dict[str, list[Sample]] = {}
    for sample in samples:
        copies.setdefault(sample.sha256, []).append(sample)
    for same in copies.values():
        values = sorted({getattr(sample, column) for sample in same})
        if len(values) > 1:
            where = ", ".join(f"{getattr(s, column) or '(none)'}: {s.path.name}" for s in same)
            for sample in same:
                yield Bad(str(sample.path), f"the image {what} ({where})")

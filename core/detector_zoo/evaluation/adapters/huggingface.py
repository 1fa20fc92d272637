"""Data sets of the Hugging Face Hub, by its own library: ``hf:OWNER/NAME``, ``hf:FOLDER``, Parquet with images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detector_zoo.errors import DatasetError, ZooError
from detector_zoo.evaluation.entries import Entry, label_of_word
from detector_zoo.sources import printable

__all__ = ["HuggingFace"]

_TEXT = ("generator", "source", "kind", "group")


class HuggingFace:
    """A column ``image`` and a column ``label``, of words or of classes whose names are words (real, fake, ai, ...).

    Streamed, so that only what is read is fetched; code that comes with a data set is never run.
    """

    def accepts(self, place: str) -> bool:
        """A .parquet file with a column ``image``; anything else is asked for as ``hf:PLACE``."""
        path = Path(place)
        if path.suffix.lower() != ".parquet" or not path.is_file():
            return False
        import pyarrow.parquet as pq

        try:
            return "image" in pq.read_schema(path).names
        except (OSError, ValueError):
            return False

    def entries(self, place: str, *, absolute_paths: bool) -> Iterator[Entry]:
        """An image a row, split by split; ``absolute_paths`` means nothing here.

        Raises:
            DatasetError: The set cannot be loaded, or has no such columns.
            ZooError: The library is not installed.
        """
        try:
            import datasets
        except ImportError as error:
            hint = "pip install 'detector-zoo[hf]'"
            raise ZooError("data sets of the Hub need the library datasets", hint=hint) from error
        try:
            splits = _load(datasets, place)
        # The library raises its own errors, the Hub's, and those of whichever file format is inside.
        except Exception as error:
            raise DatasetError(f"{printable(place)}: {_one_line(error)}") from error
        for split, rows in splits.items():
            features = rows.features or {}
            if missing := [name for name in ("image", "label") if name not in features]:
                raise DatasetError(f"{printable(place)}: no column {', '.join(missing)}, only {', '.join(features)}")
            names = getattr(features["label"], "names", None)
            plain = rows.cast_column("image", datasets.Image(decode=False))
            for number, row in enumerate(plain):
                yield _entry(f"{split}/{number}", str(split), row, names, root=Path(place))


def _load(datasets: Any, place: str) -> Mapping[Any, Any]:
    path = Path(place)
    if path.is_file():
        return dict(datasets.load_dataset("parquet", data_files=str(path), streaming=True))
    if path.is_dir():
        layout = "parquet" if next(path.rglob("*.parquet"), None) else "imagefolder"
        return dict(datasets.load_dataset(layout, data_dir=str(path), streaming=True))
    return dict(datasets.load_dataset(place, streaming=True))


def _entry(name: str, split: str, row: Mapping[str, Any], names: Any, root: Path) -> Entry:
    value = row["label"]
    word = names[value] if names is not None and isinstance(value, int) and 0 <= value < len(names) else value
    label = label_of_word(word)
    image = row["image"] or {}
    content, path = image.get("bytes"), image.get("path")
    if content is None and path and "hf://" in path:
        content = _fetched(path)
    problem = "" if label else f"its label cannot be told from {word!r}"
    if content is None and not path:
        problem = "the row has no image"
    file = Path(path) if path and content is None else None
    if file and not file.resolve().is_relative_to(root.resolve()):
        problem = "its image is not in the data set"
    shown = f"{name} ({printable(Path(path).name)})" if path else name
    text: dict[str, Any] = {column: str(row[column]) for column in _TEXT if row.get(column)}
    return Entry(name=shown, content=content, path=file, label=label, problem=problem, split=split, **text)


def _fetched(path: str) -> bytes:
    """The bytes of a file of the Hub, or of one inside an archive there, as the library names it."""
    import fsspec  # comes with the Hub's client

    try:
        with fsspec.open(path, "rb") as stream:
            content: bytes = stream.read()
    except OSError as error:
        raise DatasetError(f"{printable(path)}: cannot be fetched ({_one_line(error)})") from error
    return content


def _one_line(error: BaseException) -> str:
    return printable(" ".join(str(error).split())[:300]) or type(error).__name__

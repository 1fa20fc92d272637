"""A table of images, CSV or Parquet: path and label, and whatever else of `Sample` is known."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detector_zoo.errors import DatasetError
from detector_zoo.evaluation.entries import LABEL_WORDS, Entry, label_of_word
from detector_zoo.sources import printable

__all__ = ["Manifest"]

_NAMES = ("manifest.csv", "manifest.parquet")
_TEXT = ("generator", "source", "split", "kind", "group", "sha256")


class Manifest:
    """Columns ``path`` and ``label`` (real or generated), and any of generator, source, split, kind, group, mask,
    original, sha256; others are left alone.

    Paths are relative to the manifest's folder and, resolved, must stay in it.
    """  # noqa: D205 (one sentence that does not fit a line)

    def accepts(self, place: str) -> bool:
        """A .csv file, a .parquet file with a column ``path``, or a folder with manifest.csv or manifest.parquet."""
        path = _file(place)
        if path.suffix.lower() == ".parquet" and path.is_file():
            import pyarrow.parquet as pq

            try:
                return "path" in pq.read_schema(path).names
            except (OSError, ValueError):
                return False
        return path.suffix.lower() == ".csv" and path.is_file()

    def entries(self, place: str, *, absolute_paths: bool) -> Iterator[Entry]:
        """A row an image.

        Raises:
            DatasetError: The table cannot be read, or lacks a column.
        """
        file = _file(place)
        root = file.parent
        inside = None if absolute_paths else root.resolve()
        rows = _csv_rows(file) if file.suffix.lower() == ".csv" else _parquet_rows(file)
        for number, row in rows:
            yield _entry(row, f"{printable(file.name)} row {number}", root, inside)


def _file(place: str) -> Path:
    path = Path(place)
    return next((path / name for name in _NAMES if (path / name).is_file()), path)


def _csv_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _require(file, reader.fieldnames or ())
            for row in reader:
                if None in row or None in row.values():
                    raise DatasetError(f"{printable(str(file))}: line {reader.line_num} is not as wide as the header")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{printable(str(file))}: cannot be read as CSV ({error})") from error


def _parquet_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            _require(file, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{printable(str(file))}: cannot be read as Parquet ({error})") from error


def _require(file: Path, columns: Any) -> None:
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        raise DatasetError(f"{printable(str(file))}: a manifest has columns path and label; no {', '.join(missing)}")


def _entry(row: Mapping[str, Any], where: str, root: Path, inside: Path | None) -> Entry:
    text: dict[str, Any] = {name: str(row[name]).strip() for name in (*_TEXT, "path") if row.get(name) is not None}
    name = printable(text.pop("path", "")) or where
    problem = ""
    label = label_of_word(row["label"])
    if label is None:
        problem = f"its label cannot be told: {row['label']!r} is none of {', '.join(LABEL_WORDS)}"
    files: dict[str, Any] = {}
    for column in ("path", "mask", "original"):
        value = row.get(column)
        if value is None or not str(value).strip():
            if column == "path":
                problem = "the row has no path"
            continue
        try:
            files[column] = _inside(root, str(value).strip(), inside)
        except ValueError as error:
            problem = f"{column} {error}"
    return Entry(name=name, label=label, problem=problem, **files, **text)


def _inside(root: Path, text: str, inside: Path | None) -> Path:
    path = Path(os.path.normpath(root / text))
    # resolve() raises ValueError for a NUL, and follows links: one that leads out leaves the folder too.
    if inside is not None and not path.resolve().is_relative_to(inside):
        raise ValueError("leaves the manifest's folder (--absolute-paths allows it)")
    return path

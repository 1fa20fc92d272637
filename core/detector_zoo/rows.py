r"""The rows of a prediction file, and the three formats that hold them.

CSV is written as data: a path that begins with ``=``, ``+``, ``-`` or ``@`` stays as it is, so a spreadsheet may take
it for a formula; open files from strangers accordingly. Floats are written so that they read back bit for bit. A
file name that is not valid Unicode is kept exactly in JSON Lines; Parquet and CSV cannot hold it, there its
undecodable bytes become escapes such as ``\udcff``.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from detector_zoo.errors import DatasetError
from detector_zoo.sources import printable

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "PARTS",
    "RUN",
    "SCHEMA_VERSION",
    "Prediction",
    "check_output",
    "csv_writer",
    "read",
    "to_json",
    "to_table",
    "write",
]

SCHEMA_VERSION = 1
PARTS = "part-*.parquet"
"""The files of a directory that hold its rows, in the order of their names."""
RUN = "_run.json"
"""The file of a directory that says what run wrote its parts, and in ``complete`` how many when it ended."""
_METADATA_KEY = b"detector_zoo.predictions"
_ROW_GROUP = 1_024
_LABELS = ("", "real", "generated", "inconclusive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One row: one image by one detector, a score or an error.

    Attributes:
        path: As the user gave it.
        sha256: Of the image's bytes; "" where they could not be read.
        detector: Method name.
        weights: Tag, or "".
        weights_sha256: Of the weights' file, or "".
        core_version: Of detector-zoo.
        log_odds: The score; None in a row with an error.
        probability: Logistic function of ``log_odds``.
        raw: The method's own unit.
        label: "real", "generated", "inconclusive" or "".
        threshold: In log-odds.
        calibrated: Whether ``log_odds`` were fitted to be log-odds.
        width: Pixels.
        height: Pixels.
        format: Of the content, such as "JPEG".
        note: What a reader of the score must know.
        error: Why there is no score, or "".

    Raises:
        ValueError: The row is both a score and an error, or neither, or a number is not finite.
    """

    path: str
    sha256: str = ""
    detector: str
    weights: str = ""
    weights_sha256: str = ""
    core_version: str
    log_odds: float | None = None
    probability: float | None = None
    raw: float | None = None
    label: str = ""
    threshold: float | None = None
    calibrated: bool | None = None
    width: int | None = None
    height: int | None = None
    format: str = ""
    note: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        # numpy's scalars are welcome, but neither JSON nor a comparison after a round trip knows them.
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, kind(value))
        for name in _FLOATS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}, not a finite number")
        if self.label not in _LABELS:
            raise ValueError(f"label {self.label!r} is none of {', '.join(_LABELS[1:])}")
        if self.error and (self.log_odds, self.probability, self.raw, self.label) != (None, None, None, ""):
            raise ValueError("a row with an error has no score")
        if not self.error and self.log_odds is None:
            raise ValueError("a row has neither a score nor an error")


_FLOATS = ("log_odds", "probability", "raw", "threshold")
_KINDS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_FLOATS, float),
    "calibrated": bool,
    "width": int,
    "height": int,
}
_COLUMNS = tuple(field.name for field in fields(Prediction))
_REQUIRED = ("path", "detector", "core_version")


def to_json(prediction: Prediction) -> str:
    """One line of JSON, ASCII only: every column in its order, empty optional numbers as null."""
    return json.dumps({name: getattr(prediction, name) for name in _COLUMNS}, allow_nan=False)


def from_json(line: str) -> Prediction:
    """The row of a line that `to_json` wrote.

    Raises:
        ValueError: The line is not such a row.
    """
    values = json.loads(line, parse_constant=_not_finite)
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return _from_columns(values)


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON")


def _from_columns(values: dict[str, Any]) -> Prediction:
    """A row from what a file holds; raises ValueError with the cause."""
    if unknown := sorted(set(values) - set(_COLUMNS)):
        raise ValueError(f"unknown columns: {', '.join(map(str, unknown))}")
    if missing := [name for name in _REQUIRED if values.get(name) is None]:
        raise ValueError(f"no value for {', '.join(missing)}")
    row: dict[str, Any] = {}
    for name, value in values.items():
        kind = _KINDS.get(name)
        # bool is an int and an int will do for a float; nothing else may stand for another type.
        wanted = (str,) if kind is None else (bool,) if kind is bool else (int,) if kind is int else (int, float)
        if value is None:
            continue
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{name} is {value!r}")
        row[name] = value
    return Prediction(**row)


def check_output(path: str | os.PathLike[str]) -> None:
    """Refuse an output that could not be written, before any work is done.

    Raises:
        DatasetError: The extension is unknown, the directory is missing or not writable, or the path is a directory
            or anything else that is not a regular file.
    """
    output = Path(path)
    name = printable(str(output))
    if output.suffix.lower() not in _WRITERS:
        raise DatasetError(
            f"{name}: predictions are written as {', '.join(_WRITERS)}", hint=f"for example {output.stem}.parquet"
        )
    if output.is_dir():
        raise DatasetError(f"{name}: a directory, not a file")
    if output.exists() and not output.is_file():
        raise DatasetError(f"{name}: not a regular file")
    if not output.parent.is_dir():
        raise DatasetError(f"{name}: there is no directory {printable(str(output.parent))}")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise DatasetError(f"{name}: the directory {printable(str(output.parent))} is not writable")


def read(path: str | os.PathLike[str]) -> Iterator[Prediction]:
    """Read a prediction file, or a directory of parts in their order, a few rows at a time.

    Of a directory that is not the whole of a run a line on standard error says so.

    Raises:
        DatasetError: The file is missing, not a prediction file, damaged, or of a newer version; names the line
            for JSON Lines and CSV. A directory has no parts in it.
    """
    name = printable(os.fspath(path))
    if Path(path).is_dir():
        parts = sorted(Path(path).glob(PARTS))
        whole = _whole(Path(path), len(parts))
        if not parts and not whole:
            raise DatasetError(f"{name}: a directory without predictions", hint=f"they are files {PARTS}")
        if not whole:
            print(f"{name}: rows may be missing, as no {RUN} says that a run ended with these parts", file=sys.stderr)
        for part in parts:
            yield from read(part)
        return
    reader = _READERS.get(Path(path).suffix.lower())
    if reader is None:
        raise DatasetError(f"{name}: prediction files end in {', '.join(_READERS)}")
    try:
        yield from reader(Path(path))
    except FileNotFoundError as error:
        raise DatasetError(f"{name}: no such file") from error
    except OSError as error:
        raise DatasetError(f"{name}: cannot be read ({printable(error.strerror or str(error))})") from error
    except ValueError as error:
        raise DatasetError(f"{name}: {printable(str(error))}") from error


def _whole(folder: Path, parts: int) -> bool:
    """Whether the run that wrote a directory says that it ended, with so many parts."""
    try:
        return bool(json.loads((folder / RUN).read_bytes())["complete"]["parts"] == parts)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _read_jsonl(path: Path) -> Iterator[Prediction]:
    # Bytes, so that a line that is not valid UTF-8 has its number too.
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = from_json(line.decode("utf-8-sig"))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            yield row


def _read_csv(path: Path) -> Iterator[Prediction]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header: list[str] | None = None
        while True:
            try:
                cells = next(reader, None)
                if cells is None:
                    break
                if header is None:
                    header = _header(cells)
                    continue
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise ValueError(f"{len(cells)} cells, where the header has {len(header)}")
                row = _from_columns({name: _from_cell(name, cell) for name, cell in zip(header, cells, strict=True)})
            except (ValueError, csv.Error) as error:
                raise ValueError(f"line {max(1, reader.line_num)}: {error}") from error
            yield row
        if header is None:
            raise ValueError("the file is empty, not even a header")


def _header(cells: list[str]) -> list[str]:
    if unknown := sorted(set(cells) - set(_COLUMNS)):
        raise ValueError(f"unknown columns: {', '.join(unknown)}")
    if missing := [name for name in _REQUIRED if name not in cells]:
        raise ValueError(f"no column {', '.join(missing)}")
    if len(set(cells)) < len(cells):
        raise ValueError("a column comes twice")
    return cells


def _from_cell(name: str, cell: str) -> Any:
    kind = _KINDS.get(name)
    if kind is None:
        return cell
    if cell == "":
        return None
    if kind is bool:
        if cell not in ("true", "false"):
            raise ValueError(f"{name} is {cell!r}, neither true nor false")
        return cell == "true"
    try:
        return kind(cell)
    except ValueError:
        raise ValueError(f"{name} is {cell!r}, not a number") from None


def _read_parquet(path: Path) -> Iterator[Prediction]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            version = (file.schema_arrow.metadata or {}).get(_METADATA_KEY, b"none").decode()
            if version != str(SCHEMA_VERSION):
                raise ValueError(f"predictions of version {SCHEMA_VERSION} expected, the file says {version}")
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    yield _from_columns(values)
    except pa.ArrowException as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"damaged Parquet ({error})") from error


_READERS = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}


def _write_jsonl(rows: Iterator[Prediction], stream: IO[bytes]) -> int:
    count = 0
    for row in rows:
        stream.write(to_json(row).encode("ascii") + b"\n")
        count += 1
    return count


class _Writable(Protocol):
    def write(self, text: str, /) -> object: ...


class _Escaped:
    """Text into a byte stream, with escapes for what UTF-8 cannot hold."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, text: str, /) -> None:
        self._stream.write(text.encode("utf-8", "backslashreplace"))


def csv_writer(stream: _Writable) -> Callable[[Prediction], None]:
    """Write the CSV header; the function that is returned writes one row."""
    writer = csv.writer(stream)
    writer.writerow(_COLUMNS)

    def write_row(row: Prediction) -> None:
        cells = (getattr(row, name) for name in _COLUMNS)
        writer.writerow("" if cell is None else str(cell).lower() if isinstance(cell, bool) else cell for cell in cells)

    return write_row


def _write_csv(rows: Iterator[Prediction], stream: IO[bytes]) -> int:
    write_row = csv_writer(_Escaped(stream))
    count = 0
    for row in rows:
        write_row(row)
        count += 1
    return count


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {float: pa.float64(), bool: pa.bool_(), int: pa.int32()}
    columns = [
        pa.field(name, types[_KINDS[name]] if name in _KINDS else pa.string(), nullable=name in _KINDS)  # type: ignore[index]
        for name in _COLUMNS
    ]
    return pa.schema(columns, metadata={_METADATA_KEY: str(SCHEMA_VERSION).encode()})


def to_table(rows: Sequence[Prediction]) -> pa.Table:
    """Rows as they are in Parquet: every column with its type, and the version in the schema."""
    import pyarrow as pa

    def cell(value: Any) -> Any:
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value

    columns = {name: [cell(getattr(row, name)) for row in rows] for name in _COLUMNS}
    return pa.Table.from_pydict(columns, schema=_schema())


def _write_parquet(rows: Iterator[Prediction], stream: IO[bytes]) -> int:
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(stream, _schema()) as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(to_table(group))
            count += len(group)
    return count


_WRITERS = {".parquet": _write_parquet, ".jsonl": _write_jsonl, ".csv": _write_csv}


def write(rows: Iterator[Prediction], path: Path, stream: IO[bytes]) -> int:
    """Write rows to a stream, a few at a time, in the format that the extension of ``path`` names; return how many."""
    return _WRITERS[path.suffix.lower()](rows, stream)

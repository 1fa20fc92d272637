"""Prediction files: what was scored, by what, and what came out.

A finished file is Parquet, JSON Lines or CSV, by its extension; one row is one image by one detector and holds
either a score or an error. The columns and their types are the same whether every row is a score or none is (see
`detector_zoo.rows`).

While a run goes on, rows are kept in a `Journal` beside the output, an SQLite file: a killed run loses at most the
transaction in flight, and the next run goes on from what is there. The output itself appears complete or not at all.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from detector_zoo import __version__
from detector_zoo.errors import DatasetError
from detector_zoo.rows import SCHEMA_VERSION, Prediction, check_output, csv_writer, from_json, read, to_json, write
from detector_zoo.sources import printable

if sys.platform != "win32":
    import fcntl

__all__ = ["Journal", "Prediction", "check_output", "csv_writer", "read", "sync_directory", "to_json"]

_TABLES = """
CREATE TABLE rows (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    path BLOB NOT NULL,
    detector BLOB NOT NULL,
    weights_sha256 BLOB NOT NULL,
    sha256 BLOB NOT NULL,
    core_version BLOB NOT NULL,
    error INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (path, detector, weights_sha256, sha256, core_version)
);
CREATE INDEX contents ON rows (sha256, detector, weights_sha256, core_version, error)
"""
_DROP_RETRIED = "DELETE FROM rows WHERE path = ? AND detector = ? AND weights_sha256 = ? AND error"
_INSERT = """
INSERT INTO rows (path, detector, weights_sha256, sha256, core_version, error, body) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (path, detector, weights_sha256, sha256, core_version)
DO UPDATE SET error = excluded.error, body = excluded.body
"""
_FIND = (
    "SELECT body FROM rows WHERE sha256 = ? AND detector = ? AND weights_sha256 = ? AND core_version = ? AND NOT error"
)


def _key(text: str) -> bytes:
    # Keys are bytes: SQLite's text cannot hold the undecodable bytes of a file name, nor tell NUL from the end.
    return text.encode("utf-8", "surrogatepass")


def _detector(name: str, weights: str) -> str:
    """A detector as the key of a row: one file of weights can serve two tags or variants, whose scores differ."""
    return f"{name}.{weights}"


def _insert(connection: sqlite3.Connection, rows: Iterable[Prediction]) -> None:
    for row in rows:
        detector = _detector(row.detector, row.weights)
        key = [_key(value) for value in (row.path, detector, row.weights_sha256, row.sha256, row.core_version)]
        connection.execute(_DROP_RETRIED, key[:3])
        connection.execute(_INSERT, [*key, bool(row.error), to_json(row)])


class Journal:
    """The rows of a run, on disk from the moment they are added.

    The journal is ``OUTPUT.journal``, an SQLite file; ``OUTPUT.lock`` beside it keeps other processes away. Rows keep
    the order in which they first came. Methods may be called from several threads.

    Args:
        output: The file that `finish` will write; a link is followed.
        resume: Go on from an existing journal, or else from the rows of an existing output. With False, start with
            nothing; an existing output is replaced when the run finishes.

    Raises:
        DatasetError: The output cannot be written (see `check_output`), another process is writing it, the journal
            is damaged or of a newer version, or the output to go on from cannot be read.
    """

    def __init__(self, output: str | os.PathLike[str], *, resume: bool = True) -> None:
        check_output(output)
        self.output = Path(os.path.realpath(output))
        self.path = self.output.with_name(f"{self.output.name}.journal")
        self._lock_path = self.output.with_name(f"{self.output.name}.lock")
        self._name = printable(os.fspath(output))
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._lock_file = self._acquire()
        try:
            with self._explained():
                try:
                    self._begin(resume)
                except sqlite3.DatabaseError as error:
                    if resume or isinstance(error, sqlite3.OperationalError):
                        raise
                    self._remove()  # damaged, and not wanted any more
                    self._begin(resume)
        except BaseException:
            self.close()
            raise

    def _acquire(self) -> int | None:
        """Lock the output against other processes.

        Not left to SQLite: a process that has opened the journal just before another one finishes and removes it
        would get the lock of a file that is gone. Here the file that is locked is compared with the one that has
        the name. A killed process leaves the file behind, and no lock.
        """
        if sys.platform == "win32":  # SQLite's own lock has to do; an open file cannot be removed there
            return None
        while True:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), self._lock_path.stat()):
                    return descriptor
            except FileNotFoundError:
                pass  # removed by the one that held it: once more, with a new file
            except BlockingIOError:
                os.close(descriptor)
                raise self._busy() from None
            except OSError as error:
                os.close(descriptor)
                raise DatasetError(f"{self._name}: cannot be locked ({error.strerror})") from error
            os.close(descriptor)

    def _release(self) -> None:
        descriptor, self._lock_file = self._lock_file, None
        if descriptor is not None:
            self._lock_path.unlink(missing_ok=True)
            os.close(descriptor)

    def _busy(self) -> DatasetError:
        return DatasetError(f"{self._name}: another process is writing it")

    def _begin(self, resume: bool) -> None:
        # Transactions are begun and ended by hand; with no timeout, a lock is an error at once.
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            # In this order: with exclusive locking first, WAL needs no shared memory beside the file, which network
            # file systems lack.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("BEGIN EXCLUSIVE")
            self._start(connection, resume)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _start(self, connection: sqlite3.Connection, resume: bool) -> None:
        execute = connection.execute
        version = execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION and resume:
            raise DatasetError(
                f"{printable(str(self.path))}: written by a newer version of detector-zoo",
                hint="finish it with that one",
            )
        if version and resume:
            if (verdict := execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(verdict)
            return
        execute("DROP TABLE IF EXISTS rows")
        for statement in _TABLES.split(";"):
            execute(statement)
        # In the same transaction as the tables: a journal has all rows of the output that it goes on from, or none.
        if resume and self.output.exists():
            _insert(connection, read(self.output))
        execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def find(self, sha256: str, detector: str, weights: str, weights_sha256: str, path: str) -> Prediction | None:
        """The score of this content by this detector, these weights and this version of the core, if there is one.

        The row of the same path is preferred to that of another path. Errors are never found, so they are retried.
        """
        key = [_key(value) for value in (sha256, _detector(detector, weights), weights_sha256, __version__)]
        with self._transaction() as connection:
            found = connection.execute(f"{_FIND} AND path = ?", [*key, _key(path)]).fetchone()
            found = found or connection.execute(f"{_FIND} ORDER BY position LIMIT 1", key).fetchone()
        return from_json(found[0]) if found else None

    def add(self, rows: Iterable[Prediction]) -> None:
        """Write rows in one transaction; when this returns, they survive the process.

        A row replaces one of the same path, content, detector, weights and version, and it replaces the error of the
        same path, detector and weights whatever the content was.
        """
        with self._transaction() as connection:
            _insert(connection, rows)

    def __len__(self) -> int:
        with self._transaction() as connection:
            return int(connection.execute("SELECT count(*) FROM rows").fetchone()[0])

    def finish(self) -> int:
        """Write the output, replace the old one by it in one step, and remove the journal.

        Returns:
            The number of rows.
        """
        partial = self.output.with_name(f"{self.output.name}.partial")
        with self._transaction() as connection:
            bodies = connection.execute("SELECT body FROM rows ORDER BY position")
            rows = (from_json(body) for (body,) in bodies)
            try:
                with partial.open("wb") as stream:
                    count = write(rows, self.output, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                partial.replace(self.output)
            except OSError as error:
                raise DatasetError(f"{self._name}: cannot be written ({error.strerror})") from error
            finally:
                partial.unlink(missing_ok=True)
        sync_directory(self.output.parent)
        with self._lock:
            self._disconnect()
            self._remove()
            self._release()
        return count

    def close(self) -> None:
        """Let go of the journal and keep it; the next run goes on from it."""
        with self._lock:
            self._disconnect()
            self._release()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            connection = self._connection
            if connection is None:
                raise ValueError("the journal is closed")
            connection.execute("BEGIN")
            try:
                yield connection
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back already where the disk is full
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._explain(error) from error

    def _explain(self, error: sqlite3.DatabaseError) -> DatasetError:
        journal = printable(str(self.path))
        if _is_busy(error):
            return self._busy()
        if isinstance(error, sqlite3.OperationalError):
            return DatasetError(f"{journal}: {error}")
        return DatasetError(
            f"{journal}: the journal is damaged ({error})",
            hint="remove it to start over; the rows of an earlier run that finished are still in the output",
        )

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def _is_busy(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def sync_directory(directory: Path) -> None:
    """Make the renaming last through a power cut, where directories can be synced."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

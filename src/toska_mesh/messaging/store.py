"""The outbox's file: SQLite in WAL mode, every commit synced to the disk.

Synchronous and used by one thread at a time; `outbox.py` keeps it off the event loop. A file that SQLite calls damaged
is moved aside, never deleted, and every readable event in it is carried over: a daemon that dies at each start because
of a bad sector would lose all events to come for the sake of some that are lost already.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

import orjson

from toska_mesh.errors import ConfigError, MessagingError
from toska_mesh.messaging.envelope import Outgoing
from toska_mesh.telemetry import event_log

FILE_NAME: Final = "outbox.sqlite3"
_SCHEMA_VERSION: Final = 1
_BUSY_MILLISECONDS: Final = 2000
_LOAD_CHUNK: Final = 500  # below SQLite's limit of bound variables (999 in old builds)
_VACUUM_PAGES: Final = 4096  # an emptied file above 16 MiB is given back to the disk
_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: order survives a restart
    lane           TEXT NOT NULL,
    contract       TEXT NOT NULL,
    exchange       TEXT NOT NULL,
    message_id     TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    created        REAL NOT NULL,                      -- seconds since 1970, for the age shown to people
    body           BLOB NOT NULL
)
"""
_COLUMNS: Final = "seq, lane, contract, exchange, message_id, correlation_id, created, body"

log = event_log("messaging.store")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a stored message without its body. `created` is in seconds since 1970."""

    seq: int
    lane: str
    created: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as it lies on the disk."""

    seq: int
    outgoing: Outgoing


class OutboxStore:
    """Opens (or creates) the file in `folder`. Raises ConfigError when `variable` names an unusable folder.

    Every method raises `sqlite3.Error` when the disk or the file fails; nothing of a failed `apply` is kept.
    """

    def __init__(self, folder: Path, variable: str = "DATA_DIR") -> None:
        self._path = folder / FILE_NAME
        self.salvaged = 0
        self.moved_aside: Path | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = self._open_or_replace()
        except ConfigError:
            raise
        except (OSError, sqlite3.Error) as exc:
            raise ConfigError(f"{variable}={str(folder)!r} cannot hold the event outbox: {exc}") from exc

    def entries(self) -> list[Entry]:
        """Everything stored, in order."""
        rows = self._db.execute("SELECT seq, lane, created, length(body) FROM outbox ORDER BY seq")
        return [Entry(*row) for row in rows]

    def apply(self, added: Sequence[Outgoing], removed: Sequence[int], now: float) -> list[int]:
        """Add and remove in one transaction; when it returns, it is on the disk. Gives the new sequence numbers."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq in removed])
            added_seqs = [self._insert(outgoing, now) for outgoing in added]
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors (disk full), then ROLLBACK fails.
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        return added_seqs

    def load(self, seqs: Sequence[int]) -> list[Stored]:
        """The stored messages of these numbers, in order; one that is missing or damaged is left out."""
        found: list[Stored] = []
        for start in range(0, len(seqs), _LOAD_CHUNK):
            chunk = seqs[start : start + _LOAD_CHUNK]
            marks = ",".join("?" * len(chunk))
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM outbox WHERE seq IN ({marks}) ORDER BY seq", chunk)  # noqa: S608
            for row in rows:
                try:
                    found.append(_stored(row))
                except MessagingError as exc:
                    log.error("outbox_row_damaged", reason=str(exc))
        return found

    def shrink(self) -> None:
        """Give the space of delivered messages back, when it is worth it."""
        if self._db.execute("PRAGMA freelist_count").fetchone()[0] >= _VACUUM_PAGES:
            # As a script: `execute` would step this pragma once, which frees a single page.
            self._db.executescript("PRAGMA incremental_vacuum")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        self._db.close()

    def _insert(self, outgoing: Outgoing, now: float) -> int:
        row = (
            outgoing.lane,
            outgoing.contract,
            outgoing.exchange,
            str(outgoing.message_id),
            str(outgoing.correlation_id),
            now,
            outgoing.body,
        )
        cursor = self._db.execute(
            "INSERT INTO outbox (lane, contract, exchange, message_id, correlation_id, created, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        seq = cursor.lastrowid
        if seq is None:
            raise sqlite3.InternalError("SQLite gave no row id")
        return seq

    def _open_or_replace(self) -> sqlite3.Connection:
        try:
            return _open(self._path)
        except sqlite3.DatabaseError as exc:
            if not _is_damage(exc):
                raise
            damage = str(exc)
        self.moved_aside = _move_aside(self._path)
        db = _open(self._path)
        self._db = db
        rows = list(_readable_rows(self.moved_aside))
        if rows:
            db.execute("BEGIN IMMEDIATE")
            for outgoing, created in rows:
                self._insert(outgoing, created)
            db.execute("COMMIT")
        self.salvaged = len(rows)
        log.error("outbox_damaged", reason=damage, moved_to=str(self.moved_aside), events_salvaged=self.salvaged)
        return db


def count_waiting(folder: Path) -> int:
    """How many events a file from an earlier run holds, without changing it; 0 when there is none to be read."""
    path = folder / FILE_NAME
    if not path.is_file():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM outbox").fetchone()[0])
    except sqlite3.Error:
        return 0


def _open(path: Path) -> sqlite3.Connection:
    # The descriptor is made first so that the file is private from its first moment: events carry addresses.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise ConfigError(
                f"{path} has format {version}, written by a newer version; this one reads up to format"
                f" {_SCHEMA_VERSION}: run the newer version, which delivers the events in it, or move the file away"
            )
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a power cut must not take back what a caller was told is safe
        db.execute("PRAGMA journal_size_limit = 4194304")
        problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(f"malformed: {problem}")
        db.execute(_SCHEMA)
        db.execute(f"SELECT {_COLUMNS} FROM outbox LIMIT 1")  # noqa: S608 - our own names
        db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    except BaseException:
        db.close()
        raise
    return db


def _is_damage(exc: sqlite3.DatabaseError) -> bool:
    text = str(exc)
    return any(word in text for word in ("malformed", "not a database", "no such column", "unsupported file format"))


def _move_aside(path: Path) -> Path:
    """Rename the file and its journals. The stamp keeps earlier ones; SQLite's suffixes keep the set together."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    target = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(target.with_name(target.name + suffix))
    return target


def _readable_rows(path: Path) -> Iterator[tuple[Outgoing, float]]:
    """What a damaged file still gives: rows until SQLite refuses, without those that are no valid message.

    A table with other columns gives nothing: which of them mean what cannot be known.
    """
    with contextlib.closing(sqlite3.connect(path)) as db, contextlib.suppress(sqlite3.Error):
        for row in db.execute(f"SELECT {_COLUMNS} FROM outbox ORDER BY seq"):  # noqa: S608 - our own names
            with contextlib.suppress(MessagingError):
                yield _stored(row).outgoing, float(row[6])


def _stored(row: Iterable[object]) -> Stored:
    seq, lane, contract, exchange, message_id, correlation_id, _, body = row
    try:
        orjson.loads(body)  # type: ignore[arg-type]  # damage shows as a wrong type or as broken JSON
        return Stored(
            int(seq),  # type: ignore[call-overload]
            Outgoing(
                UUID(str(message_id)),
                UUID(str(correlation_id)),
                str(lane),
                str(contract),
                str(exchange),
                bytes(body),  # type: ignore[call-overload]
            ),
        )
    except (TypeError, ValueError) as exc:
        raise MessagingError(f"row {seq} of the outbox is damaged: {exc}") from exc

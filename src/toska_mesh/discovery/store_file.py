"""The store's file: its layout, the number that says which layout it is, and what happens to a file of another one.

Nothing in the file is the only copy of a truth: the registry holds the instances, and their records travel along as
metadata. So a file that this version cannot read is moved aside, never deleted, and a new one is filled from the
registry; a daemon that refused to start would help nobody. Only a newer layout is refused: going back to an older
version by mistake should not cost what the newer one remembers.
"""

import contextlib
import sqlite3
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from toska_mesh.errors import ConfigError
from toska_mesh.telemetry import event_log

FORMAT = 1
"""`user_version` of the files we write; to be raised with every change of the tables."""
BUSY_SECONDS = 5.0
"""How long somebody else may hold the file, such as a person's sqlite3 shell."""

_SCHEMA = """
CREATE TABLE records (
    id TEXT PRIMARY KEY, service TEXT NOT NULL, address TEXT NOT NULL, port INTEGER NOT NULL, metadata BLOB NOT NULL,
    ttl_seconds INTEGER NOT NULL, registered_at TEXT NOT NULL, owner TEXT
) WITHOUT ROWID;
CREATE TABLE announced (
    id TEXT PRIMARY KEY, service TEXT NOT NULL, address TEXT NOT NULL, port INTEGER NOT NULL, metadata BLOB NOT NULL,
    status INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE begun (
    id TEXT PRIMARY KEY, service TEXT NOT NULL, is_departure INTEGER NOT NULL, correlation_id TEXT
) WITHOUT ROWID;
"""

log = event_log("discovery")


class UnreadableFileError(Exception):
    """The file holds something else than this version's tables; the text says what."""


def open_file(path: Path) -> sqlite3.Connection:
    """Open or create the file. Raises UnreadableFileError, ConfigError (a newer layout), OSError and sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
    try:
        _prepare(connection, path)
    except BaseException as exc:
        connection.close()
        if is_damage(exc):
            raise UnreadableFileError(str(exc)) from exc
        raise
    return connection


def is_damage(exc: BaseException) -> bool:
    """Whether the file's content is at fault, and not the disk, the folder or another process."""
    return isinstance(exc, sqlite3.DatabaseError) and not isinstance(exc, sqlite3.OperationalError)


def move_aside(path: Path, reason: str) -> None:
    """Make room for a new file. SQLite's suffixes keep the set together; the moment's stamp keeps earlier ones."""
    target = path.with_name(f"{path.name}.unreadable-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(target.with_name(target.name + suffix))
    log.error(
        "store_unreadable",
        reason=reason,
        moved_to=str(target),
        hint="starting anew from the registry; what only this file knew (beats to restore, owed events) is left there",
    )


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > FORMAT:
        raise ConfigError(
            f"{path} has format {found}, written by a newer version; this one reads up to format {FORMAT}:"
            " run the newer version, or move the file away to start anew from the registry"
        )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    if found == 0 and not _layout(connection):
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={FORMAT}; COMMIT;")
    elif found not in (0, FORMAT) or _layout(connection) != _our_layout():
        raise UnreadableFileError(f"format {found} has other tables than format {FORMAT}")
    elif found != FORMAT:  # written before files had a number, by a version with the same tables
        connection.execute(f"PRAGMA user_version={FORMAT}")


def _layout(connection: sqlite3.Connection) -> frozenset[tuple[str, str]]:
    """Every table with every column. The order of columns counts too, so it is part of the name."""
    rows = connection.execute(
        "SELECT tables.name, columns.cid || ' ' || columns.name"
        " FROM sqlite_master AS tables, pragma_table_info(tables.name) AS columns WHERE tables.type = 'table'"
    )
    return frozenset((table, column) for table, column in rows)


@cache
def _our_layout() -> frozenset[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_SCHEMA)
        return _layout(connection)

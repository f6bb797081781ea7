"""The state on disk: one SQLite file in WAL mode, one row per service, check, key and session.

Synchronous and single-threaded; `writer` calls `apply` in its thread. `synchronous=FULL`: a commit that returned
survives the loss of power, not only of the process. The connection holds the file exclusively, so a second registry on
the same folder is refused. So is a file of another format: it may be the only copy of somebody's keys, and only a
person can say that it is not. Why SQLite, and why so: docs/adr/0002-embedded-registry-speaks-consul.md.
"""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from toska_mesh.errors import ConfigError
from toska_mesh.registryd.changes import RowKey
from toska_mesh.registryd.state import Stored
from toska_mesh.registryd.values import (
    check_from_row,
    entry_from_row,
    service_from_row,
    session_from_row,
)

FORMAT = 1
"""`user_version` of the files we write."""
INDEX_RESERVE = 1_000_000
"""A commit promises that indexes up to this far above it count as used. Answers may show indexes of commands that are
not yet on disk; after a crash a start begins above them all, so no client ever sees an index go backwards. The number
only has to exceed the commands that can be under way at one moment."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE service (id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE "check" (id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE kv (id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE session (id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
"""
_PUT = {
    "service": "INSERT OR REPLACE INTO service VALUES (?, ?)",
    "check": 'INSERT OR REPLACE INTO "check" VALUES (?, ?)',
    "kv": "INSERT OR REPLACE INTO kv VALUES (?, ?)",
    "session": "INSERT OR REPLACE INTO session VALUES (?, ?)",
}
_DELETE = {
    "service": "DELETE FROM service WHERE id = ?",
    "check": 'DELETE FROM "check" WHERE id = ?',
    "kv": "DELETE FROM kv WHERE id = ?",
    "session": "DELETE FROM session WHERE id = ?",
}


class Store:
    """Open until `close`. Raises ConfigError when the file cannot be used at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # One thread at a time uses it: the writer's, and at start and end the loop's.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.2)
        except (OSError, sqlite3.Error) as exc:
            raise ConfigError(f"REGISTRY_DATA_DIR={str(path.parent)!r} cannot be used: {exc}") from exc
        try:
            self._prepare()
        except sqlite3.Error as exc:
            self._db.close()
            raise self._explained(exc) from exc

    def _prepare(self) -> None:
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("BEGIN IMMEDIATE")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        has_tables = bool(self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        if version == 0 and not has_tables:
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={FORMAT}")
            self._db.execute("INSERT INTO meta VALUES ('node_id', ?), ('index', '1')", (str(uuid4()),))
        elif version != FORMAT:
            self._db.execute("ROLLBACK")
            self._db.close()
            origin = "a newer version" if version > FORMAT else "another program or an older version"
            raise ConfigError(
                f"{self._path} has format {version}, written by {origin}; this registry reads format {FORMAT}: run the"
                " version that wrote it, move the file away to start empty, or set REGISTRY_DATA_DIR to another folder"
            )
        self._db.execute("COMMIT")

    def _explained(self, exc: sqlite3.Error) -> ConfigError:
        folder = str(self._path.parent)
        if "locked" in str(exc):
            return ConfigError(f"REGISTRY_DATA_DIR={folder!r} is in use by another registry; stop it or set another")
        return ConfigError(
            f"{self._path} cannot be read ({exc}); move it away to start empty, or set REGISTRY_DATA_DIR"
        )

    @property
    def node_id(self) -> str:
        return str(self._db.execute("SELECT value FROM meta WHERE name = 'node_id'").fetchone()[0])

    def load(self) -> Stored:
        """All that is there, and at once a new reserve of indexes."""
        try:
            index = int(self._db.execute("SELECT value FROM meta WHERE name = 'index'").fetchone()[0])
            stored = Stored(
                index=index,
                services=tuple(service_from_row(body) for body in self._bodies("service")),
                checks=tuple(check_from_row(body) for body in self._bodies('"check"')),
                entries=tuple(entry_from_row(body) for body in self._bodies("kv")),
                sessions=tuple(session_from_row(body) for body in self._bodies("session")),
            )
            self.apply({}, index)
        except (sqlite3.Error, ValueError, KeyError, TypeError) as exc:
            raise ConfigError(
                f"{self._path} cannot be read ({exc}); move it away to start empty, or set REGISTRY_DATA_DIR"
            ) from exc
        return stored

    def _bodies(self, table: str) -> list[bytes]:
        return [body for (body,) in self._db.execute(f"SELECT body FROM {table} ORDER BY id")]  # noqa: S608  # our own names

    def apply(self, rows: Mapping[RowKey, bytes | None], index: int) -> None:
        """Write the rows in one transaction; on disk when it returns. Raises sqlite3.Error if nothing was written."""
        self._commit(rows, index + INDEX_RESERVE)

    def _commit(self, rows: Mapping[RowKey, bytes | None], index: int) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for (table, key), body in rows.items():
                if body is None:
                    self._db.execute(_DELETE[table], (key,))
                else:
                    self._db.execute(_PUT[table], (key, body))
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'index'", (str(index),))
            self._db.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def close(self, index: int) -> None:
        """After a clean stop all is on disk, so the next start may go on right after `index`."""
        try:
            self._commit({}, index)
        finally:
            self._db.close()

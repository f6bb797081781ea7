"""Values in one SQLite file on this machine: the default, with no server to install.

All services of a user share the file, as they would share a Redis, and are kept apart by their prefixes; any number of
processes may have it open. WAL mode: readers never wait for a writer, and a process that is killed loses nothing it was
told is stored. What a power cut may take is the last moments, never the file (`synchronous=NORMAL`).

One thread per store does all the work, so the event loop never waits for a disk. Expired rows are invisible at once and
are swept up by later writes, a few at a time.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from toska_mesh.errors import ConfigError, KeyValueError, KeyValueUnavailableError
from toska_mesh.sdk.kv.backend import Page

T = TypeVar("T")

FILE_NAME: Final = "kv.sqlite3"
_SCHEMA_VERSION: Final = 1
_BUSY_SECONDS: Final = 1.0
"""How long one statement waits for another process's write; the store asks again while its deadline allows."""

_OPEN_TRIES: Final = 40
_OPEN_PAUSE_SECONDS: Final = 0.05
_SWEEP_EVERY_MS: Final = 10_000
_SWEEP_ROWS: Final = 500
_READ_CHUNK: Final = 500  # below SQLite's limit of bound variables (999 in old builds)
_LAST_CHARACTER: Final = "\U0010ffff"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
    key        TEXT PRIMARY KEY,  -- compared byte by byte
    value      TEXT NOT NULL,
    expires_at INTEGER            -- milliseconds since 1970; NULL: never
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entries_by_expiry ON entries (expires_at) WHERE expires_at IS NOT NULL;
"""

_NOT_NOW: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
)


def default_path(environ: Mapping[str, str] | None = None) -> Path:
    """The file of the user (XDG Base Directory: below `$XDG_STATE_HOME`, else `~/.local/state`), as the daemons do."""
    base = (os.environ if environ is None else environ).get("XDG_STATE_HOME") or "~/.local/state"
    try:
        return Path(base).expanduser() / "toska" / "kv" / FILE_NAME
    except RuntimeError as exc:  # a user without a home, as in containers
        raise ConfigError(f"there is no place for the key-value file: {exc}; name one in MESH_KV_SQLITE_PATH") from exc


def _utcnow() -> datetime:
    return datetime.now(UTC)


class SqliteBackend:
    """Implements `Backend`. `open` it before use. Times to live are counted on the wall clock, `utcnow`."""

    repeats_keys = False

    def __init__(self, path: Path, utcnow: Callable[[], datetime] = _utcnow) -> None:
        self.name = f"SQLite file {path}"
        self._path = path
        self._utcnow = utcnow
        self._next_sweep_ms = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="key-value")
        self._db: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Raises ConfigError when the file cannot be used."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._open)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    async def write(self, key: str, text: str, ttl_ms: int | None, if_absent: bool) -> bool:
        return await self._run(lambda db: self._write(db, key, text, ttl_ms, if_absent))

    async def read(self, key: str) -> str | None:
        return (await self.read_many([key]))[0]

    async def read_many(self, keys: Sequence[str]) -> Sequence[str | None]:
        return await self._run(lambda db: self._read(db, keys))

    async def remove(self, key: str) -> bool:
        return await self._run(lambda db: self._remove(db, key))

    async def page(self, prefix: str, size: int, cursor: str | None) -> Page:
        return await self._run(lambda db: self._page(db, prefix, size, cursor))

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._close)
        finally:
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._translated, work)

    # In the thread

    def _translated(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._db is None:
            raise KeyValueError(f"{self.name} is not open")
        try:
            return work(self._db)
        except sqlite3.Error as exc:
            code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # without the extension in the higher bits
            if code in _NOT_NOW:
                # A failed statement is rolled back whole; only a failing disk leaves doubt about the last commit.
                doubt = code == sqlite3.SQLITE_IOERR
                raise KeyValueUnavailableError(f"{self.name} cannot be used now: {exc}", doubt) from exc
            raise KeyValueError(f"{self.name} failed: {exc}") from exc

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            db = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as exc:
            raise self._unusable(str(exc)) from exc
        try:
            self._prepare(db)
        except sqlite3.Error as exc:
            db.close()
            raise self._unusable(str(exc)) from exc
        except BaseException:
            db.close()
            raise
        self._db = db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Another process may do the same at this moment: only one may switch the mode, so ask a few times."""
        for attempts_left in range(_OPEN_TRIES - 1, -1, -1):
            try:
                db.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError:
                if not attempts_left:
                    raise
                time.sleep(_OPEN_PAUSE_SECONDS)  # SQLite does not wait by itself for this one
        db.execute("PRAGMA synchronous=NORMAL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise self._unusable(f"it was written by a newer version (schema {version}, known is {_SCHEMA_VERSION})")
        if version < _SCHEMA_VERSION:
            db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}PRAGMA user_version={_SCHEMA_VERSION};COMMIT;")
        self._path.chmod(0o600)

    def _unusable(self, reason: str) -> ConfigError:
        return ConfigError(
            f"the key-value file {str(self._path)!r} cannot be used: {reason}; "
            "MESH_KV_SQLITE_PATH should name a file that can be written"
        )

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _now_ms(self) -> int:
        return int(self._utcnow().timestamp() * 1000)

    def _write(self, db: sqlite3.Connection, key: str, text: str, ttl_ms: int | None, if_absent: bool) -> bool:
        now = self._now_ms()
        self._sweep(db, now)
        expires_at = None if ttl_ms is None else now + ttl_ms
        condition = "WHERE entries.expires_at <= ?" if if_absent else ""
        done = db.execute(
            "INSERT INTO entries VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "  # noqa: S608
            f"SET value = excluded.value, expires_at = excluded.expires_at {condition}",
            (key, text, expires_at, *([now] if if_absent else [])),
        )
        return done.rowcount > 0

    def _sweep(self, db: sqlite3.Connection, now: int) -> None:
        if now < self._next_sweep_ms <= now + _SWEEP_EVERY_MS:  # a clock that was set back sweeps, too
            return
        swept = db.execute(
            "DELETE FROM entries WHERE key IN (SELECT key FROM entries WHERE expires_at <= ? LIMIT ?)",
            (now, _SWEEP_ROWS),
        ).rowcount
        self._next_sweep_ms = now if swept == _SWEEP_ROWS else now + _SWEEP_EVERY_MS

    def _read(self, db: sqlite3.Connection, keys: Sequence[str]) -> list[str | None]:
        now = self._now_ms()
        found: dict[str, str] = {}
        for start in range(0, len(keys), _READ_CHUNK):
            chunk = keys[start : start + _READ_CHUNK]
            marks = ",".join("?" * len(chunk))
            rows = db.execute(
                f"SELECT key, value FROM entries WHERE key IN ({marks}) AND (expires_at IS NULL OR expires_at > ?)",  # noqa: S608
                (*chunk, now),
            )
            found.update(rows)
        return [found.get(key) for key in keys]

    def _remove(self, db: sqlite3.Connection, key: str) -> bool:
        """An expired row counts as none; it stays for the sweep."""
        done = db.execute(
            "DELETE FROM entries WHERE key = ? AND (expires_at IS NULL OR expires_at > ?)", (key, self._now_ms())
        )
        return done.rowcount > 0

    def _page(self, db: sqlite3.Connection, prefix: str, size: int, cursor: str | None) -> Page:
        rows = db.execute(
            "SELECT key FROM entries WHERE key >= ? AND key > ? AND key < ? AND (expires_at IS NULL OR expires_at > ?) "
            "ORDER BY key LIMIT ?",
            (prefix, cursor or "", after_prefix(prefix), self._now_ms(), size),
        )
        keys = tuple(key for (key,) in rows)
        return Page(keys, keys[-1] if len(keys) == size else None)


def after_prefix(prefix: str) -> str:
    """The first text after all that begin with the prefix, in the order of code points, which is that of UTF-8."""
    stem = prefix.rstrip(_LAST_CHARACTER)
    if not stem:
        raise ValueError("no text comes after this prefix")  # a store's prefix ends with a colon at the latest
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)  # surrogates are no characters

"""Discovery's own memory on disk: records, what was announced, and what was begun but not yet announced.

SQLite in WAL mode, written by one thread. Writes that wait for the thread at the same time share one transaction, so a
burst of registrations costs few commits. `synchronous=NORMAL`: a killed process loses nothing; after a power cut the
last moments may be missing, and the registry, which is asked at every start, fills them in.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import orjson

from toska_mesh.discovery.known import Record, format_time, parse_time
from toska_mesh.discovery.store_file import UnreadableFileError, is_damage, move_aside, open_file
from toska_mesh.discovery.transitions import Announced
from toska_mesh.errors import ConfigError, MeshError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName

T = TypeVar("T")

FILE_NAME = "discovery.db"


class StoreError(MeshError):
    """The store could not be written (disk full, file damaged). The text is SQLite's own."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A change that a caller asked for and whose events may be missing: the registry knows whether it happened."""

    id: InstanceId
    service: ServiceName
    is_departure: bool = False
    correlation_id: str | None = None


@dataclass(slots=True)
class Remembered:
    """Everything that was on disk at the start."""

    records: dict[InstanceId, Record] = field(default_factory=dict)
    announced: dict[InstanceId, Announced] = field(default_factory=dict)
    begun: dict[InstanceId, Begun] = field(default_factory=dict)


Write = tuple[str, tuple[object, ...]]
"""One statement with its parameters; the functions below make them."""


def save_record(record: Record) -> Write:
    return (
        "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(record.id, record.service, record.address, record.port, orjson.dumps(dict(record.metadata))),
            *(record.ttl_seconds, format_time(record.registered_at), record.owner),
        ),
    )


def forget_record(instance_id: InstanceId) -> Write:
    return "DELETE FROM records WHERE id = ?", (instance_id,)


def save_announced(announced: Announced) -> Write:
    return (
        "INSERT OR REPLACE INTO announced VALUES (?, ?, ?, ?, ?, ?)",
        (
            *(announced.id, announced.service, announced.address, announced.port),
            *(orjson.dumps(dict(announced.metadata)), int(announced.status)),
        ),
    )


def forget_announced(instance_id: InstanceId) -> Write:
    return "DELETE FROM announced WHERE id = ?", (instance_id,)


def save_begun(begun: Begun) -> Write:
    parameters = (begun.id, begun.service, begun.is_departure, begun.correlation_id)
    return "INSERT OR REPLACE INTO begun VALUES (?, ?, ?, ?)", parameters


def forget_begun(instance_id: InstanceId) -> Write:
    return "DELETE FROM begun WHERE id = ?", (instance_id,)


@dataclass(slots=True)
class _Batch:
    """Writes that belong together, and how committing them went."""

    writes: tuple[Write, ...]
    error: sqlite3.Error | None = None


class Store:
    """An async context manager around the file. `remembered` is what was found there; this object does not keep it."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="discovery store")
        self._waiting: deque[_Batch] = deque()
        self._connection: sqlite3.Connection | None = None
        self.remembered = Remembered()

    async def __aenter__(self) -> Self:
        """Open or create the file; one that cannot be read is moved aside.

        Raises ConfigError when the folder cannot be used, or the file is a newer version's.
        """
        try:
            self.remembered = await self._in_thread(self._open)
        except ConfigError:
            self._thread.shutdown(wait=False)
            raise
        except (OSError, sqlite3.Error, UnreadableFileError) as exc:
            self._thread.shutdown(wait=False)
            raise ConfigError(f"DISCOVERY_DATA_DIR={str(self._path.parent)!r} cannot be used: {_words(exc)}") from exc
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    async def write(self, *writes: Write) -> None:
        """Return when the writes, all or none, are safe against a crash of this process. Raises StoreError."""
        batch = _Batch(writes)
        self._waiting.append(batch)
        await self._in_thread(self._commit_waiting)
        if batch.error is not None:
            raise StoreError(f"{self._path}: {batch.error}") from batch.error

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _open(self) -> Remembered:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return self._read()
        except UnreadableFileError as exc:
            move_aside(self._path, str(exc))
        return self._read()

    def _read(self) -> Remembered:
        connection = open_file(self._path)
        try:
            remembered = Remembered(
                {record.id: record for record in _records(connection)},
                {announced.id: announced for announced in _announced(connection)},
                {begun.id: begun for begun in _begun(connection)},
            )
        except (sqlite3.Error, ValueError, TypeError, AttributeError) as exc:
            connection.close()
            if isinstance(exc, sqlite3.Error) and not is_damage(exc):
                raise
            raise UnreadableFileError(str(exc)) from exc
        self._connection = connection
        return remembered

    def _close(self) -> None:
        self._commit_waiting()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _commit_waiting(self) -> None:
        """Commit whatever waits. A job that finds nothing was served by an earlier one."""
        batches: list[_Batch] = []
        while self._waiting:
            batches.append(self._waiting.popleft())  # only this thread takes, so it cannot be empty here
        connection = self._connection
        if not batches or connection is None:
            return
        try:
            connection.execute("BEGIN IMMEDIATE")
            for batch in batches:
                for statement, parameters in batch.writes:
                    connection.execute(statement, parameters)
            connection.execute("COMMIT")
        except sqlite3.Error as exc:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for batch in batches:
                batch.error = exc


def _words(exc: Exception) -> str:
    is_the_folder = isinstance(exc, OSError) or any(word in str(exc) for word in ("unable to open", "readonly"))
    return f"{exc}; it should be a folder that this user may write to" if is_the_folder else str(exc)


def _records(connection: sqlite3.Connection) -> Iterator[Record]:
    for id_, service, address, port, metadata, ttl, registered_at, owner in connection.execute(
        "SELECT id, service, address, port, metadata, ttl_seconds, registered_at, owner FROM records"
    ):
        moment = parse_time(registered_at)
        if moment is not None:
            name, instance_id = ServiceName(service), InstanceId(id_)
            yield Record(name, instance_id, address, port, orjson.loads(metadata), ttl, moment, owner)


def _announced(connection: sqlite3.Connection) -> Iterator[Announced]:
    for id_, service, address, port, metadata, status in connection.execute(
        "SELECT id, service, address, port, metadata, status FROM announced"
    ):
        name, instance_id = ServiceName(service), InstanceId(id_)
        yield Announced(name, instance_id, address, port, orjson.loads(metadata), HealthStatus(status))


def _begun(connection: sqlite3.Connection) -> Iterator[Begun]:
    for id_, service, is_departure, correlation_id in connection.execute(
        "SELECT id, service, is_departure, correlation_id FROM begun"
    ):
        yield Begun(InstanceId(id_), ServiceName(service), bool(is_departure), correlation_id)

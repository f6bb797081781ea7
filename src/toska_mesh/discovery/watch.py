"""Who follows which services, and what each has not been told yet.

One writer, many readers: `WatchHub` takes the newest catalog and verdicts, finds the watched services that differ and
marks them as due with those who follow them; a `Watcher` is one stream's side. What is due is a set of names, bounded
by what the stream follows, and is encoded when it is taken: a slow reader gets the newest state, never a backlog. The
network is the servicer's. Lives on one event loop.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Never, Self

from toska_mesh.aio import Latest
from toska_mesh.discovery.validation import InvalidArgumentError
from toska_mesh.discovery.watch_state import NOBODY_PROBES, EncodedService, ServiceView, encode, encode_staleness
from toska_mesh.errors import MeshError
from toska_mesh.model import NO_VERDICTS, CatalogSnapshot, Instance, ServiceName, Verdicts

MAX_NAMES_PER_STREAM = 1_000
MAX_NAMES = 200_000
"""Of all streams together: some 50 MB, mostly the names themselves."""

MAX_NAME_CHARS = 255
"""Nothing longer can be registered; what others registered under odd names may be followed too."""

UPDATE_BYTES = 64 * 1024
"""A message is sent once it is that large, so one that is not read holds no more, or one large service."""

STALENESS_PAUSE_SECONDS = 1.0
"""Between two messages about staleness alone, however often the registry comes and goes."""

NO_CATALOG = "discovery has not heard from the registry yet"


class LimitReachedError(MeshError):
    """Too much is followed already. The text is for the caller."""


class DrainingError(MeshError):
    """This discovery is leaving; another one will answer. The text is for the caller."""


@dataclass(frozen=True, slots=True)
class Update:
    """One message, encoded."""

    data: bytes
    again_bytes: int
    """What telling these services again amounts to for all the streams that follow them."""


class Watcher:
    """What one stream follows. Made by `WatchHub.open`, a context manager."""

    def __init__(self, hub: "WatchHub") -> None:
        self._hub = hub
        self._news = asyncio.Event()
        self._due: dict[ServiceName, None] = {}
        self._is_staleness_due = False
        self._is_over = asyncio.Event()
        self.names: dict[ServiceName, bool] = {}
        """What is followed, and whether it has been told once."""
        self.ended_by: MeshError | None = None
        """Why the stream should end; None while it goes on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.close_watcher(self)

    def add(self, names: Iterable[str]) -> None:
        """Follow these too; each is due at once. Raises LimitReachedError and InvalidArgumentError."""
        for name in map(ServiceName, names):
            if name in self.names:
                continue
            if not 0 < len(name) <= MAX_NAME_CHARS:
                raise InvalidArgumentError(f"a serviceName has {len(name)} characters, not 1 to {MAX_NAME_CHARS}")
            if len(self.names) >= MAX_NAMES_PER_STREAM:
                raise LimitReachedError(f"one stream follows at most {MAX_NAMES_PER_STREAM} services; open another one")
            self._hub.add_reader(name, self)
            self.names[name] = False
            self.tell(name)

    def tell(self, name: ServiceName) -> None:
        """The service is to be told (again)."""
        self._due[name] = None
        self._news.set()

    def tell_staleness(self) -> None:
        self._is_staleness_due = True
        self._news.set()

    def end(self, reason: MeshError) -> None:
        """Let the stream end; the first reason counts."""
        if self.ended_by is None:
            self.ended_by = reason
            self._is_over.set()
            self._news.set()

    async def news(self) -> None:
        """Wait until something may be due, or the stream should end."""
        await self._news.wait()

    async def rest(self, seconds: float) -> None:
        """Let time pass, but no longer than until the stream should end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_over.wait()

    def take(self, now: float) -> Update | None:
        """The next message, or None when nothing is due. Nothing is before there is a catalog."""
        if not self._hub.has_catalog or not (self._due or self._is_staleness_due):
            self._news.clear()
            return None
        pieces: list[bytes] = []
        size = again_bytes = 0
        while self._due and size < UPDATE_BYTES:
            name = next(iter(self._due))
            del self._due[name]
            pieces.append(self._hub.piece(name))
            size += len(pieces[-1])
            if self.names[name]:
                again_bytes += len(pieces[-1]) * self._hub.reader_count(name)
            self.names[name] = True
        self._is_staleness_due = False
        staleness = self._hub.staleness(now)
        # One piece is handed on as it is: all streams send the very same bytes.
        return Update(b"".join([*pieces, staleness]) if staleness or len(pieces) != 1 else pieces[0], again_bytes)


class WatchHub:
    """Owns the watchers and the encoded states of what they follow."""

    def __init__(self, max_watchers: int) -> None:
        self._max_watchers = max_watchers
        self._watchers: set[Watcher] = set()
        self._readers: dict[ServiceName, set[Watcher]] = {}
        self._name_count = 0
        self._catalog: CatalogSnapshot | None = None
        self._verdicts = NO_VERDICTS
        self._encoded: dict[ServiceName, EncodedService] = {}
        """Of services that somebody follows; may be older than the catalog until the piece is asked for."""
        self._fresh: set[ServiceName] = set()
        """Names whose encoded state is the newest."""
        self._stale_since = Latest[float | None]()
        self._is_draining = False

    @property
    def watcher_count(self) -> int:
        return len(self._watchers)

    @property
    def name_count(self) -> int:
        """Names followed, counted once per stream."""
        return self._name_count

    @property
    def has_catalog(self) -> bool:
        return self._catalog is not None

    def reader_count(self, name: ServiceName) -> int:
        return len(self._readers[name])

    async def run(self, catalog: Latest[CatalogSnapshot], verdicts: Latest[Verdicts]) -> Never:
        """Until cancelled, keep every watcher's dues right."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_catalog(catalog), name="watch catalog for streams")
            tasks.create_task(self._follow_verdicts(verdicts), name="watch verdicts for streams")
            async for _ in self._stale_since.updates():
                for watcher in self._watchers:
                    watcher.tell_staleness()
                await asyncio.sleep(STALENESS_PAUSE_SECONDS)
        raise AssertionError("updates never end")

    async def _follow_catalog(self, catalog: Latest[CatalogSnapshot]) -> Never:
        async for snapshot in catalog.updates():
            self.take_catalog(snapshot)
        raise AssertionError("updates never end")

    async def _follow_verdicts(self, verdicts: Latest[Verdicts]) -> Never:
        async for found in verdicts.updates():
            self.take_verdicts(found)
        raise AssertionError("updates never end")

    def take_catalog(self, snapshot: CatalogSnapshot) -> None:
        """A new catalog: what differs of what is followed becomes due. Costs nothing for names that nobody has."""
        before, self._catalog = self._catalog, snapshot
        self._tell(self._readers if before is None else _differing(before.services, snapshot.services))
        if (None if before is None else before.stale_since) != snapshot.stale_since:
            self._stale_since.set(snapshot.stale_since)

    def take_verdicts(self, verdicts: Verdicts) -> None:
        """The monitors' newest word."""
        before, self._verdicts = self._verdicts, verdicts
        self._tell(
            name
            for name in before.services.keys() | verdicts.services.keys()
            if (before.services.get(name), before.probed.get(name))
            != (verdicts.services.get(name), verdicts.probed.get(name))
        )

    def _tell(self, names: Iterable[ServiceName]) -> None:
        for name in names:
            self._fresh.discard(name)
            for reader in self._readers.get(name, ()):
                reader.tell(name)

    def piece(self, name: ServiceName) -> bytes:
        """The newest state of a followed service, encoded at most once per change."""
        if name not in self._fresh:
            encoded = encode(name, self._look(name), self._encoded.get(name))
            if not encoded.parts:  # quickly made, and there is no end of names that nobody has
                self._encoded.pop(name, None)
                return encoded.piece
            self._encoded[name] = encoded
            self._fresh.add(name)
        return self._encoded[name].piece

    def _look(self, name: ServiceName) -> ServiceView:
        instances = () if self._catalog is None else self._catalog.services.get(name, ())
        found = self._verdicts.services.get(name)
        if found is None:
            return ServiceView(instances)
        return ServiceView(instances, found, self._verdicts.probed.get(name, NOBODY_PROBES))

    def staleness(self, now: float) -> bytes:
        """What every message says about the registry; empty while it answers."""
        if self._catalog is None:
            return encode_staleness(NO_CATALOG, 0.0)
        if self._catalog.stale_since is None:
            return b""
        return encode_staleness(
            self._catalog.stale_reason or "the registry does not answer", now - self._catalog.stale_since
        )

    # --- watchers come and go -------------------------------------------------------------------------------------

    def open(self) -> Watcher:
        """A watcher that follows nothing yet. Raises LimitReachedError and DrainingError."""
        if self._is_draining:
            raise DrainingError("this discovery is stopping; ask another one, or this address again in a moment")
        if len(self._watchers) >= self._max_watchers:
            raise LimitReachedError(f"{self._max_watchers} streams are open, as many as this discovery keeps")
        watcher = Watcher(self)
        self._watchers.add(watcher)
        return watcher

    def close_watcher(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)
        self._name_count -= len(watcher.names)
        for name in watcher.names:
            readers = self._readers[name]
            readers.discard(watcher)
            if not readers:
                del self._readers[name]
                self._encoded.pop(name, None)
                self._fresh.discard(name)

    def add_reader(self, name: ServiceName, watcher: Watcher) -> None:
        """For `Watcher.add`. Raises LimitReachedError."""
        if self._name_count >= MAX_NAMES:
            raise LimitReachedError(f"all streams of this discovery together follow {MAX_NAMES} services already")
        self._name_count += 1
        self._readers.setdefault(name, set()).add(watcher)

    def drain(self) -> None:
        """End every stream, and let none begin."""
        self._is_draining = True
        for watcher in self._watchers:
            watcher.end(DrainingError("this discovery is stopping; ask another one"))


def _differing(
    before: Mapping[ServiceName, tuple[Instance, ...]], after: Mapping[ServiceName, tuple[Instance, ...]]
) -> Iterator[ServiceName]:
    """Services that changed: an unchanged one keeps the identical tuple (see the registry's `CatalogTable`)."""
    yield from (name for name, instances in after.items() if before.get(name) is not instances)
    yield from (name for name in before if name not in after)

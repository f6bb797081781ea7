"""The outbox: events are safe on disk before their publisher goes on, and stay there until the broker has them.

Writes of all publishers that wait at the same time share one transaction and one sync of the disk (group commit), made
in a thread. The outbox is bounded; at the bound it refuses new events, loudly, and never drops an old one.
State here (what waits, in which lane) lives on one event loop and is rebuilt from the file at start.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Never

from toska_mesh.errors import MessagingError, PublishError
from toska_mesh.messaging.envelope import Outgoing
from toska_mesh.messaging.lanes import Lanes
from toska_mesh.messaging.metrics import MessagingMetrics
from toska_mesh.messaging.store import Entry, OutboxStore, Stored
from toska_mesh.telemetry import event_log

_REPEAT_SECONDS: Final = 1.0  # until a failed removal is tried again
_ROW_OVERHEAD_BYTES: Final = 256
_SHRINK_BYTES: Final = 16 * 1024 * 1024  # a backlog that was larger leaves a file worth shrinking

log = event_log("messaging.outbox")


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """Bounds of the outbox. The defaults hold hours of a large mesh's changes and fit a small disk."""

    max_events: int = 100_000
    max_bytes: int = 256 * 1024 * 1024
    max_event_bytes: int = 1024 * 1024
    """Larger than any real event; far below what RabbitMQ takes (128 MiB)."""
    write_seconds: float = 5.0
    """How long a publisher waits for the disk before it is told that its event may not be safe."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    outgoing: Outgoing
    safe: asyncio.Future[None]


class Outbox:
    """Between publishers (`put`) and delivery (`take`, then `delivered` or `refused`). `run` must be running."""

    def __init__(
        self,
        store: OutboxStore,
        executor: Executor,
        metrics: MessagingMetrics,
        utcnow: Callable[[], datetime],
        limits: OutboxLimits = OutboxLimits(),  # frozen
    ) -> None:
        self._store = store
        self._executor = executor
        self._metrics = metrics
        self._utcnow = utcnow
        self._limits = limits
        self._lanes = Lanes()
        self._entries: dict[int, Entry] = {}
        self._bytes = 0
        self._most_bytes = 0
        self._added: list[_Waiting] = []
        self._added_bytes = 0
        self._removed: list[int] = []
        self._writing = 0
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._is_closing = False
        self._is_full = False
        for entry in store.entries():
            self._remember(entry)
        self._note_idle()

    @property
    def waiting(self) -> int:
        return len(self._entries) + len(self._added) + self._writing

    @property
    def waiting_bytes(self) -> int:
        return self._bytes + self._added_bytes

    @property
    def oldest_age_seconds(self) -> float:
        """Age of the oldest undelivered event, by the wall clock; 0 when there is none."""
        oldest = next(iter(self._entries.values()), None)
        return max(0.0, self._utcnow().timestamp() - oldest.created) if oldest else 0.0

    async def put(self, outgoing: Outgoing) -> None:
        """Return when the event is on the disk. Raises PublishError when it could not get there."""
        size = len(outgoing.body) + _ROW_OVERHEAD_BYTES
        self._check_room(outgoing, size)
        waiting = _Waiting(outgoing, asyncio.get_running_loop().create_future())
        self._added.append(waiting)
        self._added_bytes += size
        self._idle.clear()
        self._wake.set()
        try:
            async with asyncio.timeout(self._limits.write_seconds):
                await waiting.safe
        except TimeoutError as exc:
            self._metrics.refused.labels("disk").inc()
            raise PublishError(
                f"the disk took longer than {self._limits.write_seconds:g} s; the event may not be safe"
            ) from exc

    async def take(self, limit: int) -> list[Stored]:
        """Wait until something may be sent; give up to `limit` messages, each the only one of its lane under way.

        Raises MessagingError when the file cannot be read.
        """
        while not self._lanes.has_ready:
            self._ready.clear()
            await self._ready.wait()
        taken = self._lanes.take(limit)
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._store.load, [seq for seq, _ in taken]
            )
        except sqlite3.Error as exc:
            raise MessagingError(f"the outbox cannot be read: {exc}") from exc
        self._give_up_missing(taken, found)
        return found

    def delivered(self, stored: Stored) -> None:
        """The broker has it: forget it, let the next one of its lane go."""
        self._metrics.delivered.labels(stored.outgoing.contract).inc()
        self._forget(stored.seq, stored.outgoing.lane)

    def refused(self, stored: Stored) -> None:
        """The broker did not take it: it stays first of its lane, which waits for `release`."""
        self._lanes.hold(stored.outgoing.lane)

    def release(self, lane: str) -> None:
        self._lanes.release(lane)
        self._ready.set()

    def reset(self) -> None:
        """Nothing is under way any more: what is unconfirmed will be sent again, in order."""
        self._lanes.reset()
        self._ready.set()

    async def until_empty(self) -> None:
        """Wait until everything is delivered and the file knows it."""
        await self._idle.wait()

    async def run(self) -> Never:
        """Commit until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._commit()
        finally:
            self._is_closing = True
            self._fail(self._added, "the outbox is closed")

    async def close(self) -> None:
        """Refuse new events, write what waits for the disk. Call it while `run` still runs, then cancel `run`."""
        self._is_closing = True
        while self._added or self._removed or self._writing:
            self._wake.set()
            await asyncio.sleep(0.005)

    async def _commit(self) -> None:
        added, self._added = self._added, []
        removed, self._removed = self._removed, []
        if not added and not removed:
            return
        self._writing = len(added)
        now = self._utcnow().timestamp()
        try:
            seqs = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._store.apply, [waiting.outgoing for waiting in added], removed, now
            )
        except sqlite3.Error as exc:
            self._removed[:0] = removed
            self._fail(added, f"the outbox cannot be written: {exc}")
            log.error("outbox_write_failed", reason=str(exc), events_refused=len(added))
            if removed:  # the broker has these: only a restart in between would send them twice
                asyncio.get_running_loop().call_later(_REPEAT_SECONDS, self._wake.set)
        except BaseException:
            self._fail(added, "the outbox is closed")
            raise
        else:
            self._succeed(added, seqs, now)
        finally:
            self._writing = 0
        self._note_idle()
        if self._idle.is_set() and self._most_bytes > _SHRINK_BYTES:
            self._most_bytes = 0
            await self._shrink()

    async def _shrink(self) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._store.shrink)
        except sqlite3.Error as exc:  # only space is at stake
            log.warning("outbox_not_shrunk", reason=str(exc))

    def _succeed(self, added: list[_Waiting], seqs: list[int], now: float) -> None:
        for waiting, seq in zip(added, seqs, strict=True):
            outgoing = waiting.outgoing
            self._added_bytes -= len(outgoing.body) + _ROW_OVERHEAD_BYTES
            self._remember(Entry(seq, outgoing.lane, now, len(outgoing.body)))
            self._metrics.published.labels(outgoing.contract).inc()
            if not waiting.safe.done():
                waiting.safe.set_result(None)

    def _fail(self, added: list[_Waiting], reason: str) -> None:
        for waiting in added:
            self._added_bytes -= len(waiting.outgoing.body) + _ROW_OVERHEAD_BYTES
            if not waiting.safe.done():
                self._metrics.refused.labels("disk").inc()
                waiting.safe.set_exception(PublishError(reason))
        added.clear()

    def _remember(self, entry: Entry) -> None:
        self._entries[entry.seq] = entry
        self._bytes += entry.size_bytes + _ROW_OVERHEAD_BYTES
        self._most_bytes = max(self._most_bytes, self._bytes)
        self._lanes.add(entry.seq, entry.lane)
        self._ready.set()

    def _forget(self, seq: int, lane: str) -> None:
        entry = self._entries.pop(seq)
        self._bytes -= entry.size_bytes + _ROW_OVERHEAD_BYTES
        self._lanes.done(lane)
        self._removed.append(seq)
        self._wake.set()
        self._ready.set()
        if self._is_full and self.waiting < self._limits.max_events * 0.9:
            self._is_full = False
            log.info("outbox_has_room", waiting=self.waiting)

    def _give_up_missing(self, taken: list[tuple[int, str]], found: list[Stored]) -> None:
        """Rows the file no longer gives (damage): say so and go on, or their lanes would stand still for ever."""
        present = {stored.seq for stored in found}
        for seq, lane in taken:
            if seq not in present:
                log.error("event_lost", seq=seq, lane=lane, reason="the outbox file no longer holds it")
                self._metrics.lost.inc()
                self._forget(seq, lane)

    def _check_room(self, outgoing: Outgoing, size: int) -> None:
        if self._is_closing:
            self._metrics.refused.labels("closing").inc()
            raise PublishError("the outbox is closed")
        if len(outgoing.body) > self._limits.max_event_bytes:
            self._metrics.refused.labels("invalid").inc()
            raise PublishError(
                f"an event of {len(outgoing.body)} bytes is over the {self._limits.max_event_bytes} allowed"
            )
        if self.waiting >= self._limits.max_events or self.waiting_bytes + size > self._limits.max_bytes:
            self._metrics.refused.labels("full").inc()
            if not self._is_full:
                self._is_full = True
                log.error("outbox_full", waiting=self.waiting, bytes=self.waiting_bytes)
            raise PublishError(
                f"the outbox is full: {self.waiting} events, {self.waiting_bytes} bytes wait for the broker"
            )

    def _note_idle(self) -> None:
        if not self.waiting and not self._removed:
            self._idle.set()

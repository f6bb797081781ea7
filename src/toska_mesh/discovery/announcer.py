"""Tells the world what changed, and keeps in mind what it has been told.

The owner of the announced state. An event goes into the sink (safe on disk) before the announced state moves on, and
what a caller asked for is noted as begun before the registry is asked. So a crash at any point leaves a difference
between the announced state and the registry, and `Reconciler` announces it later: an event may come twice, never not
at all. All methods belong to one event loop.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from toska_mesh.discovery import store
from toska_mesh.discovery.metrics import DiscoveryMetrics
from toska_mesh.discovery.store import Begun, Store, StoreError
from toska_mesh.discovery.transitions import MANUAL, Announced, Stamp, events_between
from toska_mesh.errors import PublishError
from toska_mesh.messaging.api import EventSink
from toska_mesh.model import InstanceId
from toska_mesh.telemetry import event_log

log = event_log("discovery")


@dataclass(slots=True)
class _Turn:
    """Who works on one instance: changes take turns, so that events keep the order of what happened."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Announcer:
    """See the module's text. `announced` and `owed` are for reading only."""

    def __init__(self, store: Store, sink: EventSink, metrics: DiscoveryMetrics, stamp: Stamp) -> None:
        self._store = store
        self._sink = sink
        self._metrics = metrics
        self._stamp = stamp
        self._turns: dict[InstanceId, _Turn] = {}
        self._announced = store.remembered.announced
        self._owed = store.remembered.begun
        self._touched_at: dict[InstanceId, float] = {}
        self._moved: set[InstanceId] = {*self._announced, *self._owed}

    @property
    def announced(self) -> Mapping[InstanceId, Announced]:
        return self._announced

    @property
    def owed(self) -> Mapping[InstanceId, Begun]:
        """Changes that callers asked for and whose end we do not know, or could not announce."""
        return self._owed

    def is_busy(self, instance_id: InstanceId) -> bool:
        """Whether somebody is changing this instance right now."""
        return instance_id in self._turns

    def touched_at(self, instance_id: InstanceId) -> float | None:
        """When a change of this instance last ended here (the loop's clock), if lately."""
        return self._touched_at.get(instance_id)

    def take_moved(self) -> set[InstanceId]:
        """Instances that were changed here since the last time this was asked; at first, all that is remembered."""
        moved, self._moved = self._moved, set()
        return moved

    def forget_touches_before(self, moment: float) -> None:
        for instance_id in [key for key, touched in self._touched_at.items() if touched < moment]:
            del self._touched_at[instance_id]

    @asynccontextmanager
    async def turn(self, instance_id: InstanceId) -> AsyncIterator[None]:
        """Have the instance to oneself: its registry call and its events happen in the same order."""
        turn = self._turns.setdefault(instance_id, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            self._touched_at[instance_id] = asyncio.get_running_loop().time()
            self._moved.add(instance_id)
            turn.users -= 1
            if not turn.users:
                del self._turns[instance_id]

    @asynccontextmanager
    async def change(self, begun: Begun, *writes: store.Write) -> AsyncIterator[None]:
        """A change that a caller asked for, from before the registry is asked until it is announced.

        `writes` are made safe together with the note that it began. Left by an exception, the change stays owed: the
        registry may have made it nevertheless.
        """
        async with self.turn(begun.id):
            self._owed[begun.id] = begun
            await self.remember(*writes, store.save_begun(begun))
            yield

    async def announce(
        self,
        instance_id: InstanceId,
        after: Announced | None,
        correlation_id: str | None = None,
        reason: str = MANUAL,
        output: str = "",
        also: tuple[store.Write, ...] = (),
    ) -> None:
        """Publish what leads from the announced state to `after`, then remember it and `also`. The caller has the turn.

        When the events cannot be made safe now, the change stays owed and is announced later; nothing is raised, for
        the caller's request itself has been done.
        """
        before = self._announced.get(instance_id)
        stamp = Stamp(self._stamp.new_id, self._stamp.utcnow, correlation_id)
        try:
            for event in events_between(before, after, stamp, reason, output):
                await self._sink.publish(event)
                self._metrics.events.labels(type(event).__name__).inc()
        except PublishError as exc:
            self._owe(instance_id, before or after, after is None, correlation_id)
            log.error("event_not_safe", instance=instance_id, error=str(exc))
            return
        keep = self._adopt(instance_id, after)
        self._owed.pop(instance_id, None)
        await self.remember(*also, keep, store.forget_begun(instance_id))

    async def settle(self, instance_id: InstanceId, *writes: store.Write) -> None:
        """What was begun did not change the registry, or has been announced: nothing is owed any more."""
        self._owed.pop(instance_id, None)
        await self.remember(*writes, store.forget_begun(instance_id))

    async def adopt(self, changes: Mapping[InstanceId, Announced | None], *writes: store.Write) -> None:
        """Take over, without events, what others have announced. Ids that somebody is changing are left alone."""
        keeps = [self._adopt(key, after) for key, after in changes.items() if not self.is_busy(key)]
        await self.remember(*writes, *keeps)

    async def adopt_here(self, instance_id: InstanceId, after: Announced | None, *writes: store.Write) -> None:
        """The same for one instance whose turn the caller has."""
        await self.remember(*writes, self._adopt(instance_id, after))

    async def remember(self, *writes: store.Write) -> None:
        """Write to discovery's memory; a failure is logged and counted, not raised.

        The registry is what counts: an instance is rather registered without our memory than not at all.
        """
        if not writes:
            return
        try:
            await self._store.write(*writes)
        except StoreError as exc:
            self._metrics.store_errors.inc()
            log.error("store_not_written", error=str(exc))

    def _adopt(self, instance_id: InstanceId, after: Announced | None) -> store.Write:
        if after is None:
            self._announced.pop(instance_id, None)
            return store.forget_announced(instance_id)
        self._announced[instance_id] = after
        return store.save_announced(after)

    def _owe(
        self, instance_id: InstanceId, known: Announced | None, is_departure: bool, correlation_id: str | None
    ) -> None:
        if known is not None:
            self._owed.setdefault(instance_id, Begun(instance_id, known.service, is_departure, correlation_id))

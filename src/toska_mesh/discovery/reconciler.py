"""Announces what nobody asked for: expired, reaped and lost instances, and changes whose announcement was cut short.

Follows the catalog, compares it with what was announced and has `judgement` decide. A snapshot may be older than a
call that was just served, so nothing is announced on its word alone: the service is read once more, and an instance
that was touched meanwhile is left for the next round. Owns no truth: announced state is the announcer's, records are
the registrar's.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Never

from toska_mesh.aio import Latest
from toska_mesh.discovery import store
from toska_mesh.discovery.announcer import Announcer
from toska_mesh.discovery.judgement import Action, Circumstances, judge
from toska_mesh.discovery.known import record_of
from toska_mesh.discovery.notes import Notes
from toska_mesh.discovery.registrar import Registrar
from toska_mesh.discovery.transitions import MANUAL, Announced, Difference, difference_of, summary_of
from toska_mesh.errors import RegistryError
from toska_mesh.model import CatalogSnapshot, Instance, InstanceId, ServiceName
from toska_mesh.model import metadata as keys
from toska_mesh.registry.api import Registry
from toska_mesh.telemetry import event_log

ROUND_SECONDS = 0.5
READ_SECONDS = 5.0
READS_AT_ONCE = 8
TOUCH_SECONDS = 60.0
"""A snapshot is never older than this, so older touches need not be remembered."""

RECORD_SECONDS = 24 * 3600.0
"""How long an instance that is gone and does not beat can still come back by a beat."""

_TIDY_SECONDS = 60.0

log = event_log("discovery")


class Reconciler:
    """`await run()` in a task of its own; `round()` is one pass."""

    def __init__(
        self,
        registry: Registry,
        announcer: Announcer,
        registrar: Registrar,
        catalog: Latest[CatalogSnapshot],
        notes: Notes,
        is_leader: Callable[[], bool],
        utcnow: Callable[[], datetime],
    ) -> None:
        self._registry = registry
        self._announcer = announcer
        self._registrar = registrar
        self._catalog = catalog
        self._notes = notes
        self._is_leader = is_leader
        self._utcnow = utcnow
        self._services: Mapping[ServiceName, tuple[Instance, ...]] = {}
        self._observed: dict[InstanceId, Instance] = {}
        self._candidates: set[InstanceId] = set()
        self._seen: dict[InstanceId, tuple[Announced | None, float]] = {}
        """Since when an instance is seen in a state that differs."""
        self._missing_since: dict[InstanceId, float] = {}

    async def run(self) -> Never:
        tidy_at = asyncio.get_running_loop().time() + _TIDY_SECONDS
        while True:
            await self.round()
            if (now := asyncio.get_running_loop().time()) >= tidy_at:
                await self.tidy()
                tidy_at = now + _TIDY_SECONDS
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self) -> None:
        """Compare what has moved, and adopt or announce what is due. Does nothing while the catalog is stale."""
        snapshot = self._catalog.peek()
        if snapshot is None or snapshot.is_stale:
            return
        self._take(snapshot.services)
        self._candidates |= self._announcer.take_moved()
        now = asyncio.get_running_loop().time()
        adopted: list[Difference] = []
        unsure: dict[ServiceName, list[InstanceId]] = {}
        for instance_id in tuple(self._candidates):
            if self._announcer.is_busy(instance_id):
                continue
            difference = self._difference(instance_id)
            owed = self._announcer.owed.get(instance_id)
            if difference is None and owed is None:
                self._done(instance_id)
                continue
            action = Action.ANNOUNCE if difference is None else self._judge(difference, now)
            if action is Action.WAIT:
                continue
            if difference and action is Action.ADOPT and self._announcer.touched_at(instance_id) is None:
                adopted.append(difference)
            else:
                service = _service_of(difference) if difference else (owed.service if owed else ServiceName(""))
                unsure.setdefault(service, []).append(instance_id)
        await self._adopt(adopted)
        await self._look_closer(unsure)

    async def tidy(self) -> None:
        """Forget touches and records that are too old to matter."""
        now = asyncio.get_running_loop().time()
        self._announcer.forget_touches_before(now - TOUCH_SECONDS)
        await self._notes.sweep(now + READ_SECONDS)
        snapshot = self._catalog.peek()
        if snapshot is None or snapshot.is_stale:
            self._missing_since.clear()
            return
        missing = self._registrar.records.keys() - self._observed.keys()
        self._missing_since = {key: self._missing_since.get(key, now) for key in missing}
        for instance_id, since in self._missing_since.items():
            if now - since > RECORD_SECONDS and not self._announcer.is_busy(instance_id):
                await self._registrar.forget(instance_id)

    def _take(self, services: Mapping[ServiceName, tuple[Instance, ...]]) -> None:
        """Note which instances look different from the last snapshot; unchanged services cost one comparison."""
        if services is self._services:
            return
        before, self._services = self._services, services
        changed = [name for name in {*before, *services} if before.get(name) is not services.get(name)]
        for name in changed:
            for instance in before.get(name, ()):
                self._observed.pop(instance.id, None)
                self._candidates.add(instance.id)
        for name in changed:
            for instance in services.get(name, ()):
                if self._is_ours(instance):
                    self._observed[instance.id] = instance
                    self._candidates.add(instance.id)

    def _is_ours(self, instance: Instance) -> bool:
        """Members of the mesh, and whatever some discovery registered; not every database in the catalog."""
        return (
            instance.is_mesh_member
            or keys.REGISTERED_AT in instance.metadata
            or instance.id in self._announcer.announced
        )

    def _difference(self, instance_id: InstanceId) -> Difference | None:
        return difference_of(instance_id, self._announcer.announced.get(instance_id), self._observed.get(instance_id))

    def _judge(self, difference: Difference, now: float) -> Action:
        state, since = self._seen.get(difference.id, (None, now))
        if difference.id not in self._seen or state != difference.after:
            since = now
            self._seen[difference.id] = (difference.after, now)
        owed = self._announcer.owed.get(difference.id)
        return judge(
            difference,
            Circumstances(
                age_seconds=now - since,
                is_leader=self._is_leader(),
                is_owed=owed is not None and (difference.after is not None or owed.is_departure),
                beat_lives_seconds=self._beat_lives(difference.id),
            ),
        )

    def _beat_lives(self, instance_id: InstanceId) -> float:
        beat = self._registrar.last_beat(instance_id)
        record = self._registrar.records.get(instance_id)
        if beat is None or record is None:
            return 0.0
        return record.ttl_seconds - (self._utcnow() - beat).total_seconds()

    async def _adopt(self, differences: Iterable[Difference]) -> None:
        """Take over what others announced, and the records that let us register it again."""
        changes: dict[InstanceId, Announced | None] = {}
        writes: list[store.Write] = []
        for difference in differences:
            changes[difference.id] = difference.after
            observed = self._observed.get(difference.id)
            record = record_of(observed) if observed and difference.after else None
            if record is not None:
                self._registrar.remember(record)
                writes.append(store.save_record(record))
            self._done(difference.id)
        if changes:
            await self._announcer.adopt(changes, *writes)

    async def _look_closer(self, unsure: Mapping[ServiceName, list[InstanceId]]) -> None:
        waiting = iter(unsure.items())
        while batch := list(islice(waiting, READS_AT_ONCE)):
            async with asyncio.TaskGroup() as tasks:
                for service, instance_ids in batch:
                    tasks.create_task(self._confirm(service, instance_ids), name=f"confirm {service}")

    async def _confirm(self, service: ServiceName, instance_ids: list[InstanceId]) -> None:
        """Read the service anew and settle each of its instances that nobody has touched meanwhile."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        found: dict[InstanceId, Instance] = {}
        if service:
            try:
                instances = await self._registry.instances(service, started + READ_SECONDS)
            except RegistryError as exc:
                log.debug("difference_not_confirmed", service=service, error=str(exc))
                return
            found = {instance.id: instance for instance in instances}
        for instance_id in instance_ids:
            touched = self._announcer.touched_at(instance_id)
            if self._announcer.is_busy(instance_id) or (touched is not None and touched >= started):
                continue
            async with self._announcer.turn(instance_id):
                await self._settle(instance_id, found.get(instance_id))

    async def _settle(self, instance_id: InstanceId, observed: Instance | None) -> None:
        """The registry's fresh word about one instance whose turn we have."""
        before = self._announcer.announced.get(instance_id)
        difference = difference_of(instance_id, before, observed)
        owed = self._announcer.owed.get(instance_id)
        if owed is not None and (difference is None or (observed is None and not owed.is_departure)):
            await self._announcer.settle(instance_id)
            owed = None
        if difference is None:
            self._done(instance_id)
            return
        action = self._judge(difference, asyncio.get_running_loop().time())
        if action is Action.WAIT:
            return
        if action is Action.ANNOUNCE and owed is None and await self._is_explained(difference):
            action = Action.ADOPT
        after, record = difference.after, record_of(observed) if observed else None
        if record is not None:
            self._registrar.remember(record)
        keep = (store.save_record(record),) if record is not None else ()
        if owed is None and before is not None and after is not None and before.service == after.service:
            # Other content is somebody else's news, only the status is ours to tell.
            before = replace(after, status=before.status)
            await self._announcer.adopt_here(instance_id, before)
        if action is Action.ADOPT:
            await self._announcer.adopt_here(instance_id, after, *keep)
        else:
            change, reason = summary_of(before, after, difference.output)
            if after is None and owed is not None:
                await self._registrar.forget(instance_id)
                reason = MANUAL
            correlation_id = owed.correlation_id if owed else None
            await self._announcer.announce(instance_id, after, correlation_id, reason, difference.output, keep)
            service = _service_of(difference)
            is_owed = owed is not None
            log.info(
                "difference_announced",
                service=service,
                instance=instance_id,
                change=change,
                reason=reason,
                is_owed=is_owed,
            )
        self._done(instance_id)

    async def _is_explained(self, difference: Difference) -> bool:
        """Whether another replica has left word that it announces this."""
        status = difference.after.status if difference.after else None
        deadline = asyncio.get_running_loop().time() + READ_SECONDS
        return await self._notes.explains(difference.id, status, deadline)

    def _done(self, instance_id: InstanceId) -> None:
        self._candidates.discard(instance_id)
        self._seen.pop(instance_id, None)


def _service_of(difference: Difference) -> ServiceName:
    known = difference.after or difference.before
    return known.service if known else ServiceName("")

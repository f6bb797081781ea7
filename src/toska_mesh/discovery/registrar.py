"""What discovery does: register, deregister, take beats, look up. Both transports call this and nothing else.

Owns the records (what it could register again) and the beats. The registry stays the truth about what exists; this
class asks it under the caller's deadline, and has the announcer tell the world.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from toska_mesh.aio import Latest
from toska_mesh.discovery import address, store, validation
from toska_mesh.discovery.announcer import Announcer
from toska_mesh.discovery.auth import Gatekeeper
from toska_mesh.discovery.call import Call, patiently
from toska_mesh.discovery.known import Record, registry_metadata
from toska_mesh.discovery.metrics import DiscoveryMetrics
from toska_mesh.discovery.notes import Notes
from toska_mesh.discovery.store import Begun
from toska_mesh.discovery.transitions import Announced
from toska_mesh.discovery.validation import InvalidArgumentError, RegisterInstance
from toska_mesh.errors import InstanceNotFoundError, RegistryError, RegistryUnavailableError
from toska_mesh.model import CatalogSnapshot, HealthStatus, Instance, InstanceId, ServiceName, rules
from toska_mesh.model.metadata import own_metadata
from toska_mesh.registry.api import Registration, Registry
from toska_mesh.telemetry import event_log

log = event_log("discovery")
audit = event_log("discovery.audit")

REGISTERED_NOTE = "Service registered"
DEREGISTER_AFTER_SECONDS = 60  # Consul's own minimum
READ_SECONDS = 2.0
"""How long a lookup waits for the registry before it answers with the last known state."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """An answer about services or instances. `stale_reason` is set when it is only the last known state."""

    names: tuple[ServiceName, ...] = ()
    instances: tuple[Instance, ...] = ()
    stale_reason: str = ""


class Registrar:
    """See the module's text. Methods raise InvalidArgumentError, NotOwnerError and RegistryError."""

    def __init__(
        self,
        registry: Registry,
        announcer: Announcer,
        gatekeeper: Gatekeeper,
        catalog: Latest[CatalogSnapshot],
        metrics: DiscoveryMetrics,
        records: dict[InstanceId, Record],
        notes: Notes,
        new_id: Callable[[], UUID],
        utcnow: Callable[[], datetime],
    ) -> None:
        self._registry = registry
        self._announcer = announcer
        self._gatekeeper = gatekeeper
        self._catalog = catalog
        self._metrics = metrics
        self._records = records
        self._notes = notes
        self._new_id = new_id
        self._utcnow = utcnow
        self._beats: dict[InstanceId, datetime] = {}
        self._reported: dict[InstanceId, HealthStatus] = {}
        metrics.known_instances.set_function(lambda: len(records))

    @property
    def records(self) -> Mapping[InstanceId, Record]:
        return self._records

    def last_beat(self, instance_id: InstanceId) -> datetime | None:
        """When this replica last took a beat of the instance (UTC)."""
        return self._beats.get(instance_id)

    async def register(self, call: Call, asked: RegisterInstance) -> InstanceId:
        """Register, or replace what is registered under the id. Returns the id, made here when none was asked for."""
        asked = validation.check_registration(asked)
        instance_id = asked.id or InstanceId(f"{asked.service}-{self._new_id().hex}")
        known = self._records.get(instance_id)
        self.check_owner(call, instance_id)
        record = Record(
            service=asked.service,
            id=instance_id,
            address=address.resolve(asked.address, call.ip),
            port=asked.port,
            metadata=own_metadata(asked.metadata),
            ttl_seconds=rules.ttl_seconds(asked.health_check.interval_seconds),
            registered_at=self._registered_since(instance_id, asked.service) or self._utcnow(),
            owner=call.identity.service_id if call.identity else None,
        )
        if known is not None and known.owner is not None and record.owner != known.owner:
            record = replace(record, owner=known.owner)  # an Admin's hand does not take it over
        was_told = instance_id in self._announcer.announced
        self._warn_of_twins(call, known, record)
        try:
            await self._put(call, record, HealthStatus.HEALTHY, REGISTERED_NOTE)
        except RegistryUnavailableError:
            if not asked.id:  # nobody was told this id, so no beat can ever complete it
                await self.forget(instance_id)
            raise
        kind = "new" if known is None or not was_told else ("same" if known.has_content_of(record) else "changed")
        self._metrics.registrations.labels(kind).inc()
        audit.info("instance_registered", kind=kind, **_who(call), **_what(record))
        return instance_id

    async def deregister(self, call: Call, instance_id: InstanceId) -> bool:
        """Remove on purpose: beats will not bring the instance back. False when nobody knows the id."""
        validation.check_instance_id(instance_id)
        self.check_owner(call, instance_id)
        record = self._records.get(instance_id)
        announced = self._announcer.announced.get(instance_id)
        known = record or announced
        service = known.service if known else ServiceName("")
        async with self._announcer.change(Begun(instance_id, service, True, call.correlation_id)):
            await self._leave_note(call, instance_id, None)
            try:
                await patiently(lambda: self._registry.deregister(instance_id, call.deadline), call.deadline)
                was_there = True
            except InstanceNotFoundError:
                was_there = known is not None
            self._forget(instance_id)
            await self._announcer.announce(
                instance_id, None, call.correlation_id, also=(store.forget_record(instance_id),)
            )
        audit.info(
            "instance_deregistered" if was_there else "deregistration_of_unknown_instance",
            service=service,
            instance=instance_id,
            **_who(call),
        )
        return was_there

    async def report_health(self, call: Call, instance_id: InstanceId, status: int, output: str) -> bool:
        """Take a beat. False when the id was never registered here, or was deregistered on purpose."""
        validation.check_instance_id(instance_id)
        health = validation.check_status(status)
        output = rules.shorten_output(output)
        self.check_owner(call, instance_id)
        try:
            if self._is_news(instance_id, health):
                await self._report_change(call, instance_id, health, output)
            else:
                await self._registry.report_health(instance_id, health, output, call.deadline)
        except InstanceNotFoundError:
            if not await self._restore(call, instance_id, health, output):
                return False
        self._reported[instance_id] = health
        self._beats[instance_id] = self._utcnow()
        return True

    async def replace_metadata(self, call: Call, instance_id: InstanceId, metadata: Mapping[str, str]) -> bool:
        """Register the instance again with other metadata and the same health. False when nobody knows the id."""
        validation.check_metadata(metadata)
        instance = await self.find(call, instance_id)
        record = self._records.get(instance_id)
        if instance is None or record is None:
            return False
        self.check_owner(call, instance_id)
        changed = replace(record, metadata=own_metadata(metadata))
        status = HealthStatus.HEALTHY if instance.status is HealthStatus.UNKNOWN else instance.status
        await self._put(call, changed, status, instance.output or REGISTERED_NOTE)
        self._metrics.registrations.labels("same" if record.has_content_of(changed) else "changed").inc()
        audit.info("metadata_replaced", **_who(call), **_what(changed))
        return True

    async def instances(self, call: Call, service: ServiceName) -> Lookup:
        """All instances of the service, straight from the registry, so that every caller reads its own writes.

        While the registry cannot be asked, the last known ones with a reason; an outage is never an empty answer, so
        RegistryUnavailableError is raised when nothing is known of the service.
        """
        if not service:
            raise InvalidArgumentError("serviceName is empty; name the service whose instances you want")
        try:
            return Lookup(instances=await self._registry.instances(service, self._read_deadline(call)))
        except RegistryUnavailableError as exc:
            snapshot = self._catalog.peek()
            last_known = snapshot.services.get(service) if snapshot else None
            if not last_known:
                raise
            return Lookup(instances=last_known, stale_reason=str(exc))

    async def service_names(self, call: Call) -> Lookup:
        """Every service's name, sorted; see `instances` for the registry's absence."""
        try:
            return Lookup(names=await self._registry.service_names(self._read_deadline(call)))
        except RegistryUnavailableError as exc:
            snapshot = self._catalog.peek()
            if not snapshot or not snapshot.services:
                raise
            return Lookup(names=tuple(sorted(snapshot.services)), stale_reason=str(exc))

    async def find(self, call: Call, instance_id: InstanceId) -> Instance | None:
        """One instance by its id, or None. Known are those registered through discovery or seen in the catalog."""
        return next(iter((await self.look_up(call, instance_id)).instances), None)

    async def look_up(self, call: Call, instance_id: InstanceId) -> Lookup:
        """The same as one instance or none, marked when the answer is only the last known state."""
        service = self._service_of(instance_id)
        if service is None:
            return Lookup()
        found = await self.instances(call, service)
        return replace(found, instances=tuple(item for item in found.instances if item.id == instance_id))

    def check_owner(self, call: Call, instance_id: InstanceId) -> None:
        """Raises NotOwnerError when the instance belongs to another identity than the caller's."""
        record = self._records.get(instance_id)
        self._gatekeeper.check_owner(call.identity, record.owner if record else None, instance_id)

    def remember(self, record: Record) -> None:
        """Another replica registered this one; the caller has made it safe on disk."""
        self._records[record.id] = record

    async def forget(self, instance_id: InstanceId) -> None:
        """The instance cannot come back by a beat any more."""
        self._forget(instance_id)
        await self._announcer.remember(store.forget_record(instance_id))

    async def _put(self, call: Call, record: Record, status: HealthStatus, note: str) -> None:
        before = self._records.get(record.id)
        keep = store.save_record(record)
        begun = Begun(record.id, record.service, False, call.correlation_id)
        async with self._announcer.change(begun, keep):
            # Kept even if the registry is down right now: the service's beats will then make up for it.
            self._records[record.id] = record
            try:
                await self._register(call, record, status, note)
            except RegistryUnavailableError:
                raise
            except RegistryError:
                await self._take_back(record.id, before)
                raise

    async def _register(self, call: Call, record: Record, status: HealthStatus, note: str) -> None:
        """The registry's part and the event; the caller has begun the change."""
        registration = Registration(
            service=record.service,
            id=record.id,
            address=record.address,
            port=record.port,
            metadata=registry_metadata(record),
            ttl_seconds=record.ttl_seconds,
            deregister_after_seconds=DEREGISTER_AFTER_SECONDS,
            status=status,
            note=note,
        )
        await self._leave_note(call, record.id, status)
        await patiently(lambda: self._registry.register(registration, call.deadline), call.deadline)
        self._reported[record.id] = status
        after = Announced(record.service, record.id, record.address, record.port, record.metadata, status)
        await self._announcer.announce(record.id, after, call.correlation_id, output=note)

    async def _leave_note(self, call: Call, instance_id: InstanceId, status: HealthStatus | None) -> None:
        """Tell the leader that this change is ours to announce, unless it would not take it for the registry's."""
        announced = self._announcer.announced.get(instance_id)
        if announced is not None and announced.status is not status:
            await self._notes.leave(instance_id, status, call.deadline)

    async def _take_back(self, instance_id: InstanceId, before: Record | None) -> None:
        if before is None:
            self._forget(instance_id)
            await self._announcer.settle(instance_id, store.forget_record(instance_id))
        else:
            self._records[instance_id] = before
            await self._announcer.settle(instance_id, store.save_record(before))

    def _registered_since(self, instance_id: InstanceId, service: ServiceName) -> datetime | None:
        """Since when the world has known this registration; None for a new one.

        A record alone does not count: it may be of a try that met an outage, or of an instance that was told gone.
        """
        record, announced = self._records.get(instance_id), self._announcer.announced.get(instance_id)
        if record is None or announced is None or announced.service != service or record.service != service:
            return None
        return record.registered_at

    def _warn_of_twins(self, call: Call, known: Record | None, asked: Record) -> None:
        """Two processes under one id take the instance from each other, and each one's beats keep the other's alive.

        A process that died without a word and is back within its time to live looks the same.
        """
        if known is None or known.is_at_the_place_of(asked):
            return
        heard_at = self._beats.get(known.id, known.registered_at)
        silent = (self._utcnow() - heard_at).total_seconds()
        if silent <= known.ttl_seconds:
            log.warning(
                "instance_replaced_by_another",
                instance=asked.id,
                service=asked.service,
                address=f"{asked.address}:{asked.port}",
                former_service=known.service,
                former_address=f"{known.address}:{known.port}",
                heard_seconds_ago=round(silent, 1),
                consequence="the former gets no more requests; unless this is its restart, give each an id of its own",
                peer=call.peer,
            )

    def _is_news(self, instance_id: InstanceId, status: HealthStatus) -> bool:
        """Whether this beat changes what the instance says of itself.

        What the registry makes of it together with other checks is not compared here: the reconciler sees that.
        """
        reported = self._reported.get(instance_id)
        return reported is not None and reported is not status

    async def _report_change(self, call: Call, instance_id: InstanceId, status: HealthStatus, output: str) -> None:
        announced = self._announcer.announced.get(instance_id)
        service = announced.service if announced else ServiceName("")
        async with self._announcer.change(Begun(instance_id, service, False, call.correlation_id)):
            await self._leave_note(call, instance_id, status)
            await self._registry.report_health(instance_id, status, output, call.deadline)
            announced = self._announcer.announced.get(instance_id)
            if announced is None:
                await self._announcer.settle(
                    instance_id
                )  # registered elsewhere a moment ago: that one is announcing it
            else:
                after = replace(announced, status=status)
                await self._announcer.announce(instance_id, after, call.correlation_id, output=output)

    async def _restore(self, call: Call, instance_id: InstanceId, status: HealthStatus, output: str) -> bool:
        """Register an instance again that still beats but that the registry has lost."""
        record = self._records.get(instance_id)
        if record is None:
            return False
        async with self._announcer.change(Begun(instance_id, record.service, False, call.correlation_id)):
            record = self._records.get(instance_id)
            if record is None:  # deregistered on purpose while we waited for our turn
                await self._announcer.settle(instance_id)
                return False
            if self._registered_since(instance_id, record.service) is None:
                record = replace(record, registered_at=self._utcnow())
                self._records[instance_id] = record
                await self._announcer.remember(store.save_record(record))
            await self._register(call, record, status, output)
        self._metrics.registrations.labels("restored").inc()
        audit.info("instance_restored", reason="the registry had lost it", **_who(call), **_what(record))
        return True

    def _read_deadline(self, call: Call) -> float:
        """Less than the caller's, when there is something else to answer with than the registry's silence."""
        if self._catalog.peek() is None:
            return call.deadline
        return min(call.deadline, asyncio.get_running_loop().time() + READ_SECONDS)

    def _service_of(self, instance_id: InstanceId) -> ServiceName | None:
        known = self._records.get(instance_id) or self._announcer.announced.get(instance_id)
        if known is not None:
            return known.service
        snapshot = self._catalog.peek()
        for service, instances in snapshot.services.items() if snapshot else ():
            if any(instance.id == instance_id for instance in instances):
                return service
        return None

    def _forget(self, instance_id: InstanceId) -> None:
        self._records.pop(instance_id, None)
        self._beats.pop(instance_id, None)
        self._reported.pop(instance_id, None)


def _who(call: Call) -> dict[str, object]:
    identity = call.identity.service_id if call.identity else None
    return {"peer": call.peer, "identity": identity, "correlation_id": call.correlation_id}


def _what(record: Record) -> dict[str, object]:
    place = f"{record.address}:{record.port}"
    return {"service": record.service, "instance": record.id, "address": place, "ttl_seconds": record.ttl_seconds}

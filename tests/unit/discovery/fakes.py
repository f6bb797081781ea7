"""Honest stand-ins behind the protocols: a registry in memory that can be away, a sink that keeps what it is given."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from prometheus_client import CollectorRegistry

from toska_mesh.aio import Latest
from toska_mesh.discovery.announcer import Announcer
from toska_mesh.discovery.auth import AuthMode, Gatekeeper
from toska_mesh.discovery.call import Call
from toska_mesh.discovery.known import parse_time
from toska_mesh.discovery.metrics import DiscoveryMetrics
from toska_mesh.discovery.notes import Notes
from toska_mesh.discovery.reconciler import Reconciler
from toska_mesh.discovery.registrar import Registrar
from toska_mesh.discovery.store import Store
from toska_mesh.discovery.transitions import Stamp
from toska_mesh.errors import InstanceNotFoundError, PublishError, RegistryError, RegistryUnavailableError
from toska_mesh.messaging import SinkState
from toska_mesh.model import (
    CatalogSnapshot,
    Endpoint,
    HealthStatus,
    Instance,
    InstanceDeregistered,
    InstanceHealthChanged,
    InstanceId,
    InstanceRegistered,
    MeshMessage,
    ServiceName,
)
from toska_mesh.model import metadata as keys
from toska_mesh.registry.api import Registration

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class MemoryRegistry:
    """A `Registry`. `trouble`, when set, is raised by every call; `takes_seconds` is how long each call lasts."""

    def __init__(self) -> None:
        self.registered: dict[InstanceId, Instance] = {}
        self.ttl: dict[InstanceId, int] = {}
        self.trouble: RegistryError | None = None
        self.takes_seconds = 0.0
        self.calls: list[str] = []

    async def _answer(self, call: str) -> None:
        self.calls.append(call)
        await asyncio.sleep(self.takes_seconds)
        if self.trouble is not None:
            raise self.trouble

    async def register(self, registration: Registration, deadline: float | None = None) -> None:
        await self._answer("register")
        self.ttl[registration.id] = registration.ttl_seconds
        self.registered[registration.id] = Instance(
            service=registration.service,
            id=registration.id,
            endpoint=Endpoint(registration.address, registration.port),
            status=registration.status,
            metadata=dict(registration.metadata),
            registered_at=parse_time(registration.metadata.get(keys.REGISTERED_AT, "")),
            output=registration.note,
        )

    async def deregister(self, instance_id: InstanceId, deadline: float | None = None) -> None:
        await self._answer("deregister")
        if self.registered.pop(instance_id, None) is None:
            raise InstanceNotFoundError(instance_id)

    async def report_health(
        self, instance_id: InstanceId, status: HealthStatus, output: str, deadline: float | None = None
    ) -> None:
        await self._answer("report_health")
        if instance_id not in self.registered:
            raise InstanceNotFoundError(instance_id)
        self.change(instance_id, status=status, output=output)

    async def service_names(self, deadline: float | None = None) -> tuple[ServiceName, ...]:
        await self._answer("service_names")
        return tuple(sorted({instance.service for instance in self.registered.values()}))

    async def instances(self, service: ServiceName, deadline: float | None = None) -> tuple[Instance, ...]:
        await self._answer("instances")
        return tuple(i for key, i in sorted(self.registered.items()) if i.service == service)

    async def leader(self, deadline: float | None = None) -> str:
        await self._answer("leader")
        return "127.0.0.1:8300"

    def change(self, instance_id: InstanceId, **fields: object) -> None:
        old = self.registered[instance_id]
        kept = {name: getattr(old, name) for name in Instance.__dataclass_fields__}
        self.registered[instance_id] = Instance(**kept | fields)

    def snapshot(self, version: int = 1) -> CatalogSnapshot:
        services: dict[ServiceName, list[Instance]] = {}
        for instance in self.registered.values():
            services.setdefault(instance.service, []).append(instance)
        return CatalogSnapshot({name: tuple(found) for name, found in services.items()}, version)


class MemoryKeys:
    """Keys of the registry that replicas share."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes, deadline: float | None = None) -> None:
        self.values[key] = value

    async def get(self, key: str, deadline: float | None = None) -> bytes | None:
        return self.values.get(key)

    async def delete(self, key: str, deadline: float | None = None) -> None:
        self.values.pop(key, None)

    async def all_below(self, prefix: str, deadline: float | None = None) -> Mapping[str, bytes]:
        return {key: value for key, value in self.values.items() if key.startswith(prefix)}


class KeepingSink:
    """An `EventSink`. `is_full` refuses, `gate` (cleared) makes publishers wait."""

    def __init__(self) -> None:
        self.events: list[MeshMessage] = []
        self.is_full = False

    async def publish(self, message: MeshMessage) -> None:
        await asyncio.sleep(0)
        if self.is_full:
            raise PublishError("the outbox is full")
        self.events.append(message)

    @property
    def state(self) -> SinkState:
        return SinkState(is_enabled=True)

    def told(self) -> list[tuple[str, ...]]:
        """The events in short, oldest first."""
        return [short(event) for event in self.events]


def short(event: MeshMessage) -> tuple[str, ...]:
    match event:
        case InstanceRegistered():
            return ("registered", event.instance_id)
        case InstanceDeregistered():
            return ("deregistered", event.instance_id, event.reason or "")
        case InstanceHealthChanged():
            return ("health", event.instance_id, event.previous.label, event.current.label)
        case _:
            raise AssertionError(event)


@dataclass
class World:
    """Discovery's parts over the stand-ins, with a clock that a test moves."""

    folder: Path
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    sink: KeepingSink = field(default_factory=KeepingSink)
    keys: MemoryKeys = field(default_factory=MemoryKeys)
    is_leader: bool = True
    auth: AuthMode = "off"
    now: datetime = START

    async def __aenter__(self) -> "World":
        numbers = iter(range(1, 1_000_000))
        self.new_id: Callable[[], UUID] = lambda: UUID(int=next(numbers))
        self.store = await Store(self.folder).__aenter__()
        metrics = DiscoveryMetrics(CollectorRegistry())
        self.catalog = Latest[CatalogSnapshot]()
        self.gatekeeper = Gatekeeper(self.auth, "s" * 31 + "x" * 9, "issuer", "audience", self.utcnow)
        self.announcer = Announcer(self.store, self.sink, metrics, Stamp(self.new_id, self.utcnow))
        notes = Notes(self.keys, lambda: self.is_leader, self.utcnow)
        self.registrar = Registrar(
            self.registry,
            self.announcer,
            self.gatekeeper,
            self.catalog,
            metrics,
            self.store.remembered.records,
            notes,
            self.new_id,
            self.utcnow,
        )
        self.reconciler = Reconciler(
            self.registry, self.announcer, self.registrar, self.catalog, notes, lambda: self.is_leader, self.utcnow
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.store.__aexit__(None, None, None)

    def utcnow(self) -> datetime:
        return self.now

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.now += timedelta(seconds=seconds)

    def call(self, seconds: float = 5.0, **fields: object) -> Call:
        return Call(deadline=asyncio.get_running_loop().time() + seconds, **fields)  # type: ignore[arg-type]

    async def observe(self, rounds: int = 3) -> None:
        """The follower shows the registry as it is, and the reconciler looks a few times."""
        self.catalog.set(self.registry.snapshot())
        for _ in range(rounds):
            await self.reconciler.round()
            await self.pass_time(0.6)


UNAVAILABLE = RegistryUnavailableError("nobody answers")

"""What the mesh asks of a registry. `registry.consul` is the one implementation; it speaks Consul's HTTP API to a real
Consul or to `toska-registry`.

Deadlines are points on the running loop's clock (`loop.time()`); None means the implementation's own default. Every
method raises `RegistryUnavailableError` when the registry cannot be asked and `RegistryError` when it refuses; neither
is ever turned into an empty answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Never, Protocol

from toska_mesh.aio import Latest
from toska_mesh.errors import RegistryError
from toska_mesh.model import CatalogSnapshot, HealthStatus, Instance, InstanceId, ServiceName, Verdicts

_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Registration:
    """An instance to be registered with one TTL check `service:<id>` (control-plane layout of the mesh family)."""

    service: ServiceName
    id: InstanceId
    address: str
    port: int
    metadata: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    ttl_seconds: int = 35
    deregister_after_seconds: int = 60
    """How long the check may stay critical before the registry removes the instance."""
    status: HealthStatus = HealthStatus.HEALTHY
    """State of the check from the first moment, so that there is no critical window after registering."""
    note: str = "Service registered"


class Registry(Protocol):
    """Commands and questions."""

    async def register(self, registration: Registration, deadline: float | None = None) -> None:
        """Create or replace the instance and its check."""

    async def deregister(self, instance_id: InstanceId, deadline: float | None = None) -> None:
        """Remove the instance. Raises InstanceNotFoundError when there is none."""

    async def report_health(
        self, instance_id: InstanceId, status: HealthStatus, output: str, deadline: float | None = None
    ) -> None:
        """Renew the TTL check with this status. Raises InstanceNotFoundError when there is no such check.

        `UNKNOWN` is refused with ValueError: it says nothing, so it must not keep an instance alive.
        """

    async def service_names(self, deadline: float | None = None) -> tuple[ServiceName, ...]:
        """Names of all services but the registry's own (`consul`), sorted."""

    async def instances(self, service: ServiceName, deadline: float | None = None) -> tuple[Instance, ...]:
        """All instances of a service whatever their health, sorted by id; empty when there is no such service."""

    async def leader(self, deadline: float | None = None) -> str:
        """Address of the registry's leader: the cheapest proof that it can serve. Raises when there is none."""


class CatalogFollower(Protocol):
    """Keeps a `Latest` at the registry's newest state. A gateway does not care what feeds it."""

    async def follow(self, catalog: Latest[CatalogSnapshot]) -> Never:
        """Run until cancelled. Publishes a snapshot at every change, and one more when staleness begins or ends.

        The first snapshot is published only when the registry (or a snapshot from disk) gave one.
        """


class RefreshReason(StrEnum):
    """What made a follower publish."""

    FIRST = "first"
    CHANGE = "change"
    STALE = "stale"
    FRESH = "fresh"
    GRACE_OVER = "grace_over"
    """The registry's word is taken again for instances that were held after an outage."""


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """One published snapshot, for logs and metrics."""

    reason: RefreshReason
    version: int
    duration_seconds: float
    """From the wake-up of the first watch that noticed something to the moment of publishing."""
    changed_services: int
    read_services: int
    """How many services were read again for it."""
    held_instances: int
    """Shown although the registry, just back from an outage, does not list them as usable."""


class VerdictBoard(Protocol):
    """Where a health monitor writes what it found, bound to its own life: dead monitor, no verdicts."""

    async def run(self, verdicts: Latest[Verdicts]) -> Never:
        """Until cancelled, keep the registry's copy equal to the newest value, under a session that dies with us.

        Only the one replica that holds the leader lock writes; `is_leader` says whether that is us.
        """

    @property
    def is_leader(self) -> bool: ...


class LeaderLock(Protocol):
    """Makes one of several replicas the leader, for as long as it lives and can reach the registry."""

    async def run(self) -> Never:
        """Until cancelled, hold the lock or wait for it. Cancelled, it gives the lock back."""

    @property
    def is_leader(self) -> bool:
        """False as soon as the registry might give the lock to somebody else, even if we cannot reach it."""

    @property
    def leadership(self) -> Latest[bool]:
        """The same as news; begins with False."""


class VerdictFollower(Protocol):
    """The readers' side of the board."""

    async def follow(self, verdicts: Latest[Verdicts]) -> Never:
        """Run until cancelled. An unreachable registry keeps the last verdicts for a bounded time, then drops them."""


@dataclass(frozen=True, slots=True)
class GatewayProgress:
    """How far one gateway is: it has applied every change that the registry acknowledged before this index."""

    name: str
    applied_index: int


@dataclass(frozen=True, slots=True)
class BarrierReport:
    """How a wait for the gateways ended."""

    is_applied: bool
    index: int
    """Place of the wait in the registry's own order of writes; 0 when the registry never took it."""
    gateways: tuple[GatewayProgress, ...]
    """Those that were waited for and are still there, sorted by name."""
    reason: str
    """For people: who has applied it, or who has not and what stood in the way."""


class UnknownServiceError(RegistryError):
    """The registry does not list the service, and too many of those are waited for. The text is for the caller."""


class GatewayBarrier(Protocol):
    """Tells when what a caller has changed in the registry is in force everywhere."""

    async def wait_applied(self, service: ServiceName, deadline: float) -> BarrierReport:
        """Wait until every gateway routes `service` by what the registry says now, or until the deadline.

        Call it after the registry has acknowledged the change. An outage of the registry meanwhile is waited out, so
        a report that says "not applied" is the answer to it; a refusal raises RegistryError, and UnknownServiceError
        if it is because of the service.
        """

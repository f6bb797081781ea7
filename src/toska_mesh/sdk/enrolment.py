"""The seam between an instance and whatever keeps the list: `discovery` over gRPC, or Consul itself.

Small enough that a scripted one can stand in for both, and one contract suite holds all of them to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from toska_mesh.errors import RegistryUnavailableError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName, rules

_EMPTY: Mapping[str, str] = MappingProxyType({})


class NobodyListensError(RegistryUnavailableError):
    """The connection was refused: nothing was sent, and no process listens there.

    `is_here`: on this very machine, so that no network and no machine that moves stand between.
    """

    def __init__(self, words: str, *, is_here: bool) -> None:
        super().__init__(words)
        self.is_here = is_here


@dataclass(frozen=True, slots=True)
class Member:
    """What is registered of one instance."""

    service: ServiceName
    id: InstanceId
    address: str
    """Unspecified (`0.0.0.0`, `::`, empty) means "where I call from"."""
    port: int
    metadata: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    """All of it, the keys that gateways read included."""
    health_endpoint: str = "/health"
    interval_seconds: int = rules.DEFAULT_INTERVAL_SECONDS
    timeout_seconds: int = 5
    unhealthy_threshold: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ValueError(f"port {self.port} is not between 1 and 65535; register the one that was bound")

    @property
    def ttl_seconds(self) -> int:
        """How long one beat keeps the instance; every control plane of the family makes it so from the interval."""
        return rules.ttl_seconds(self.interval_seconds)

    @property
    def beat_seconds(self) -> float:
        """A third of the TTL: two beats may get lost."""
        return self.ttl_seconds / 3


@dataclass(frozen=True, slots=True)
class Applied:
    """Whether every gateway routes by what was said last about a service."""

    is_complete: bool
    reason: str = ""
    """In words what was missing; empty when complete."""
    gateways: tuple[str, ...] = ()
    """Those that were asked."""
    missing: tuple[str, ...] = ()
    """Those of them that have not applied it."""
    is_supported: bool = True
    """False: this control plane cannot say, and never will."""


class Enrolment(Protocol):
    """Commands of one instance. Deadlines are points on the running loop's clock (`loop.time()`).

    Every method raises RegistryUnavailableError when nobody answered in time or the answer was "not now", and any
    other RegistryError when it was "no"; the text is for people.
    """

    async def register(self, member: Member, deadline: float) -> InstanceId:
        """Register as healthy, or replace what is registered under the id. Gives the id it is known by."""

    async def report(self, instance_id: InstanceId, status: HealthStatus, output: str, deadline: float) -> bool:
        """A beat with what the instance says of itself. False: nobody knows this id, so register again."""

    async def deregister(self, instance_id: InstanceId, deadline: float) -> bool:
        """Remove on purpose. False when nobody knew the id (any more)."""

    async def wait_applied(self, service: ServiceName, deadline: float) -> Applied:
        """Wait until every gateway has applied what was acknowledged before this call, at most until `deadline`."""

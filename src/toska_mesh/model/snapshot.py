"""The whole catalog at one moment. State flows through the mesh as these values, never as edits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from toska_mesh.model.health import HealthStatus
from toska_mesh.model.ids import InstanceId, ServiceName
from toska_mesh.model.instance import Instance


@dataclass(frozen=True, slots=True)
class CatalogSnapshot:
    """Every service with its instances. `version` grows by one with every published change.

    Times are seconds on the follower's monotonic clock. `stale_since` is None while the registry answers; otherwise
    the moment since which this is only the last known state (`stale_reason` says why, for people).
    """

    services: Mapping[ServiceName, tuple[Instance, ...]] = field(default_factory=lambda: MappingProxyType({}))
    version: int = 0
    stale_since: float | None = None
    stale_reason: str = ""

    @property
    def is_stale(self) -> bool:
        return self.stale_since is not None


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What health monitors found by probing, by service and instance; only what is not healthy is listed.

    Verdicts vanish with the monitor that wrote them (fail open), so an absent instance means "no objection".
    `probed` gives, by service, how many instances the monitor probes: the base of the panic threshold.
    """

    services: Mapping[ServiceName, Mapping[InstanceId, HealthStatus]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    probed: Mapping[ServiceName, int] = field(default_factory=lambda: MappingProxyType({}))


NO_VERDICTS = Verdicts()

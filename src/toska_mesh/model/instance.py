"""One registered process of a service, as every part of the mesh sees it."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from toska_mesh.model.health import HealthStatus
from toska_mesh.model.ids import InstanceId, ServiceName
from toska_mesh.model.metadata import DRAIN_NOTE, DRAINING, MESH_MARKERS

_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Host and port of one instance. `host` is a DNS name or an IP address without brackets."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("an endpoint needs a host")
        if " " in self.host or not self.host.isprintable():
            raise ValueError(f"host {self.host!r} has blanks or control characters")
        if not 0 < self.port < 65536:
            raise ValueError(f"port {self.port} is not between 1 and 65535")

    @property
    def authority(self) -> str:
        """`host:port` as RFC 3986 section 3.2 writes it: IPv6 addresses in brackets."""
        try:
            is_ipv6 = ipaddress.ip_address(self.host).version == 6
        except ValueError:
            is_ipv6 = False
        return f"[{self.host}]:{self.port}" if is_ipv6 else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Instance:
    """One registered process. Equality covers every field: a changed port, status or metadata is a changed instance."""

    service: ServiceName
    id: InstanceId
    endpoint: Endpoint
    status: HealthStatus = HealthStatus.UNKNOWN
    metadata: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    registered_at: datetime | None = None
    """UTC; None when the registering side did not record it."""
    output: str = ""
    """The registry's words about the check that decides the status; empty when healthy without words.

    Not part of equality, but for what `is_draining` reads in it: a beat that only changes words is no change of the
    catalog."""
    create_index: int = 0
    """The registry's own order of creation (Consul's CreateIndex): the newest registration has the largest."""

    def __hash__(self) -> int:
        return hash((self.service, self.id))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Instance):
            return NotImplemented
        return (
            self.id == other.id
            and self.service == other.service
            and self.endpoint == other.endpoint
            and self.status == other.status
            and self.create_index == other.create_index
            and dict(self.metadata) == dict(other.metadata)
            and self.is_draining == other.is_draining
        )

    @property
    def is_mesh_member(self) -> bool:
        """Whether the instance carries one of the keys that every SDK writes."""
        return not MESH_MARKERS.isdisjoint(self.metadata)

    @property
    def is_draining(self) -> bool:
        """Whether it finishes its last requests and wants no new ones, by its metadata or by its last health report."""
        if self.status is HealthStatus.DEGRADED and self.output.startswith(DRAIN_NOTE):
            return True
        return self.metadata.get(DRAINING, "").strip().lower() == "true"

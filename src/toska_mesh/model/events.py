"""What the mesh tells the rest of the world. Wire names and the MassTransit envelope live in `messaging`.

Every event and command carries its own id and UTC time, made by the caller (`new_id`, `utcnow` are injected there), so
that building one is pure and a repeated delivery can be recognised.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from uuid import UUID

from toska_mesh.model.health import HealthStatus
from toska_mesh.model.ids import InstanceId, ServiceName

_EMPTY: Mapping[str, str] = MappingProxyType({})
_NO_DATA: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    event_id: UUID
    timestamp: datetime
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRegistered(_Event):
    service: ServiceName
    instance_id: InstanceId
    address: str
    port: int
    metadata: Mapping[str, str] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceDeregistered(_Event):
    service: ServiceName
    instance_id: InstanceId
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHealthChanged(_Event):
    service: ServiceName
    instance_id: InstanceId
    previous: HealthStatus
    current: HealthStatus
    output: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationChanged(_Event):
    key: str
    previous_value: str | None
    new_value: str
    changed_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertTriggered(_Event):
    alert_name: str
    severity: str
    message: str
    source: str
    tags: Mapping[str, str] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartService:
    """A command, not an event: it goes to one receiver and implements no event interface."""

    command_id: UUID
    timestamp: datetime
    instance_id: InstanceId
    correlation_id: str | None = None
    reason: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResponse:
    command_id: UUID
    success: bool
    message: str | None = None
    data: Mapping[str, object] = field(default_factory=lambda: _NO_DATA)


MeshEvent = InstanceRegistered | InstanceDeregistered | InstanceHealthChanged | ConfigurationChanged | AlertTriggered
MeshMessage = MeshEvent | RestartService | CommandResponse

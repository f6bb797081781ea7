"""Values shared by every part of the mesh: ids, instances, snapshots, events. No I/O, no clock, no protocol."""

from toska_mesh.model.events import (
    AlertTriggered,
    CommandResponse,
    ConfigurationChanged,
    InstanceDeregistered,
    InstanceHealthChanged,
    InstanceRegistered,
    MeshEvent,
    MeshMessage,
    RestartService,
)
from toska_mesh.model.health import HealthStatus
from toska_mesh.model.ids import InstanceId, ServiceName
from toska_mesh.model.instance import Endpoint, Instance
from toska_mesh.model.snapshot import NO_VERDICTS, CatalogSnapshot, Verdicts

__all__ = [
    "NO_VERDICTS",
    "AlertTriggered",
    "CatalogSnapshot",
    "CommandResponse",
    "ConfigurationChanged",
    "Endpoint",
    "HealthStatus",
    "Instance",
    "InstanceDeregistered",
    "InstanceHealthChanged",
    "InstanceId",
    "InstanceRegistered",
    "MeshEvent",
    "MeshMessage",
    "RestartService",
    "ServiceName",
    "Verdicts",
]

"""Between the contract's messages and the model. The only module besides the servicer that sees protobuf."""

from datetime import UTC, datetime

from toska_mesh.discovery.validation import HealthCheck, RegisterInstance
from toska_mesh.model import HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.model.metadata import own_metadata
from toska_mesh.pb import discovery_pb2

YEAR_ONE = datetime(1, 1, 1, tzinfo=UTC)
"""What the family sends for "not known": clients read both timestamps without asking whether they are there."""

_STATUS = {
    HealthStatus.UNKNOWN: discovery_pb2.HEALTH_STATUS_UNKNOWN,
    HealthStatus.HEALTHY: discovery_pb2.HEALTH_STATUS_HEALTHY,
    HealthStatus.UNHEALTHY: discovery_pb2.HEALTH_STATUS_UNHEALTHY,
    HealthStatus.DEGRADED: discovery_pb2.HEALTH_STATUS_DEGRADED,
}


def registration_from(message: discovery_pb2.RegisterServiceRequest) -> RegisterInstance:
    check = message.healthCheck  # all zero when absent, which means "not said"
    return RegisterInstance(
        service=ServiceName(message.serviceName),
        id=InstanceId(message.serviceId),
        address=message.address,
        port=message.port,
        metadata=dict(message.metadata),
        health_check=HealthCheck(check.endpoint, check.intervalSeconds, check.timeoutSeconds, check.unhealthyThreshold),
    )


def instance_to(instance: Instance, last_beat: datetime | None) -> discovery_pb2.ServiceInstance:
    message = discovery_pb2.ServiceInstance(
        serviceName=instance.service,
        serviceId=instance.id,
        address=instance.endpoint.host,
        port=instance.endpoint.port,
        status=_STATUS[instance.status],
        metadata=own_metadata(instance.metadata),
    )
    message.registeredAt.FromDatetime(instance.registered_at or YEAR_ONE)
    message.lastHealthCheck.FromDatetime(last_beat or YEAR_ONE)
    return message

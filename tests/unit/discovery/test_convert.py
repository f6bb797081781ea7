"""Messages and model, both ways."""

from datetime import UTC, datetime

from toska_mesh.discovery.convert import instance_to, registration_from
from toska_mesh.discovery.validation import HealthCheck
from toska_mesh.model import Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.pb import discovery_pb2 as pb

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def instance(**fields: object) -> Instance:
    base = {
        "service": ServiceName("orders"),
        "id": InstanceId("a"),
        "endpoint": Endpoint("10.0.0.1", 80),
        "status": HealthStatus.DEGRADED,
        "metadata": {"zone": "x", "toska-registered-at": "2026-01-02T03:04:05Z"},
    }
    return Instance(**base | fields)  # type: ignore[arg-type]


def test_an_instance_keeps_everything_but_bookkeeping() -> None:
    message = instance_to(instance(registered_at=NOW), NOW)
    assert (message.serviceName, message.serviceId, message.address, message.port) == ("orders", "a", "10.0.0.1", 80)
    assert message.status == pb.HEALTH_STATUS_DEGRADED
    assert dict(message.metadata) == {"zone": "x"}
    assert message.registeredAt.ToDatetime(UTC) == message.lastHealthCheck.ToDatetime(UTC) == NOW


def test_unknown_times_are_the_year_1_and_never_absent() -> None:
    message = instance_to(instance(), None)
    for time in (message.registeredAt, message.lastHealthCheck):
        assert (time.seconds, time.nanos) == (-62135596800, 0)
    assert message.HasField("registeredAt")
    assert message.HasField("lastHealthCheck")


def test_every_status_has_its_number() -> None:
    for status in HealthStatus:
        assert instance_to(instance(status=status), None).status == int(status)


def test_a_registration_without_a_check_says_nothing_about_it() -> None:
    asked = registration_from(pb.RegisterServiceRequest(serviceName="orders", port=80, metadata={"a": "b"}))
    assert (asked.service, asked.id, asked.address, asked.port) == ("orders", "", "", 80)
    assert (asked.metadata, asked.health_check) == ({"a": "b"}, HealthCheck())


def test_a_registration_with_a_check() -> None:
    check = pb.HealthCheckConfig(endpoint="/h", intervalSeconds=20, timeoutSeconds=5, unhealthyThreshold=3)
    assert registration_from(pb.RegisterServiceRequest(healthCheck=check)).health_check == HealthCheck("/h", 20, 5, 3)

"""What a caller may ask for. Every refusal names the field, the value and what would be right.

The rules themselves are `model.rules`, which the SDK obeys too before it asks; here they meet the contract's fields.
Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from toska_mesh.errors import MeshError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName, rules
from toska_mesh.model import metadata as keys

_EMPTY: Mapping[str, str] = MappingProxyType({})


class InvalidArgumentError(MeshError):
    """The caller asked for something that cannot be; the text is meant for the caller."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """What a caller says about its health check; zero and empty mean "not said"."""

    endpoint: str = ""
    interval_seconds: int = 0
    timeout_seconds: int = 0
    unhealthy_threshold: int = 0


@dataclass(frozen=True, slots=True)
class RegisterInstance:
    """A registration as asked for, before the address is resolved and the id is chosen."""

    service: ServiceName
    id: InstanceId
    address: str
    port: int
    metadata: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    health_check: HealthCheck = field(default_factory=HealthCheck)


def check_registration(asked: RegisterInstance) -> RegisterInstance:
    """The registration with what may be filled in filled in. Raises InvalidArgumentError at the first wrong field."""
    check_service_name(asked.service)
    if asked.id:
        check_instance_id(asked.id)
    if reason := rules.problem_with_address(asked.address):
        raise InvalidArgumentError(f"address {asked.address!r} {reason}")
    if not 0 < asked.port < 65536:
        raise InvalidArgumentError(f"port {asked.port} is not between 1 and 65535")
    _check("healthCheck.intervalSeconds", rules.problem_with_interval(asked.health_check.interval_seconds))
    _check("healthCheck.endpoint", rules.problem_with_path(asked.health_check.endpoint))
    metadata = dict(asked.metadata)
    if asked.health_check.endpoint and not metadata.get(keys.HEALTH_CHECK_ENDPOINT):
        metadata[keys.HEALTH_CHECK_ENDPOINT] = asked.health_check.endpoint  # else nobody would ever probe it
    check_metadata(metadata)
    return RegisterInstance(asked.service, asked.id, asked.address, asked.port, metadata, asked.health_check)


def check_service_name(name: str) -> None:
    _check("serviceName", rules.problem_with_service_name(name))


def check_instance_id(instance_id: str) -> None:
    _check("serviceId", rules.problem_with_instance_id(instance_id))


def check_metadata(metadata: Mapping[str, str]) -> None:
    if problem := rules.problem_with_metadata(metadata):
        raise InvalidArgumentError(problem)


def check_status(status: int) -> HealthStatus:
    """A status that somebody may report. `Unknown` says nothing, so it must not keep an instance alive."""
    if status in (HealthStatus.HEALTHY, HealthStatus.UNHEALTHY, HealthStatus.DEGRADED):
        return HealthStatus(status)
    raise InvalidArgumentError(f"status {status} says nothing; report 1 (Healthy), 2 (Unhealthy) or 3 (Degraded)")


def _check(name: str, problem: str | None) -> None:
    if problem:
        raise InvalidArgumentError(f"{name} {problem}")

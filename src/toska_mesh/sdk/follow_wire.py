"""What discovery sends about services, as values: of its stream, and of the contract's lookups.

An instance that cannot be one (no address, no such port) is left out with a sentence about it. No I/O.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType

from toska_mesh.model import Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.model.metadata import REGISTERED_AT
from toska_mesh.pb import discovery_pb2, mesh_pb2
from toska_mesh.registry.consul.codec import SILENCE, Entry, ServiceReading, parse_time

_NO_VERDICTS: Mapping[InstanceId, HealthStatus] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ServiceNews:
    """The whole state of one service. `probed` is None when no monitor says anything."""

    service: ServiceName
    reading: ServiceReading
    verdicts: Mapping[InstanceId, HealthStatus] = field(default_factory=lambda: _NO_VERDICTS)
    probed: int | None = None


class StateReader:
    """Reads services on the stream. An instance that is told again word for word is the identical object as before:
    of ten thousand instances one changes at a time, and the event loop is the service's.
    """

    def __init__(self) -> None:
        self._read: dict[ServiceName, dict[str, tuple[bytes, Instance | str]]] = {}

    def read(self, state: mesh_pb2.ServiceState) -> ServiceNews:
        service = ServiceName(state.serviceName)
        known = self._read.get(service, {})
        read: dict[str, tuple[bytes, Instance | str]] = {}
        for one in state.instances:
            words, before = one.SerializeToString(), known.get(one.serviceId)
            if before is None or before[0] != words:
                before = words, _watched(service, one)
            read[one.serviceId] = before
        self._read[service] = read
        verdicts = {InstanceId(key): _status(number) for key, number in state.verdicts.items()}
        return ServiceNews(
            service,
            _reading(instance for _, instance in read.values()),
            MappingProxyType(verdicts),
            state.probed if state.probed >= 0 else None,
        )


def looked_up(service: ServiceName, response: discovery_pb2.GetInstancesResponse) -> ServiceNews:
    """A service as the contract's lookup answers. It has no words about health and no order of creation.

    In place of the latter goes the moment of registration: the newest has the largest there too.
    """
    return ServiceNews(service, _reading(_listed(service, one) for one in response.instances))


def _reading(candidates: Iterable[Instance | str]) -> ServiceReading:
    found: dict[InstanceId, Instance] = {}
    dropped: list[str] = []
    for candidate in candidates:
        if isinstance(candidate, str):
            dropped.append(candidate)
        else:
            found[candidate.id] = candidate
    entries = tuple(Entry(found[instance_id], "", 0, _is_silent(found[instance_id])) for instance_id in sorted(found))
    return ServiceReading(entries, tuple(dropped))


def _watched(service: ServiceName, state: mesh_pb2.InstanceState) -> Instance | str:
    metadata = dict(state.metadata)
    registered_at = parse_time(metadata.get(REGISTERED_AT, ""))
    return _instance(service, state, metadata, registered_at, state.output, state.createIndex)


def _listed(service: ServiceName, listed: discovery_pb2.ServiceInstance) -> Instance | str:
    registered_at = None
    if listed.registeredAt.seconds > 0:  # "not known" is the year 1
        with suppress(ValueError, OverflowError):  # beyond the calendar is not known either
            registered_at = listed.registeredAt.ToDatetime(UTC)
    order = 0 if registered_at is None else round((registered_at - _EPOCH).total_seconds() * 1000)
    return _instance(service, listed, dict(listed.metadata), registered_at, "", order)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _instance(
    service: ServiceName,
    message: mesh_pb2.InstanceState | discovery_pb2.ServiceInstance,
    metadata: dict[str, str],
    registered_at: datetime | None,
    output: str,
    create_index: int,
) -> Instance | str:
    try:
        endpoint = Endpoint(message.address, message.port)
    except ValueError as error:
        return f"instance {message.serviceId!r}: {error}"
    return Instance(
        service=service,
        id=InstanceId(message.serviceId),
        endpoint=endpoint,
        status=_status(message.status),
        metadata=MappingProxyType(metadata),
        registered_at=registered_at,
        output=output,
        create_index=create_index,
    )


def _status(number: int) -> HealthStatus:
    try:
        return HealthStatus(number)
    except ValueError:  # of a newer discovery
        return HealthStatus.UNKNOWN


def _is_silent(instance: Instance) -> bool:
    """Unhealthy because nobody heard of it. A node's check has its name in front of these words."""
    if instance.status is not HealthStatus.UNHEALTHY:
        return False
    return not instance.output or any(words in instance.output for words in SILENCE)

"""The state of a service as bytes of a `WatchUpdate`, made once per change and shared by every stream.

Encoded protobuf messages may be put together by concatenation (https://protobuf.dev/programming-guides/encoding/, "Last
one wins"), so an update is a row of such pieces, and the piece of a service is a row of its instances. Only instances
that are another object than before are encoded again: of 10,000 of which one has changed, one. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from toska_mesh.model import HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.pb import mesh_pb2

MAX_OUTPUT_CHARS = 512
"""Of the registry's words about an instance: they are for people, and there may be thousands of instances."""

NOBODY_PROBES = -1
_MOST_PROBED = 2**31 - 1
_SERVICES_TAG = bytes([mesh_pb2.WatchUpdate.SERVICES_FIELD_NUMBER << 3 | 2])
_NO_VERDICTS: Mapping[InstanceId, HealthStatus] = {}


@dataclass(frozen=True, slots=True)
class ServiceView:
    """What is told of one service."""

    instances: tuple[Instance, ...] = ()
    verdicts: Mapping[InstanceId, HealthStatus] = field(default_factory=lambda: _NO_VERDICTS)
    probed: int = NOBODY_PROBES


@dataclass(frozen=True, slots=True)
class EncodedService:
    """`piece` is a whole `WatchUpdate` with this service alone."""

    piece: bytes
    parts: Mapping[InstanceId, tuple[Instance, bytes]]


def encode(name: ServiceName, view: ServiceView, before: EncodedService | None = None) -> EncodedService:
    """The service's piece, with what can be kept of the piece before."""
    known = before.parts if before is not None else {}
    parts: dict[InstanceId, tuple[Instance, bytes]] = {}
    for instance in view.instances:
        old = known.get(instance.id)
        parts[instance.id] = old if old is not None and old[0] is instance else (instance, _encode_instance(instance))
    head = mesh_pb2.ServiceState(
        serviceName=name,
        verdicts={instance_id: int(status) for instance_id, status in view.verdicts.items()},
        probed=min(max(view.probed, NOBODY_PROBES), _MOST_PROBED),
    )
    body = b"".join([head.SerializeToString(), *(encoded for _, encoded in parts.values())])
    return EncodedService(b"".join([_SERVICES_TAG, _varint(len(body)), body]), parts)


def encode_staleness(reason: str, seconds: float) -> bytes:
    """A `WatchUpdate` with the staleness alone: nothing at all while the registry answers."""
    return mesh_pb2.WatchUpdate(staleReason=reason, staleSeconds=max(0.0, seconds)).SerializeToString()


def _encode_instance(instance: Instance) -> bytes:
    """A `ServiceState` with this instance alone."""
    output = instance.output
    state = mesh_pb2.InstanceState(
        serviceId=instance.id,
        address=instance.endpoint.host,
        port=instance.endpoint.port,
        status=int(instance.status),
        metadata=instance.metadata,
        output=output if len(output) <= MAX_OUTPUT_CHARS else output[: MAX_OUTPUT_CHARS - 1] + "…",
        createIndex=instance.create_index,
    )
    return mesh_pb2.ServiceState(instances=[state]).SerializeToString()


def _varint(number: int) -> bytes:
    """Base 128, lowest first (protobuf encoding, "Base 128 varints")."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)

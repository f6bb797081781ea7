"""`Enrolment` through discovery's gRPC, whichever control plane of the family answers.

The contract reports failures in-band (`success` is false, the gRPC status is OK). Our own discovery says in trailing
metadata when such an answer means "not now" rather than "no"; where it is not said, a refused beat means what the
family means by it: nobody knows the id. The wait for the gateways is a service of its own that others do not have.
"""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from toska_mesh.errors import ConfigError, RegistryError, RegistryUnavailableError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName, rules
from toska_mesh.pb import discovery_pb2 as pb
from toska_mesh.pb import mesh_pb2
from toska_mesh.pb.discovery_pb2_grpc import DiscoveryRegistryStub
from toska_mesh.pb.mesh_pb2_grpc import MeshStub
from toska_mesh.sdk.enrolment import Applied, Member, NobodyListensError
from toska_mesh.sdk.options import ConnectOptions
from toska_mesh.sdk.tokens import ServiceToken

UNAVAILABLE_KEY = "x-toska-unavailable"
"""Trailing metadata of an in-band failure that is worth asking again; its value is the reason."""

_CHANNEL_OPTIONS = (
    # We wait between tries ourselves; the channel must not add its own seconds on top.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A peer that vanished without a word (a lost host, a forgetful NAT) is noticed: this also sets TCP_USER_TIMEOUT,
    # without which a call would wait for the kernel's quarter of an hour. Pings go out only during calls.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # One connection per channel, not one shared by all channels of the process to the same place.
    ("grpc.use_local_subchannel_pool", 1),
    # A service of thousands of instances is one message of the stream that follows it.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # Calls go to an address of the mesh, not out through the proxy of the environment.
    ("grpc.enable_http_proxy", 0),
)

_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)
"""What asking again unchanged will not help; everything else may pass."""

_NOT_CONNECTED = "failed to connect to all addresses"
_REFUSED = "Connection refused"
_PEER = re.compile(r"ipv[46]:\S+: ")

_STATUS = {
    HealthStatus.HEALTHY: pb.HEALTH_STATUS_HEALTHY,
    HealthStatus.UNHEALTHY: pb.HEALTH_STATUS_UNHEALTHY,
    HealthStatus.DEGRADED: pb.HEALTH_STATUS_DEGRADED,
}


def open_channel(options: ConnectOptions) -> grpc.aio.Channel:
    """A channel to discovery for everything that asks it; nothing is dialled before the first call.

    Raises ConfigError when a file for TLS is not usable. The caller closes it.
    """
    if not options.use_tls:
        return grpc.aio.insecure_channel(options.target, options=_CHANNEL_OPTIONS)
    authorities = _read(options.ca_file, "ca_file") if options.ca_file else None
    certificate = _read(options.client_cert, "client_cert") if options.client_cert else None
    key = _read(options.client_key, "client_key") if options.client_key else certificate
    credentials = grpc.ssl_channel_credentials(authorities, key, certificate)
    return grpc.aio.secure_channel(options.target, credentials, options=_CHANNEL_OPTIONS)


def _read(path: str, option: str) -> bytes:
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as exc:
        raise ConfigError(f"ConnectOptions.{option}={path!r} cannot be read: {exc.strerror}") from exc
    if b"-----BEGIN " not in data:
        raise ConfigError(
            f"ConnectOptions.{option}={path!r} is no PEM file; a .pfx becomes one with"
            f" `openssl pkcs12 -in {Path(path).name} -out client.pem -nodes`"
        )
    return data


class DiscoveryEnrolment:
    """See `Enrolment`. The channel belongs to the caller and may serve others too; `address` is where it leads."""

    def __init__(self, channel: grpc.aio.Channel, token: ServiceToken, address: str) -> None:
        self._discovery = DiscoveryRegistryStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._mesh = MeshStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._token = token
        self._address = address
        self._services: dict[InstanceId, ServiceName] = {}
        """What was registered here, by id."""

    async def register(self, member: Member, deadline: float) -> InstanceId:
        answer, reason = await self._ask(self._discovery.Register, _registration(member), deadline)
        if answer.success:
            instance_id = InstanceId(answer.serviceId or member.id)
            self._services[instance_id] = member.service
            return instance_id
        if reason is not None:
            raise RegistryUnavailableError(reason or answer.errorMessage)
        raise RegistryError(answer.errorMessage or "discovery refused the registration without a reason")

    async def report(self, instance_id: InstanceId, status: HealthStatus, output: str, deadline: float) -> bool:
        request = pb.ReportHealthRequest(
            serviceId=instance_id, status=_STATUS[status], output=rules.shorten_output(output)
        )
        answer, reason = await self._ask(self._discovery.ReportHealth, request, deadline)
        if not answer.success and reason is not None:
            raise RegistryUnavailableError(reason or "discovery cannot take a beat now")
        return bool(answer.success)

    async def deregister(self, instance_id: InstanceId, deadline: float) -> bool:
        request = pb.DeregisterServiceRequest(serviceId=instance_id)
        answer, reason = await self._ask(self._discovery.Deregister, request, deadline)
        if not answer.removed and reason is not None:
            raise RegistryUnavailableError(reason or "discovery cannot deregister now")
        if not answer.removed and await self._is_listed(instance_id, deadline):
            raise RegistryUnavailableError("discovery has not removed the instance: it is listed still")
        return bool(answer.removed)

    async def _is_listed(self, instance_id: InstanceId, deadline: float) -> bool:
        """Others of the family say "not removed" for an unknown id as for a registry that is away: a look tells."""
        service = self._services.get(instance_id)
        if service is None:
            return False
        request = pb.GetInstancesRequest(serviceName=service)
        answer, _ = await self._ask(self._discovery.GetInstances, request, deadline)
        return any(one.serviceId == instance_id for one in answer.instances)

    async def wait_applied(self, service: ServiceName, deadline: float) -> Applied:
        request = mesh_pb2.WaitAppliedRequest(serviceName=service)
        try:
            answer, _ = await self._ask(self._mesh.WaitApplied, request, deadline)
        except _UnimplementedError:
            return Applied(False, "this control plane cannot say what its gateways have applied", is_supported=False)
        names = tuple(gateway.name for gateway in answer.gateways)
        missing = tuple(gateway.name for gateway in answer.gateways if gateway.appliedIndex < answer.index)
        return Applied(
            answer.applied, "" if answer.applied else answer.reason, names, () if answer.applied else missing
        )

    async def _ask(self, method: Any, request: object, deadline: float) -> tuple[Any, str | None]:
        """The answer, and why an in-band failure in it is worth asking again (None: not said to be)."""
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise RegistryUnavailableError("there is no time left to ask discovery")
        try:
            call = method(request, timeout=left, metadata=self._token.call_metadata())
            answer = await call
            return answer, _unavailable(await call.trailing_metadata())
        except grpc.aio.AioRpcError as exc:
            raise _translated(exc, self._address) from exc


class _UnimplementedError(RegistryError):
    """Whoever answered has no such method."""


def _translated(exc: grpc.aio.AioRpcError, address: str) -> RegistryError:
    """In words that name what was configured: a name with several addresses fails at another one each time."""
    place = f"{address} (MESH_DISCOVERY_ADDRESS)"
    details = _PEER.sub("", exc.details() or "")
    if exc.code() is grpc.StatusCode.UNAVAILABLE and details.startswith(_NOT_CONNECTED) and _REFUSED in details:
        words = f"nobody listens at discovery={place}: connection refused"
        return NobodyListensError(words, is_here=_is_here(address))
    said = f"{exc.code().name}: {details}"
    if exc.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return RegistryUnavailableError(f"discovery={place} cannot be reached: {said}")
    if exc.code() is grpc.StatusCode.UNIMPLEMENTED:
        return _UnimplementedError(said)
    return RegistryError(said) if exc.code() in _REFUSALS else RegistryUnavailableError(said)


def _is_here(address: str) -> bool:
    host = urlsplit(f"//{address.rpartition('://')[2]}").hostname or ""
    ip = rules.parse_ip(host)
    return host == "localhost" if ip is None else ip.is_loopback


def _unavailable(trailing: Sequence[tuple[str, str | bytes]] | None) -> str | None:
    for key, value in trailing or ():
        if key == UNAVAILABLE_KEY:
            return value if isinstance(value, str) else value.decode("utf-8", "replace")
    return None


def _registration(member: Member) -> pb.RegisterServiceRequest:
    return pb.RegisterServiceRequest(
        serviceName=member.service,
        serviceId=member.id,
        address=member.address,
        port=member.port,
        metadata=dict(member.metadata),
        healthCheck=pb.HealthCheckConfig(
            endpoint=member.health_endpoint,
            intervalSeconds=member.interval_seconds,
            timeoutSeconds=member.timeout_seconds,
            unhealthyThreshold=member.unhealthy_threshold,
        ),
    )

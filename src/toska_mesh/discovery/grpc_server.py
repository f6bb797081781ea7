"""The gRPC server around the servicer: limits, health, reflection, and a stop that ends.

Health says SERVING only while the registry can be asked; it covers `""` and both services.
"""

import logging
import socket
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from toska_mesh.admin import port_in_use
from toska_mesh.discovery import mesh_servicer
from toska_mesh.discovery.grpc_logs import GRPC_LOGGER, AbandonedCalls
from toska_mesh.discovery.mesh_servicer import MeshServicer
from toska_mesh.discovery.servicer import SERVICE_NAME, DiscoveryServicer
from toska_mesh.errors import ConfigError
from toska_mesh.pb import discovery_pb2_grpc

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_SENT_BYTES = 32 * 1024 * 1024
"""A service of tens of thousands of instances is one message; whether it takes that is for the client to say."""

PORT_VARIABLE = "DISCOVERY_PORT"
SERVICE_NAMES = (SERVICE_NAME, mesh_servicer.SERVICE_NAME)

_OPTIONS = (
    # Two servers on one port would each get some of the connections: a second one is an error.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_SENT_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 1000),  # per connection
    # Clients that vanished without a word are found within a minute; pings more often than every 10 s are abuse.
    ("grpc.keepalive_time_ms", 40_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 4),
)


class GrpcServer:
    """An async context manager: serving inside the block. Raises ConfigError when the port cannot be had."""

    def __init__(
        self,
        host: str,
        port: int,
        servicer: DiscoveryServicer,
        mesh: MeshServicer,
        max_concurrent_calls: int,
        drain_seconds: float,
    ) -> None:
        self._host = host
        self._port = port
        self._drain_seconds = drain_seconds
        self._abandoned_calls = AbandonedCalls()
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=max_concurrent_calls)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs do not know it
        add = discovery_pb2_grpc.add_DiscoveryRegistryServicer_to_server
        add(servicer, self._server)  # type: ignore[no-untyped-call]  # generated without types
        self._server.add_generic_rpc_handlers((mesh.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def __aenter__(self) -> Self:
        await self.set_serving(False)
        check_port(self._host, self._port, PORT_VARIABLE)
        try:
            self._server.add_insecure_port(_authority(self._host, self._port))
        except RuntimeError as exc:
            raise ConfigError(
                f"port {self._port} on {self._host} cannot be opened; set {PORT_VARIABLE} to a free port"
                " or DISCOVERY_HOST to an address of this machine"
            ) from exc
        logging.getLogger(GRPC_LOGGER).addFilter(self._abandoned_calls)
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(self._drain_seconds)
        logging.getLogger(GRPC_LOGGER).removeFilter(self._abandoned_calls)

    async def set_serving(self, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICE_NAMES):
            await self._health.set(name, status)


def check_port(host: str, port: int, variable: str) -> None:
    """Raise ConfigError when the port cannot be bound, with the reason that gRPC itself does not give."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as exc:
        raise ConfigError(f"DISCOVERY_HOST={host!r} is no address or host name of this machine ({exc})") from exc
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as exc:
            raise port_in_use(port, variable, exc, host) from exc


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

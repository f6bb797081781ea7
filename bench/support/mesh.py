"""Discovery and the gateway as processes in front of a registry: the chain that several benchmarks measure."""

from contextlib import ExitStack
from dataclasses import dataclass

from tests.support.ports import free_port
from tests.support.servers import ConsulServer, DaemonProcess, RegistryServer


@dataclass(frozen=True, slots=True)
class Mesh:
    """The two processes and their ports."""

    discovery: DaemonProcess
    gateway: DaemonProcess
    grpc_port: int
    gateway_port: int
    gateway_admin_port: int


def start_mesh(stack: ExitStack, registry: ConsulServer | RegistryServer) -> Mesh:
    """Start both and wait until they are ready; `stack` ends them. Rate limit and access log are off."""
    grpc_port, http_port, port, admin_port = (free_port() for _ in range(4))
    discovery = stack.enter_context(
        DaemonProcess(
            "toska-discovery",
            {
                "CONSUL_ADDRESS": registry.url,
                "DISCOVERY_PORT": str(grpc_port),
                "DISCOVERY_HTTP_PORT": str(http_port),
            },
            f"http://127.0.0.1:{http_port}/health/ready",
        )
    )
    gateway = stack.enter_context(
        DaemonProcess(
            "toska-gateway",
            {
                "CONSUL_ADDRESS": registry.url,
                "GATEWAY_PORT": str(port),
                "GATEWAY_ADMIN_PORT": str(admin_port),
                "GATEWAY_RATE_LIMIT_ENABLED": "false",
                "GATEWAY_ACCESS_LOG": "false",
            },
            f"http://127.0.0.1:{admin_port}/health/ready",
        )
    )
    return Mesh(discovery, gateway, grpc_port, port, admin_port)

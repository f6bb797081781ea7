"""Discovery as its users meet it: a process of its own, a client that was generated from `proto/` alone."""

import importlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from tests.support.ports import free_port
from tests.support.servers import ConsulServer, DaemonProcess, http_get

PROTO = Path(__file__).resolve().parents[3] / "proto"
READY_SECONDS = 20.0


class DiscoveryServer(DaemonProcess):
    """`toska-discovery` on free ports, with its data in the server's own folder."""

    def __init__(self, registry_url: str, **env: str) -> None:
        super().__init__("toska-discovery", env)
        self.port, self.http_port = free_port(), free_port()
        self.env = {
            "DISCOVERY_HOST": "127.0.0.1",
            "DISCOVERY_PORT": str(self.port),
            "DISCOVERY_HTTP_PORT": str(self.http_port),
            "DISCOVERY_DATA_DIR": str(self.data),
            "CONSUL_ADDRESS": registry_url,
            **env,
        }

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def is_ready(self) -> bool:
        return http_get(f"{self.url}/health/ready")[0] == 200

    def is_live(self) -> bool:
        return http_get(f"{self.url}/health/live")[0] == 200


class Client:
    """A channel, the generated stub and the generated messages."""

    def __init__(self, channel: grpc.aio.Channel, messages: ModuleType, services: ModuleType) -> None:
        self.channel = channel
        self.pb = messages
        self.stub = services.DiscoveryRegistryStub(channel)

    async def register(self, name: str, instance_id: str = "", port: int = 9000, **fields: Any) -> Any:
        timeout = fields.pop("timeout", 10)
        metadata = fields.pop("call_metadata", None)
        request = self.pb.RegisterServiceRequest(
            serviceName=name, serviceId=instance_id, port=port, **{"address": "10.1.2.3", **fields}
        )
        return await self.stub.Register(request, timeout=timeout, metadata=metadata)

    async def beat(self, instance_id: str, status: int = 1, output: str = "heartbeat", **options: Any) -> bool:
        request = self.pb.ReportHealthRequest(serviceId=instance_id, status=status, output=output)
        return bool((await self.stub.ReportHealth(request, **{"timeout": 10, **options})).success)

    async def deregister(self, instance_id: str, **options: Any) -> bool:
        request = self.pb.DeregisterServiceRequest(serviceId=instance_id)
        return bool((await self.stub.Deregister(request, **{"timeout": 10, **options})).removed)

    async def instances(self, name: str, **options: Any) -> dict[str, Any]:
        request = self.pb.GetInstancesRequest(serviceName=name)
        answer = await self.stub.GetInstances(request, **{"timeout": 10, **options})
        return {instance.serviceId: instance for instance in answer.instances}

    async def services(self) -> list[str]:
        return list((await self.stub.GetServices(self.pb.GetServicesRequest(), timeout=10)).serviceNames)


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The modules that protoc makes of the contract, and nothing of ours."""
    folder = tmp_path_factory.mktemp("generated")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}"),
            *(f"--python_out={folder}", f"--grpc_python_out={folder}", "discovery.proto"),
        ],
        check=True,
        timeout=60,
    )
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("discovery_pb2"), importlib.import_module("discovery_pb2_grpc")
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def discovery(consul: ConsulServer) -> Iterator[DiscoveryServer]:
    """One discovery over the shared Consul, for tests that do nothing bad to it."""
    with DiscoveryServer(consul.url) as server:
        yield server


@pytest.fixture
def discovery_factory() -> Iterator[Callable[..., DiscoveryServer]]:
    """`discovery_factory(registry_url, **env)`: a discovery of your own, started and ready."""
    with ExitStack() as stack:
        yield lambda url, **env: stack.enter_context(DiscoveryServer(url, **env))


@pytest.fixture
async def connect(generated: tuple[ModuleType, ModuleType]) -> AsyncIterator[Callable[..., Client]]:
    """`connect(server)`: a client of that server; closed at the end."""
    channels = []

    def open_client(server: DiscoveryServer) -> Client:
        channel = grpc.aio.insecure_channel(
            server.target,
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)],
        )
        channels.append(channel)
        return Client(channel, *generated)

    yield open_client
    for channel in channels:
        await channel.close()


@pytest.fixture
def client(connect: Callable[..., Client], discovery: DiscoveryServer) -> Client:
    return connect(discovery)

"""One suite, five ways into the mesh: discovery over both registries, Consul without one, a Go discovery, a fake."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Protocol

import pytest
from tests.integration.discovery.conftest import DiscoveryServer
from tests.support.go_discovery import GoDiscovery, go_discovery
from tests.support.ports import free_port
from tests.support.servers import ConsulServer, RegistryServer

from toska_mesh.errors import InstanceNotFoundError
from toska_mesh.model import InstanceId, ServiceName
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry
from toska_mesh.sdk.consul import open_consul_enrolment
from toska_mesh.sdk.discovery import DiscoveryEnrolment, open_channel
from toska_mesh.sdk.enrolment import Enrolment, Member
from toska_mesh.sdk.options import ConnectOptions
from toska_mesh.sdk.tokens import ServiceToken
from toska_mesh.testing import Events, FakeRegistry
from toska_mesh.testing.enrolment import FakeEnrolment

_numbers = count(1)

FAKE = "fake-mesh"
GROUNDS = ("discovery-consul", "discovery-toska-registry", "consul", "toska-registry", "go-discovery", FAKE)


@dataclass(frozen=True, slots=True)
class Seen:
    """An instance as the registry shows it."""

    address: str
    port: int
    status: str
    output: str
    metadata: Mapping[str, str]


class Ground(Protocol):
    """What the suite needs to know of the other side, beyond the seam."""

    options: ConnectOptions

    async def seen(self, service: ServiceName) -> Mapping[InstanceId, Seen]: ...

    async def lose(self, instance_id: InstanceId) -> None:
        """What a reaping or wiped registry does."""


class OverRegistry:
    """A registry that speaks Consul's API, and perhaps a discovery before it."""

    def __init__(self, options: ConnectOptions, client: ConsulClient) -> None:
        self.options = options
        self.client = client
        self._registry = ConsulRegistry(client)

    async def seen(self, service: ServiceName) -> Mapping[InstanceId, Seen]:
        return {
            one.id: Seen(one.endpoint.host, one.endpoint.port, one.status.label, one.output, one.metadata)
            for one in await self._registry.instances(service)
        }

    async def lose(self, instance_id: InstanceId) -> None:
        try:
            await self._registry.deregister(instance_id)
        except InstanceNotFoundError:
            pass


class OverFake(OverRegistry):
    """The registry of a fake mesh, here on a real clock."""

    def __init__(self) -> None:
        self.registry = FakeRegistry(Events(asyncio.get_running_loop().time), Random(0))
        super().__init__(ConnectOptions(provider="consul"), self.registry.client())

    def enrolment(self) -> Enrolment:
        return FakeEnrolment(self.registry.client())


class OverGo:
    def __init__(self, discovery: GoDiscovery) -> None:
        self.options = ConnectOptions(discovery_address=discovery.target)
        self._discovery = discovery

    async def seen(self, service: ServiceName) -> Mapping[InstanceId, Seen]:
        return {
            InstanceId(key): Seen(one.address, one.port, *self._discovery.health[key], dict(one.metadata))
            for key, one in self._discovery.registered.items()
            if one.serviceName == service
        }

    async def lose(self, instance_id: InstanceId) -> None:
        self._discovery.forget(instance_id)


@dataclass(frozen=True, slots=True)
class Servers:
    kind: str
    registry: ConsulServer | RegistryServer | None
    discovery: DiscoveryServer | None


@pytest.fixture(scope="module", params=GROUNDS)
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Running, shared by the tests of a module: use names of your own in it."""
    kind = str(request.param)
    with ExitStack() as stack:
        if kind in ("go-discovery", FAKE):
            yield Servers(kind, None, None)
            return
        registry = (
            stack.enter_context(RegistryServer())
            if kind.endswith("toska-registry")
            else request.getfixturevalue("consul")
        )
        is_direct = not kind.startswith("discovery")
        yield Servers(kind, registry, None if is_direct else stack.enter_context(DiscoveryServer(registry.url)))


@pytest.fixture
async def ground(servers: Servers) -> AsyncIterator[Ground]:
    async with AsyncExitStack() as stack:
        if servers.kind == FAKE:
            yield OverFake()
            return
        if servers.registry is None:
            yield OverGo(await stack.enter_async_context(go_discovery()))
            return
        client = await stack.enter_async_context(ConsulClient(ConsulOptions(servers.registry.url)))
        if servers.discovery is None:
            options = ConnectOptions(provider="consul", consul_address=servers.registry.url)
        else:
            options = ConnectOptions(discovery_address=servers.discovery.target)
        yield OverRegistry(options, client)


@pytest.fixture
async def enrolment(ground: Ground) -> AsyncIterator[Enrolment]:
    if isinstance(ground, OverFake):
        yield ground.enrolment()
        return
    async with AsyncExitStack() as stack:
        yield await enter_enrolment(stack, ground.options)


async def enter_enrolment(stack: AsyncExitStack, options: ConnectOptions) -> Enrolment:
    if options.provider == "consul":
        return await stack.enter_async_context(open_consul_enrolment(options))
    channel = await stack.enter_async_context(open_channel(options))
    return DiscoveryEnrolment(channel, ServiceToken(options, "orders"), options.discovery_address)


@pytest.fixture
def member() -> Member:
    """Of a service that no other test uses."""
    number = next(_numbers)
    return Member(
        ServiceName(f"enrolled-{number}"),
        InstanceId(f"enrolled-{number}-a"),
        "10.1.2.3",
        8080,
        {"scheme": "http", "health_check_endpoint": "/health", "lb_strategy": "RoundRobin", "weight": "1", "zone": "a"},
        interval_seconds=30,
    )


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """Takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture
def closed_port() -> int:
    """Nobody listens."""
    return free_port()


def in_seconds(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds

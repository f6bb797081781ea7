"""The SDK's follower on a real discovery: what it sees, what outages do to it, what a leaving discovery does to it."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from tests.integration.discovery.conftest import DiscoveryServer
from tests.integration.discovery.test_tokens import SECRET, bearer
from tests.support.ports import free_port
from tests.support.servers import ConsulServer, DaemonProcess, RegistryServer
from tests.support.wait import eventually

from toska_mesh.aio import Latest
from toska_mesh.discovery.servicer import STALE_KEY
from toska_mesh.model import NO_VERDICTS, CatalogSnapshot, HealthStatus, Instance, InstanceId, ServiceName, Verdicts
from toska_mesh.pb import discovery_pb2, discovery_pb2_grpc, mesh_pb2, mesh_pb2_grpc
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry, ConsulVerdictBoard
from toska_mesh.sdk import follow
from toska_mesh.sdk.follow import DiscoveryFollower, FollowOptions, FollowState

Registry = ConsulServer | RegistryServer
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 300)]
QUICK = FollowOptions(longest_pause_seconds=0.3)


@pytest.fixture(scope="module")
def embedded() -> Iterator[tuple[Registry, DiscoveryServer]]:
    with RegistryServer() as registry, DiscoveryServer(registry.url) as server:
        yield registry, server


@pytest.fixture(params=["consul", "embedded"])
def mesh(request: pytest.FixtureRequest) -> tuple[Registry, DiscoveryServer]:
    """A registry and a discovery over it, shared."""
    if request.param == "consul":
        return request.getfixturevalue("consul"), request.getfixturevalue("discovery")
    return request.getfixturevalue("embedded")  # type: ignore[no-any-return]


class Watching:
    """A follower and what it has published."""

    def __init__(self, channel: grpc.aio.Channel, **options: Any) -> None:
        self.catalog, self.verdicts = Latest[CatalogSnapshot](), Latest[Verdicts]()
        self.follower = DiscoveryFollower(channel, **{"options": QUICK, **options})

    @property
    def snapshot(self) -> CatalogSnapshot:
        found = self.catalog.peek()
        assert found is not None, "nothing has been published"
        return found

    def shown(self, service: str) -> tuple[Instance, ...]:
        return self.snapshot.services.get(ServiceName(service), ())

    def ids(self, service: str) -> list[str]:
        return [one.id for one in self.shown(service)]


@asynccontextmanager
async def watching(target: str, *wanted: str, **options: Any) -> AsyncIterator[Watching]:
    """A client of its own that follows `wanted` and knows them."""
    async with grpc.aio.insecure_channel(target, options=OPTIONS) as channel, asyncio.TaskGroup() as tasks:
        client = Watching(channel, **options)
        task = tasks.create_task(client.follower.follow(client.catalog, client.verdicts), name="follow")
        try:
            async with asyncio.timeout(20):
                for name in wanted:
                    await client.follower.known(ServiceName(name))
            yield client
        finally:
            task.cancel()


@asynccontextmanager
async def registry_of(server: Registry) -> AsyncIterator[ConsulRegistry]:
    async with ConsulClient(ConsulOptions(server.url)) as client:
        yield ConsulRegistry(client)


def registration(service: str, instance: str, port: int = 80, **metadata: str) -> Registration:
    return Registration(ServiceName(service), InstanceId(instance), "10.0.0.1", port, metadata)


async def test_everything_that_happens_to_a_service_is_seen(mesh: tuple[Registry, DiscoveryServer]) -> None:
    server, discovery = mesh
    async with registry_of(server) as registry, watching(discovery.target, "watched") as client:
        assert client.ids("watched") == []
        await registry.register(registration("watched", "watched-1", scheme="http"))
        await eventually(lambda: client.ids("watched") == ["watched-1"])
        await registry.register(registration("watched", "watched-1", 81, scheme="https"))
        await eventually(
            lambda: (
                [(one.endpoint.port, dict(one.metadata)) for one in client.shown("watched")]
                == [(81, {"scheme": "https"})]
            )
        )
        await registry.report_health(InstanceId("watched-1"), HealthStatus.DEGRADED, "draining: bye")
        await eventually(
            lambda: (
                [(one.status, one.output) for one in client.shown("watched")]
                == [(HealthStatus.DEGRADED, "draining: bye")]
            )
        )
        await registry.deregister(InstanceId("watched-1"))
        await eventually(lambda: client.ids("watched") == [])
        assert client.follower.state is FollowState.WATCHING


async def test_a_name_that_is_added_later_comes_on_the_same_stream(mesh: tuple[Registry, DiscoveryServer]) -> None:
    server, discovery = mesh
    async with registry_of(server) as registry, watching(discovery.target, "early") as client:
        await registry.register(registration("late", "late-1"))
        async with asyncio.timeout(10):
            await client.follower.known(ServiceName("late"))
        await eventually(lambda: client.ids("late") == ["late-1"])
        await registry.deregister(InstanceId("late-1"))


async def test_verdicts_reach_the_client_and_vanish_with_the_monitor(mesh: tuple[Registry, DiscoveryServer]) -> None:
    server, discovery = mesh
    name = ServiceName("judged")
    found = Verdicts({name: {InstanceId("judged-1"): HealthStatus.UNHEALTHY}}, {name: 3})
    other = Verdicts({**found.services, ServiceName("other"): found.services[name]}, {name: 3, ServiceName("other"): 1})
    source = Latest[Verdicts]()
    async with watching(discovery.target, name) as client:
        assert client.verdicts.peek() == NO_VERDICTS
        async with ConsulClient(ConsulOptions(server.url)) as api, asyncio.TaskGroup() as tasks:
            source.set(other)
            monitor = tasks.create_task(ConsulVerdictBoard(api, "monitor").run(source))
            await eventually(lambda: client.verdicts.peek() == found, 60)  # another monitor may just have died
            monitor.cancel()
        await eventually(lambda: client.verdicts.peek() == NO_VERDICTS)


async def test_a_wait_tells_of_every_gateway_and_of_the_one_that_hangs(
    embedded: tuple[Registry, DiscoveryServer],
) -> None:
    server, discovery = embedded
    port, admin_port = free_port(), free_port()
    env = {
        "CONSUL_ADDRESS": server.url,
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "GATEWAY_ADMIN_PORT": str(admin_port),
    }
    request = mesh_pb2.WaitAppliedRequest(serviceName="waited")
    async with grpc.aio.insecure_channel(discovery.target, options=OPTIONS) as channel:
        stub = mesh_pb2_grpc.MeshStub(channel)
        answer = await stub.WaitApplied(request, timeout=20)
        assert (answer.applied, list(answer.gateways), answer.reason) == (True, [], "")
        assert answer.index > 0
        with DaemonProcess("toska-gateway", env, f"http://127.0.0.1:{admin_port}/health/ready") as gateway:

            async def applied_by() -> list[str]:
                answer = await stub.WaitApplied(request, timeout=20)
                assert answer.applied, answer
                return [one.name for one in answer.gateways if one.appliedIndex >= answer.index]

            (name,) = await eventually(applied_by)
            gateway.pause()
            try:
                answer = await stub.WaitApplied(request, timeout=2)
            finally:
                gateway.resume()
            assert (answer.applied, [one.name for one in answer.gateways]) == (False, [name])
            assert name in answer.reason
            assert answer.gateways[0].appliedIndex < answer.index
            assert await applied_by() == [name]


async def test_a_discovery_that_is_killed_empties_nothing_and_comes_back(
    registry_factory: Callable[..., RegistryServer], discovery_factory: Callable[..., DiscoveryServer]
) -> None:
    server = registry_factory()
    discovery = discovery_factory(server.url)
    async with registry_of(server) as registry:
        for number in range(3):
            await registry.register(registration("kept", f"kept-{number}"))
        async with watching(discovery.target, "kept") as client:
            await eventually(lambda: len(client.ids("kept")) == 3)
            await asyncio.to_thread(discovery.kill)
            await eventually(lambda: client.snapshot.is_stale)
            assert len(client.ids("kept")) == 3
            assert "discovery" in client.snapshot.stale_reason
            await registry.register(registration("kept", "kept-new"))
            await asyncio.to_thread(discovery.start)
            await eventually(lambda: not client.snapshot.is_stale, 20)
            assert client.ids("kept") == ["kept-0", "kept-1", "kept-2", "kept-new"]

            # Both at once, and everything that the registry knew is gone: who is left to remember is the client.
            await asyncio.to_thread(discovery.kill)
            await eventually(lambda: client.snapshot.is_stale)
            await asyncio.to_thread(server.wipe_and_restart)
            await asyncio.sleep(2.1)  # longer than what counts as a hiccup
            await asyncio.to_thread(discovery.start)
            await eventually(lambda: not client.snapshot.is_stale, 20)
            assert len(client.ids("kept")) == 4


async def test_a_registry_that_stops_is_told_and_so_is_its_return(
    registry_factory: Callable[..., RegistryServer], discovery_factory: Callable[..., DiscoveryServer]
) -> None:
    server = registry_factory()
    discovery = discovery_factory(server.url)
    async with registry_of(server) as registry, watching(discovery.target, "kept") as client:
        await registry.register(registration("kept", "kept-1"))
        await eventually(lambda: client.ids("kept") == ["kept-1"])
        await asyncio.to_thread(server.kill)
        await eventually(lambda: client.snapshot.is_stale, 20)
        assert (client.ids("kept"), client.follower.state) == (["kept-1"], FollowState.WATCHING)
        assert client.snapshot.stale_reason == client.follower.trouble
        assert client.follower.trouble
        await asyncio.to_thread(server.start)
        await eventually(lambda: not client.snapshot.is_stale, 20)
        assert client.ids("kept") == ["kept-1"]


async def test_a_token_is_required_of_streams_and_waits_too(embedded: tuple[Registry, DiscoveryServer]) -> None:
    server, _ = embedded
    with DiscoveryServer(server.url, DISCOVERY_AUTH="required", MESH_SERVICE_AUTH_SECRET=SECRET) as guarded:
        async with watching(guarded.target, metadata=lambda: ()) as client:
            client.follower.want(ServiceName("orders"))
            await eventually(lambda: "a service token is required" in client.follower.trouble)
            assert client.catalog.version == 0
        async with watching(guarded.target, "orders", metadata=lambda: (("authorization", bearer()),)) as client:
            assert client.ids("orders") == []
        async with grpc.aio.insecure_channel(guarded.target, options=OPTIONS) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await mesh_pb2_grpc.MeshStub(channel).WaitApplied(
                    mesh_pb2.WaitAppliedRequest(serviceName="orders"),
                    metadata=(("authorization", bearer("orders", "User")),),
                    timeout=10,
                )
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_stopping_discovery_ends_fifty_streams_cleanly_and_at_once(
    embedded: tuple[Registry, DiscoveryServer],
) -> None:
    # A drain of five minutes, of which nothing is used: else the stop below would be a kill.
    with DiscoveryServer(embedded[0].url, DISCOVERY_DRAIN_SECONDS="300") as discovery:
        channels = [grpc.aio.insecure_channel(discovery.target, options=OPTIONS) for _ in range(5)]
        streams = [mesh_pb2_grpc.MeshStub(channel).Watch() for channel in channels for _ in range(10)]
        for stream in streams:
            await stream.write(mesh_pb2.WatchRequest(serviceNames=["orders"]))
            assert [state.serviceName for state in (await stream.read()).services] == ["orders"]
        await asyncio.to_thread(discovery.assert_clean_exit)
        assert {await stream.code() for stream in streams} == {grpc.StatusCode.UNAVAILABLE}
        for channel in channels:
            await channel.close()


class OtherControlPlane(discovery_pb2_grpc.DiscoveryRegistryServicer):
    """What the family's control planes in other languages offer: the contract, and no stream."""

    def __init__(self) -> None:
        self.instances: dict[str, list[discovery_pb2.ServiceInstance]] = {}
        self.stale = ""

    async def GetInstances(self, request: Any, context: Any) -> discovery_pb2.GetInstancesResponse:
        if self.stale:
            context.set_trailing_metadata(((follow.STALE_KEY, self.stale),))
        return discovery_pb2.GetInstancesResponse(instances=self.instances.get(request.serviceName, ()))


async def test_a_control_plane_without_the_stream_is_polled() -> None:
    assert follow.STALE_KEY == STALE_KEY
    other = OtherControlPlane()
    server = grpc.aio.server()
    discovery_pb2_grpc.add_DiscoveryRegistryServicer_to_server(other, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        other.instances["orders"] = [
            discovery_pb2.ServiceInstance(
                serviceName="orders", serviceId=f"orders-{os.getpid()}", address="10.0.0.1", port=80, status=1
            )
        ]
        async with watching(f"127.0.0.1:{port}", "orders", poll_seconds=0.05) as client:
            assert client.ids("orders") == [f"orders-{os.getpid()}"]
            assert (client.follower.state, client.verdicts.peek()) == (FollowState.POLLING, NO_VERDICTS)
            other.instances["orders"][0].status = 2
            await eventually(lambda: client.shown("orders")[0].status is HealthStatus.UNHEALTHY)
            other.stale = "the registry does not answer"
            await eventually(lambda: client.snapshot.stale_reason == "the registry does not answer")
            other.stale = ""
            await eventually(lambda: not client.snapshot.is_stale)
            await server.stop(0)
            await eventually(lambda: client.snapshot.is_stale)
            assert client.ids("orders") == [f"orders-{os.getpid()}"]
    finally:
        await server.stop(0)

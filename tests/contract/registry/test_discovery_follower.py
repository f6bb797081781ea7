"""Through discovery a client sees what it would see in the registry: the two followers publish equal instances."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import grpc
import pytest
from tests.integration.discovery.conftest import DiscoveryServer
from tests.support.servers import ConsulServer, RegistryServer
from tests.support.wait import eventually

from toska_mesh.aio import Latest
from toska_mesh.model import CatalogSnapshot, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.pb import discovery_pb2, discovery_pb2_grpc
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulFollower, ConsulRegistry, FollowerOptions
from toska_mesh.sdk.follow import DiscoveryFollower

Server = ConsulServer | RegistryServer
NewId = Callable[[], InstanceId]


@pytest.fixture(scope="module")
def discovery(server: Server) -> Iterator[DiscoveryServer]:
    with DiscoveryServer(server.url) as found:
        yield found


@pytest.fixture
async def channel(discovery: DiscoveryServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(discovery.target, options=[("grpc.use_local_subchannel_pool", 1)]) as found:
        yield found


@pytest.fixture
async def directly(client: ConsulClient) -> AsyncIterator[Latest[CatalogSnapshot]]:
    catalog = Latest[CatalogSnapshot]()
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(ConsulFollower(client, FollowerOptions(wait_seconds=5)).follow(catalog))
        await asyncio.wait_for(catalog.first(), 10)
        yield catalog
        following.cancel()


@pytest.fixture
async def through_discovery(channel: grpc.aio.Channel, service: ServiceName) -> AsyncIterator[Latest[CatalogSnapshot]]:
    catalog = Latest[CatalogSnapshot]()
    follower = DiscoveryFollower(channel)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follower.follow(catalog))
        await asyncio.wait_for(follower.known(service), 10)
        yield catalog
        following.cancel()


def everything(catalog: Latest[CatalogSnapshot], service: ServiceName) -> list[tuple[object, ...]]:
    """Every field of every instance, also those that equality leaves out."""
    snapshot = catalog.peek()
    assert snapshot is not None
    return [_fields(one) for one in snapshot.services.get(service, ())]


def _fields(one: Instance) -> tuple[object, ...]:
    metadata = dict(one.metadata)
    return one.service, one.id, one.endpoint, one.status, metadata, one.registered_at, one.output, one.create_index


async def test_both_followers_publish_the_same_instances(
    directly: Latest[CatalogSnapshot],
    through_discovery: Latest[CatalogSnapshot],
    channel: grpc.aio.Channel,
    registry: ConsulRegistry,
    service: ServiceName,
    new_id: NewId,
) -> None:
    first, second, third = new_id(), new_id(), new_id()

    async def same(count: int) -> list[tuple[object, ...]]:
        def shown() -> list[tuple[object, ...]]:
            here, there = everything(directly, service), everything(through_discovery, service)
            assert here == there
            return here if len(here) == count else []

        return await eventually(shown)

    metadata = {"scheme": "http", "weight": "3", "zone": "äöü"}
    await registry.register(Registration(service, first, "fe80::1:2", 65535, metadata))
    await registry.register(Registration(service, second, "host.internal", 1))
    # One that discovery registers itself carries when that was.
    answer = await discovery_pb2_grpc.DiscoveryRegistryStub(channel).Register(
        discovery_pb2.RegisterServiceRequest(serviceName=service, serviceId=third, address="10.1.2.3", port=9000),
        timeout=10,
    )
    assert answer.success, answer.errorMessage
    found = await same(3)
    assert found[2][5] is not None
    assert len({one[7] for one in found}) == 3

    await registry.report_health(first, HealthStatus.DEGRADED, "draining: bye")
    await registry.report_health(second, HealthStatus.UNHEALTHY, "disk full")

    async def statuses() -> bool:
        wanted = [(HealthStatus.DEGRADED, "draining: bye"), (HealthStatus.UNHEALTHY, "disk full")]
        return [(one[3], one[6]) for one in (await same(3))[:2]] == wanted

    await eventually(statuses)
    await registry.deregister(second)
    assert [one[1] for one in await same(2)] == [first, third]

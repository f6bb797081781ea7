"""The embedded registry in a test's own loop, asked over real sockets."""

import asyncio

import aiohttp
import pytest
from tests.support.wait import eventually

from toska_mesh.aio import Latest
from toska_mesh.errors import InstanceNotFoundError, RegistryError, RegistryUnavailableError
from toska_mesh.model import CatalogSnapshot, HealthStatus, ServiceName
from toska_mesh.registry.consul import ConsulClient, ConsulFollower, ConsulOptions, ConsulRegistry
from toska_mesh.testing import EmbeddedRegistry


async def test_what_is_registered_is_listed(mesh_registry: EmbeddedRegistry) -> None:
    first = await mesh_registry.register("orders", 8081)
    await mesh_registry.register("orders", 8082, address="10.0.0.7", instance_id="second", metadata={"zone": "a"})
    one, two = await mesh_registry.instances("orders")
    assert (one.id, one.endpoint.authority, one.status) == (first, "127.0.0.1:8081", HealthStatus.HEALTHY)
    assert one.is_mesh_member
    assert (two.id, two.endpoint.authority, two.metadata) == ("second", "10.0.0.7:8082", {"zone": "a"})
    await mesh_registry.report(first, HealthStatus.UNHEALTHY, "no disk")
    one, _ = await mesh_registry.instances("orders")
    assert (one.status, one.output) == (HealthStatus.UNHEALTHY, "no disk")
    await mesh_registry.deregister(first)
    assert [found.id for found in await mesh_registry.instances("orders")] == ["second"]
    with pytest.raises(InstanceNotFoundError):
        await mesh_registry.deregister(first)
    assert await mesh_registry.instances("nobody") == ()


async def test_it_is_a_registry_to_anybody(mesh_registry: EmbeddedRegistry) -> None:
    await mesh_registry.register("orders", 8081)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{mesh_registry.url}/v1/health/service/orders?passing") as answer,
    ):
        assert [entry["Service"]["Port"] for entry in await answer.json()] == [8081]


async def test_gone_and_back_it_keeps_port_and_state(mesh_registry: EmbeddedRegistry) -> None:
    await mesh_registry.register("orders", 8081)
    url = mesh_registry.url
    await mesh_registry.stop()
    assert not mesh_registry.is_running
    async with ConsulClient(ConsulOptions(url)) as client:
        with pytest.raises(RegistryUnavailableError, match="refused"):
            await ConsulRegistry(client).leader()
    await mesh_registry.start()
    assert mesh_registry.url == url
    assert len(await mesh_registry.instances("orders")) == 1
    await mesh_registry.stop()
    await mesh_registry.start(wiped=True)
    assert await mesh_registry.instances("orders") == ()
    with pytest.raises(RuntimeError, match="runs already"):
        await mesh_registry.start()


async def test_a_follower_lives_through_an_outage(mesh_registry: EmbeddedRegistry) -> None:
    catalog = Latest[CatalogSnapshot]()
    await mesh_registry.register("orders", 8081)
    async with ConsulClient(ConsulOptions(mesh_registry.url)) as client, asyncio.TaskGroup() as tasks:
        following = tasks.create_task(ConsulFollower(client).follow(catalog))

        def shown() -> tuple[bool, int]:
            snapshot = catalog.peek()
            assert snapshot is not None
            return snapshot.is_stale, len(snapshot.services.get(ServiceName("orders"), ()))

        await eventually(lambda: shown() == (False, 1))
        await mesh_registry.stop()
        await eventually(lambda: shown() == (True, 1))
        await mesh_registry.start()
        await mesh_registry.register("orders", 8082)
        await eventually(lambda: shown() == (False, 2))
        following.cancel()


async def test_an_instance_without_beats_is_unhealthy_when_its_ttl_runs_out(mesh_registry: EmbeddedRegistry) -> None:
    await mesh_registry.register("orders", 8081, ttl_seconds=1)

    async def is_unhealthy() -> bool:
        (found,) = await mesh_registry.instances("orders")
        return found.status is HealthStatus.UNHEALTHY

    await eventually(is_unhealthy)


async def test_a_token_may_be_asked_for() -> None:
    async with EmbeddedRegistry(token="a-word") as registry:
        await registry.register("orders", 8081)
        async with ConsulClient(ConsulOptions(registry.url)) as client:
            with pytest.raises(RegistryError, match="403"):
                await ConsulRegistry(client).service_names()

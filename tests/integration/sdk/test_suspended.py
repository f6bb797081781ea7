"""A process that was stopped for longer than the mesh waits for it: back with the first thing that it does.

The reaping itself takes a registry more than a minute; here the instance is taken away by hand while it stands still.
The whole of it, with the clocks of real registries: `bench/suspended.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.integration.discovery.conftest import DiscoveryServer
from tests.integration.sdk.processes import ServiceProcess
from tests.support.go_discovery import go_discovery
from tests.support.servers import RegistryServer
from tests.support.wait import eventually

from toska_mesh.model import HealthStatus, InstanceId, ServiceName
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry

COMMAND = ("-m", "tests.integration.sdk.app_process", "aiohttp")
OVERDUE_SECONDS = 4.0
"""Longer than the pause between two beats, a third of the shortest TTL of 10 s."""


@asynccontextmanager
async def instance(name: str, **env: str) -> AsyncIterator[ServiceProcess]:
    process = ServiceProcess(
        COMMAND,
        name,
        MESH_SERVICE_NAME=name,
        MESH_SERVICE_ID=f"{name}-1",
        MESH_SERVICE_HOST="127.0.0.1",
        MESH_SERVICE_HEALTH_INTERVAL_SECONDS="1",
        MESH_SERVICE_NOTICE_SECONDS="0",
        **env,
    )
    await asyncio.to_thread(process.start)
    try:
        yield process
    finally:
        await asyncio.to_thread(process.close)


async def test_where_the_registry_forgot_it_the_first_beat_registers_it_again() -> None:
    async with go_discovery() as discovery, instance("sleeper", MESH_DISCOVERY_ADDRESS=discovery.target) as process:
        await eventually(lambda: "ReportHealth" in discovery.order)
        process.pause()
        try:
            discovery.forget("sleeper-1")
            before = len(discovery.order)
            await asyncio.sleep(OVERDUE_SECONDS)
            assert len(discovery.order) == before
        finally:
            process.resume()
        await eventually(lambda: "sleeper-1" in discovery.registered, 3)
        assert discovery.order[before : before + 2] == ["ReportHealth", "Register"]


async def test_it_is_healthy_in_the_registry_again_with_its_first_beat() -> None:
    with RegistryServer() as server, DiscoveryServer(server.url) as discovery:
        async with (
            ConsulClient(ConsulOptions(server.url)) as client,
            instance("through-discovery", MESH_DISCOVERY_ADDRESS=discovery.target) as one,
            instance("straight", MESH_REGISTRY_PROVIDER="consul", CONSUL_ADDRESS=server.url) as other,
        ):
            registry = ConsulRegistry(client)
            names = [ServiceName("through-discovery"), ServiceName("straight")]

            async def healthy() -> list[str]:
                found = [one for name in names for one in await registry.instances(name)]
                return [one.id for one in found if one.status is HealthStatus.HEALTHY]

            async def are_both_healthy() -> bool:
                return await healthy() == [f"{name}-1" for name in names]

            await eventually(are_both_healthy)
            one.pause()
            other.pause()
            try:
                for name in names:
                    await registry.deregister(InstanceId(f"{name}-1"))
                await asyncio.sleep(OVERDUE_SECONDS)
                assert await healthy() == []
            finally:
                one.resume()
                other.resume()
            await eventually(are_both_healthy, 3)

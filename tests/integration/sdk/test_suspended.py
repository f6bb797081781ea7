"""A process that was stopped for longer than the mesh waits for it: back with the first thing that it does.

The reaping itself takes a registry more than a minute; here the instance is taken away by hand while it stands still.
The whole of it, with the clocks of real registries: `bench/suspended.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
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
async def instance(**env: str) -> AsyncIterator[ServiceProcess]:
    process = ServiceProcess(
        COMMAND,
        "sleeper",
        MESH_SERVICE_ID="sleeper-1",
        MESH_SERVICE_HOST="127.0.0.1",
        MESH_SERVICE_HEALTH_INTERVAL_SECONDS="1",
        MESH_SERVICE_DRAIN_SECONDS="0",
        **env,
    )
    await asyncio.to_thread(process.start)
    try:
        yield process
    finally:
        await asyncio.to_thread(process.close)


async def test_where_the_registry_forgot_it_the_first_beat_registers_it_again() -> None:
    async with go_discovery() as discovery, instance(MESH_DISCOVERY_ADDRESS=discovery.target) as process:
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


@pytest.mark.parametrize("provider", ["discovery", "consul"])
async def test_it_is_healthy_in_the_registry_again_with_its_first_beat(provider: str) -> None:
    with RegistryServer() as server:
        async with ConsulClient(ConsulOptions(server.url)) as client:
            registry = ConsulRegistry(client)

            async def is_healthy() -> bool:
                found = await registry.instances(ServiceName("sleeper"))
                return [(one.id, one.status) for one in found] == [("sleeper-1", HealthStatus.HEALTHY)]

            async def suspend(process: ServiceProcess) -> None:
                await eventually(is_healthy)
                process.pause()
                try:
                    await registry.deregister(InstanceId("sleeper-1"))
                    await asyncio.sleep(OVERDUE_SECONDS)
                    assert not await is_healthy()
                finally:
                    process.resume()
                await eventually(is_healthy, 3)

            if provider == "consul":
                async with instance(MESH_REGISTRY_PROVIDER="consul", CONSUL_ADDRESS=server.url) as process:
                    await suspend(process)
                return
            with DiscoveryServer(server.url) as discovery:
                async with instance(MESH_DISCOVERY_ADDRESS=discovery.target) as process:
                    await suspend(process)

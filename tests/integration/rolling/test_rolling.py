"""Replacing instances under load costs no request, also while discovery or the registry is restarted.

The same with hundreds of replacements: `bench/rolling.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest
from bench.support.mesh import Mesh, start_mesh
from tests.support.rolling import INSTANCES, Fleet, failures, mixed_load
from tests.support.servers import ConsulServer, RegistryServer, ServerProcess

Registry = ConsulServer | RegistryServer


@pytest.fixture(scope="module", params=["consul", "toska-registry"])
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    with ConsulServer(persistent=True) if request.param == "consul" else RegistryServer() as server:
        yield server


@pytest.fixture(scope="module")
def mesh(registry: Registry) -> Iterator[Mesh]:
    with ExitStack() as stack:
        yield start_mesh(stack, registry)


@pytest.fixture
async def fleet(mesh: Mesh) -> AsyncIterator[Fleet]:
    fleet = Fleet(mesh)
    try:
        await fleet.grow(INSTANCES)
        await fleet.until_routed()
        yield fleet
    finally:
        await asyncio.to_thread(fleet.close)


def kill_and_start(server: ServerProcess) -> None:
    server.kill()
    server.start()


async def test_instances_are_replaced_without_a_failed_request(mesh: Mesh, registry: Registry, fleet: Fleet) -> None:
    async with mixed_load(mesh.gateway_port) as figures:
        await fleet.replace()
        await fleet.replace(lambda: kill_and_start(mesh.discovery))
        await fleet.replace(lambda: kill_and_start(registry))
        await fleet.replace()
        await asyncio.sleep(0.5)  # the load goes on for a moment after the last of them has left
    assert not failures(figures)
    assert all(one.sent > 50 for one in figures), [one.sent for one in figures]

"""Processes that die at once: an instance, the registry."""

import asyncio
from collections.abc import Callable

from tests.integration.faults.mesh import Mesh, in_thread
from tests.support.servers import ConsulServer, RegistryServer
from tests.support.wait import eventually


async def test_killing_one_of_two_instances_fails_no_get(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start()
    load = mesh.load(connections=32)
    async with load.running() as figures:
        await asyncio.sleep(1.0)
        one.kill()
        await asyncio.sleep(1.5)

    figures.assert_no_failure()
    assert figures.instances[one.instance] > 50, figures.instances
    assert figures.instances[two.instance] > figures.instances[one.instance]
    assert mesh.instances()[one.instance]["breaker"] == "open"


async def test_an_instance_that_was_killed_and_is_back_is_used_again(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start(GATEWAY_BREAKER_OPEN_SECONDS=1)
    load = mesh.load(connections=8)
    async with load.running() as figures:
        await asyncio.sleep(0.3)
        one.kill()
        await eventually(lambda: mesh.instances()[one.instance]["breaker"] == "open")
        await in_thread(one.start)
        await eventually(lambda: mesh.instances()[one.instance]["breaker"] == "closed")
        figures.instances.clear()
        await asyncio.sleep(0.3)

    figures.assert_no_failure()
    assert set(figures.instances) == {one.instance, two.instance}


async def test_a_connection_burst_on_a_dead_instance_fails_no_get(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start()
    one.kill()
    # All requests are under way before the first failure can be counted.
    load = mesh.load(connections=200, pause_seconds=0.2, new_connections=True)
    figures = await load.run(1.0)

    figures.assert_no_failure()
    assert set(figures.instances) == {two.instance}


async def _survives_outage(mesh: Mesh, away_seconds: float) -> None:
    """The registry is killed under load; whatever changes after its return arrives."""
    registry = mesh.registry
    one, two = mesh.backend("one"), mesh.backend("two")
    mesh.start()
    load = mesh.load(connections=8, pause_seconds=0.03)
    async with load.running() as figures:
        await asyncio.sleep(0.3)
        registry.kill()
        await eventually(lambda: "stale since" in str(mesh.ready()), what="readiness says since when it is stale")
        assert mesh.ready()[0] == 200
        await asyncio.sleep(away_seconds)
        await in_thread(registry.start)
        three = await in_thread(mesh.backend, "three")
        await eventually(lambda: figures.instances[three.instance], what="the new instance gets requests")
        await in_thread(mesh.register, one.instance, one.port, weight="7")
        await eventually(lambda: mesh.instances()[one.instance]["metadata"].get("weight") == "7")
        await in_thread(mesh.deregister, three.instance)
        await eventually(lambda: three.instance not in mesh.instances(), what="the deregistration arrives")
        await eventually(lambda: "stale" not in str(mesh.ready()[1]))

    figures.assert_no_failure()
    assert figures.instances[one.instance]
    assert figures.instances[two.instance]


async def test_killing_consul_fails_no_request(consul_factory: Callable[..., ConsulServer]) -> None:
    with Mesh(await in_thread(consul_factory, persistent=True), "outage") as mesh:
        await _survives_outage(mesh, 1.0)


async def test_killing_the_embedded_registry_fails_no_request(registry_factory: Callable[..., RegistryServer]) -> None:
    with Mesh(await in_thread(registry_factory), "outage") as mesh:
        await _survives_outage(mesh, 1.0)

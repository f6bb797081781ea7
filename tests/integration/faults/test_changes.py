"""Instances and registries that come, go, freeze and forget while requests go on."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.faults.mesh import Mesh, in_thread
from tests.support.ports import free_port
from tests.support.servers import ConsulServer, RegistryServer
from tests.support.wait import eventually


async def test_a_rolling_replacement_fails_no_request(mesh: Mesh) -> None:
    """As deployments do it: the new one registers, the old one deregisters, drains and ends."""
    running = [mesh.backend(f"old{number}") for number in range(2)]
    mesh.start(GATEWAY_SLOW_START_SECONDS=1)
    load = mesh.load(connections=16)
    slow = mesh.load("/slow/0.3", method="POST", connections=8, pause_seconds=0.01)
    async with load.running() as figures, slow.running() as slow_figures:
        await asyncio.sleep(0.3)
        for number in range(3):
            new = await in_thread(mesh.backend, f"new{number}")
            await eventually(lambda new=new: figures.instances[new.instance])
            old, running = running[0], [*running[1:], new]
            await in_thread(mesh.deregister, old.instance)
            await eventually(lambda old=old: old.instance not in mesh.instances())
            await asyncio.sleep(0.5)  # what it was given before it left
            await in_thread(old.stop)

    figures.assert_no_failure()
    slow_figures.assert_no_failure()


async def test_an_instance_that_moves_to_another_port_is_followed(mesh: Mesh) -> None:
    one = mesh.backend("one")
    two = mesh.backend("two", register=False)
    mesh.start()
    async with mesh.load(connections=8).running() as figures:
        await asyncio.sleep(0.2)
        await in_thread(mesh.register, one.instance, two.port)
        await eventually(lambda: figures.instances[two.instance] > 20)
        await in_thread(one.stop)
        await asyncio.sleep(0.2)

    figures.assert_no_failure()
    assert [item["address"] for item in mesh.instances().values()] == [f"127.0.0.1:{two.port}"]


async def test_a_download_from_a_departed_instance_is_finished(mesh: Mesh) -> None:
    one, two = mesh.backend("one"), mesh.backend("two", register=False)
    mesh.start()
    async with asyncio.TaskGroup() as tasks:
        download = tasks.create_task(mesh.request("GET", "/bytes/1000000/1.5"))
        await eventually(lambda: mesh.instances()[one.instance]["inFlight"] == 1)
        await in_thread(mesh.register, two.instance, two.port)
        await in_thread(mesh.deregister, one.instance)
        await mesh.until_routed(two)
        assert mesh.metrics()["toska_gateway_requests_in_flight"] == 1
        assert len((await download).body) == 1_000_000
    await eventually(lambda: mesh.metrics()["toska_gateway_requests_in_flight"] == 0)


async def test_a_gateway_that_starts_before_its_registry_waits_for_it() -> None:
    registry = RegistryServer()
    try:
        mesh = Mesh(registry, "early")
        with mesh:
            mesh.start(wait=False)
            await eventually(lambda: mesh.ready()[0] == 503)
            await asyncio.sleep(0.5)
            answer = await mesh.request("GET")
            assert answer.status == 503
            assert json.loads(answer.body)["code"] == "no-table-yet"
            assert int(answer.fields["retry-after"]) >= 1
            assert mesh.ready()[0] == 503
            await in_thread(registry.start)
            one = await in_thread(mesh.backend, "one")
            await eventually(lambda: mesh.ready()[0] == 200)
            await mesh.until_routed(one)
            assert (await mesh.request("GET")).instance == one.instance
    finally:
        registry.close()


async def test_with_a_snapshot_the_last_table_is_served_without_a_registry(
    registry_factory: Callable[..., RegistryServer], tmp_path: Path
) -> None:
    registry = await in_thread(registry_factory)
    snapshot = tmp_path / "table.json"
    with Mesh(registry, "kept") as mesh:
        one, two = mesh.backend("one"), mesh.backend("two")
        gateway = mesh.start(GATEWAY_SNAPSHOT_PATH=snapshot)
        await mesh.until_routed(one, two)
        await eventually(lambda: two.instance in snapshot.read_text(errors="replace"))
        gateway.stop()
        await in_thread(registry.kill)

        await in_thread(gateway.start)
        status, report = mesh.ready()
        assert status == 200
        assert "stale since" in str(report)
        figures = await mesh.load(connections=4).run(0.5)
        figures.assert_no_failure()
        assert set(figures.instances) == {one.instance, two.instance}
        assert mesh.metrics()["toska_gateway_table_stale_seconds"] > 0

        await in_thread(registry.start)
        three = await in_thread(mesh.backend, "three")
        await mesh.until_routed(one, two, three)
        await eventually(lambda: "stale" not in str(mesh.ready()[1]))


FOREIGN_TABLE = """{"format": 1, "saved_at": "2026-01-01T00:00:00+00:00", "registry": "http://elsewhere:8500",
"services": {"orders": [{"id": "o1", "host": "127.0.0.1", "port": 9, "status": "Healthy", "output": "",
"metadata": {"scheme": "http"}, "registered_at": null, "create_index": 1}]}}"""


@pytest.mark.parametrize(
    "body", [pytest.param('{"half": [', id="broken"), pytest.param(FOREIGN_TABLE, id="of another registry")]
)
async def test_a_gateway_with_an_unusable_snapshot_starts_all_the_same(
    consul: ConsulServer, tmp_path: Path, body: str
) -> None:
    snapshot = tmp_path / "table.json"
    snapshot.write_text(body)
    with Mesh(consul, "nosnap") as mesh:
        mesh.start(wait=False, GATEWAY_SNAPSHOT_PATH=snapshot, CONSUL_ADDRESS=f"http://127.0.0.1:{free_port()}")
        await eventually(lambda: mesh.ready()[0] == 503)
        assert (await mesh.request("GET")).status == 503


@pytest.fixture(params=["consul", "embedded"])
def own_registry(request: pytest.FixtureRequest) -> ConsulServer | RegistryServer:
    """A registry to be maltreated, of either kind."""
    name = {"consul": "consul_factory", "embedded": "registry_factory"}[request.param]
    started: ConsulServer | RegistryServer = request.getfixturevalue(name)()
    return started


async def test_a_frozen_registry_keeps_the_table_and_its_news_arrive_later(
    own_registry: ConsulServer | RegistryServer,
) -> None:
    with Mesh(own_registry, "frozen") as mesh:
        one = mesh.backend("one")
        two = mesh.backend("two", register=False)
        mesh.start()
        async with mesh.load(connections=8, pause_seconds=0.005).running() as figures:
            own_registry.pause()
            await asyncio.sleep(2.0)
            own_registry.resume()
            await in_thread(mesh.register, two.instance, two.port)
            await mesh.until_routed(one, two)
            await in_thread(mesh.deregister, two.instance)
            await mesh.until_routed(one)
        figures.assert_no_failure()


async def test_a_wiped_registry_keeps_the_table_until_everybody_is_back(
    own_registry: ConsulServer | RegistryServer,
) -> None:
    with Mesh(own_registry, "wiped") as mesh:
        one, two = mesh.backend("one"), mesh.backend("two")
        mesh.start()
        for number in range(30):  # the index was far ahead of where it starts over
            mesh.call("PUT", f"/kv/filler/{number}", b"x")
        async with mesh.load(connections=8, pause_seconds=0.005).running() as figures:
            await in_thread(own_registry.wipe_and_restart)
            await asyncio.sleep(1.0)
            assert set(mesh.instances()) == {one.instance, two.instance}
            await in_thread(mesh.register, one.instance, one.port)
            three = await in_thread(mesh.backend, "three")
            await eventually(lambda: figures.instances[three.instance])
            assert two.instance in mesh.instances()  # not heard of yet, and not forgotten
            await in_thread(mesh.register, two.instance, two.port, weight="3")
            await eventually(lambda: mesh.instances()[two.instance]["metadata"].get("weight") == "3")
            await in_thread(mesh.deregister, three.instance)
            await mesh.until_routed(one, two)
        figures.assert_no_failure()

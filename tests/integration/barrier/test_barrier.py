"""Waiting for real gateways: what a wait promises under load, and what it says when somebody hangs, dies, restarts."""

import asyncio
import base64
import itertools
import json
import signal
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.integration.faults.mesh import Gateway, Mesh, Pool
from tests.support.process import http_get
from tests.support.servers import ConsulServer, RegistryServer
from tests.support.wait import eventually

from toska_mesh.model import HealthStatus, InstanceId, ServiceName
from toska_mesh.registry.api import BarrierReport
from toska_mesh.registry.consul import ConsulClient, ConsulGatewayBarrier, ConsulOptions, ConsulRegistry

Server = ConsulServer | RegistryServer
_numbers = itertools.count(1)
on_the_embedded_registry = pytest.mark.parametrize("server", ["toska-registry"], indirect=True)
"""What is about the gateway: the contract suite runs the registry's part over both."""


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.close()


@pytest.fixture(scope="module", params=["consul", "toska-registry"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One of the test module's own: the shared Consul has gateways of other tests in it."""
    with ExitStack() as stack:
        yield stack.enter_context(ConsulServer(persistent=True) if request.param == "consul" else RegistryServer())


@pytest.fixture
def mesh(server: Server, pool: Pool) -> Iterator[Mesh]:
    with Mesh(server, f"orders{next(_numbers)}", pool) as made:
        yield made


@pytest.fixture
async def client(server: Server) -> AsyncIterator[ConsulClient]:
    async with ConsulClient(ConsulOptions(server.url)) as made:
        yield made


async def wait(client: ConsulClient, mesh: Mesh, seconds: float = 20) -> BarrierReport:
    deadline = asyncio.get_running_loop().time() + seconds
    return await ConsulGatewayBarrier(client).wait_applied(ServiceName(mesh.service), deadline)


async def drain(client: ConsulClient, instance: str) -> None:
    await ConsulRegistry(client).report_health(InstanceId(instance), HealthStatus.DEGRADED, "draining for a deploy")


async def gateways(client: ConsulClient) -> dict[str, dict[str, Any]]:
    answer = await client.call("GET", "/v1/kv/toska/gateways/", {"recurse": ""}, missing_ok=True)
    entries = json.loads(answer.body) if answer.status != 404 else []
    return {entry["Key"]: {**entry, **json.loads(base64.b64decode(entry["Value"]))} for entry in entries}


async def are_seen(client: ConsulClient, count: int, before: Collection[str] = ()) -> Collection[str]:
    """So many gateways, those from before not counted: one that is ready may have workers that are not yet."""
    found = (await gateways(client)).keys() - set(before)
    return found if len(found) == count else ()


def names_of(gateway: Gateway, states: dict[str, dict[str, Any]]) -> list[str]:
    """Keys of a gateway that runs as one process."""
    return [key for key in states if f"-{gateway.pid}-" in key]


async def test_after_the_wait_no_request_reaches_the_instance_by_any_gateway(mesh: Mesh, client: ConsulClient) -> None:
    leaving, _ = mesh.backend("1"), mesh.backend("2")
    both = [mesh.start(), mesh.start(GATEWAY_WORKERS=2)]
    await eventually(lambda: are_seen(client, 3))
    loads = []
    for gateway in both:
        mesh.gateway = gateway
        loads.append(mesh.load(new_connections=True, connections=4))
    async with loads[0].running() as first, loads[1].running() as second:
        await eventually(lambda: all(load.instances[leaving.instance] > 20 for load in (first, second)))
        await drain(client, leaving.instance)
        report = await wait(client, mesh)
        assert report.is_applied, report
        assert len(report.gateways) == 3
        asked = [figures.sent for figures in (first, second)]

        def in_flight() -> int:
            found = 0
            for gateway in both:
                _, body = http_get(f"http://127.0.0.1:{gateway.admin_port}/instances?service={mesh.service}")
                found += sum(one["inFlight"] for one in json.loads(body) if one["id"] == leaving.instance)
            return found

        # What was given to it before may still be under way; it is not much, and nothing comes after it.
        await eventually(lambda: not in_flight())
        reached = leaving.requests
        await eventually(lambda: min(first.sent - asked[0], second.sent - asked[1]) > 200)
        assert leaving.requests == reached
    for figures in (first, second):
        figures.assert_no_failure()


@on_the_embedded_registry
async def test_a_gateway_tells_how_far_it_is(mesh: Mesh, client: ConsulClient) -> None:
    mesh.backend("1")
    gateway = mesh.start()
    report = await wait(client, mesh)
    (mine,) = [one for one in report.gateways if f"-{gateway.pid}-" in one.name]
    _, routes = http_get(f"http://127.0.0.1:{gateway.admin_port}/routes")
    assert json.loads(routes)["appliedIndex"] == mine.applied_index == report.index
    _, metrics = http_get(f"http://127.0.0.1:{gateway.admin_port}/metrics")
    assert f"toska_gateway_applied_index {float(report.index)}" in metrics.decode()
    states = await gateways(client)
    (key,) = names_of(gateway, states)
    assert states[key]["tableVersion"] == json.loads(routes)["version"]


@on_the_embedded_registry
async def test_a_frozen_gateway_is_named_and_passes_the_fence_when_it_thaws(mesh: Mesh, client: ConsulClient) -> None:
    mesh.backend("1")
    gateway = mesh.start(own=True)
    gateway.pause()
    try:
        late = await wait(client, mesh, 1)
        assert not late.is_applied
        assert f"-{gateway.pid}-" in late.reason
        assert sum(one.applied_index >= late.index for one in late.gateways) == len(late.gateways) - 1
    finally:
        gateway.resume()
    assert (await wait(client, mesh)).is_applied
    await asyncio.to_thread(gateway.stop)  # killed at the end, the next test would wait for it


@on_the_embedded_registry
async def test_a_killed_gateway_is_waited_for_until_its_session_ends(mesh: Mesh, client: ConsulClient) -> None:
    mesh.backend("1")
    gateway = mesh.start(own=True)
    gateway.kill()
    states = await gateways(client)
    (key,) = names_of(gateway, states)
    late = await wait(client, mesh, 1)
    assert not late.is_applied
    assert key.removeprefix("toska/gateways/") in late.reason
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wait(client, mesh))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        # As the registry does once the TTL has run out, 10 to 20 s later.
        await client.call("PUT", f"/v1/session/destroy/{states[key]['Session']}")
    assert waiting.result().is_applied


@on_the_embedded_registry
async def test_a_gateway_that_ends_or_renews_its_workers_leaves_no_trace(mesh: Mesh, client: ConsulClient) -> None:
    mesh.backend("1")
    before = await gateways(client)
    gateway = mesh.start(own=True, GATEWAY_WORKERS=2)
    first = await eventually(lambda: are_seen(client, 2, before))
    gateway.signal(signal.SIGHUP)

    async def are_others() -> bool:
        now = (await gateways(client)).keys() - before.keys()
        return len(now) == 2 and now.isdisjoint(first)

    await eventually(are_others, 20)
    assert (await wait(client, mesh)).is_applied
    await asyncio.to_thread(gateway.stop)
    assert (await gateways(client)).keys() == before.keys()


@pytest.mark.parametrize("kind", ["consul", "toska-registry"])
async def test_a_registry_that_restarts_during_the_wait_is_waited_out(
    kind: str,
    consul_factory: Callable[..., ConsulServer],
    registry_factory: Callable[..., RegistryServer],
    tmp_path: Path,
) -> None:
    server: Server = await asyncio.to_thread(consul_factory, True) if kind == "consul" else registry_factory()
    with Mesh(server, "orders") as mesh:
        leaving, _ = mesh.backend("1"), mesh.backend("2")
        gateway = mesh.start(GATEWAY_SNAPSHOT_PATH=tmp_path / "table.json")
        async with ConsulClient(ConsulOptions(server.url)) as client, asyncio.TaskGroup() as tasks:
            gateway.pause()
            await drain(client, leaving.instance)
            waiting = tasks.create_task(wait(client, mesh, 40))
            await eventually(lambda: _has_fence(client))
            await asyncio.to_thread(server.kill)
            gateway.resume()
            await asyncio.to_thread(server.start)
            report = await waiting
            assert report.is_applied, report
            assert len(report.gateways) == 1
            shown = {one["id"]: one["status"] for one in mesh.instances().values()}
            assert shown[leaving.instance] == "Degraded"

        # Without a registry it starts from its disk as ever, and is seen when the registry is back.
        await eventually((tmp_path / "table.json").exists)
        await asyncio.to_thread(gateway.stop)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(gateway.start)
        assert mesh.instances()
        await asyncio.to_thread(server.start)
        async with ConsulClient(ConsulOptions(server.url)) as client:
            await eventually(lambda: _is_seen(client, gateway), 20)
            assert (await wait(client, mesh, 70)).is_applied


async def _has_fence(client: ConsulClient) -> bool:
    return (await client.call("GET", "/v1/kv/toska/fences/", {"keys": ""}, missing_ok=True)).status == 200


async def _is_seen(client: ConsulClient, gateway: Gateway) -> bool:
    try:
        return bool(names_of(gateway, await gateways(client)))
    except Exception as error:
        raise AssertionError from error

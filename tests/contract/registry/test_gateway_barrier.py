"""Waiting for gateways over every registry behind the seam: real followers, real sessions, no gateway around them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tests.support.servers import ConsulServer, RegistryServer
from tests.support.wait import eventually

from toska_mesh.aio import Latest
from toska_mesh.model import CatalogSnapshot, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.registry.api import BarrierReport, Registration
from toska_mesh.registry.consul import (
    ConsulClient,
    ConsulFollower,
    ConsulGatewayBarrier,
    ConsulGatewayPresence,
    ConsulOptions,
    ConsulRegistry,
)
from toska_mesh.registry.consul.beats import BeatingRegistry

Server = ConsulServer | RegistryServer
NewId = Callable[[], InstanceId]


@pytest.fixture(scope="module", params=["consul", "toska-registry"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One of our own: in a shared one gateways that other tests have killed stay listed for a while."""
    with ConsulServer() if request.param == "consul" else RegistryServer() as started:
        yield started


class Gateway:
    """What a gateway does for a waiter, without the traffic."""

    def __init__(self, client: ConsulClient, name: str) -> None:
        self.catalog = Latest[CatalogSnapshot]()
        self.follower = ConsulFollower(client)
        self.presence = ConsulGatewayPresence(client, name, self._apply)
        self.is_stuck = False

    async def _apply(self, service: ServiceName) -> None:
        while self.is_stuck:
            await asyncio.sleep(0.02)
        await self.follower.reread(service)

    def instance(self, service: ServiceName, instance_id: InstanceId) -> Instance | None:
        snapshot = self.catalog.peek()
        assert snapshot is not None
        return next((one for one in snapshot.services.get(service, ()) if one.id == instance_id), None)


@asynccontextmanager
async def gateway(server: Server, name: str) -> AsyncIterator[Gateway]:
    async with ConsulClient(ConsulOptions(server.url)) as client, asyncio.TaskGroup() as tasks:
        made = Gateway(client, name)
        running = [
            tasks.create_task(made.presence.run(), name=f"presence of {name}"),
            tasks.create_task(made.follower.follow(made.catalog), name=f"follower of {name}"),
        ]
        await made.catalog.first()
        await eventually(lambda: made.presence.announced.is_set())
        try:
            yield made
        finally:
            for task in running:
                task.cancel()


@pytest.fixture
def barrier(client: ConsulClient) -> ConsulGatewayBarrier:
    return ConsulGatewayBarrier(client)


async def wait(barrier: ConsulGatewayBarrier, service: ServiceName, seconds: float = 10) -> BarrierReport:
    return await barrier.wait_applied(service, asyncio.get_running_loop().time() + seconds)


async def keys(client: ConsulClient, prefix: str = "toska/fences/") -> bytes:
    return (await client.call("GET", f"/v1/kv/{prefix}", {"keys": ""}, missing_ok=True)).body


def registration(service: ServiceName, instance_id: InstanceId) -> Registration:
    return Registration(service, instance_id, "10.1.2.3", 8080, {"scheme": "http"})


async def test_every_change_is_in_every_gateway_when_the_wait_ends(
    server: Server,
    client: ConsulClient,
    registry: ConsulRegistry,
    service: ServiceName,
    new_id: NewId,
    barrier: ConsulGatewayBarrier,
) -> None:
    one = new_id()
    async with gateway(server, "gw-1") as first, gateway(server, "gw-2") as second:

        async def seen() -> list[Instance | None]:
            report = await wait(barrier, service)
            assert report.is_applied, report
            assert [(seen.name, seen.applied_index >= report.index) for seen in report.gateways] == [
                ("gw-1", True),
                ("gw-2", True),
            ]
            return [here.instance(service, one) for here in (first, second)]

        for _ in range(3):
            await registry.register(registration(service, one))
            assert [found and found.is_draining for found in await seen()] == [False, False]
            await registry.report_health(one, HealthStatus.DEGRADED, "draining for a deploy")
            assert [found and found.is_draining for found in await seen()] == [True, True]
            await registry.deregister(one)
            assert await seen() == [None, None]
        await registry.register(replace(registration(service, one), metadata={"scheme": "http", "version": "2"}))
        assert [found and found.metadata["version"] for found in await seen()] == ["2", "2"]
    assert service.encode() not in await keys(client)
    assert await keys(client, "toska/gateways/") == b""


@pytest.mark.parametrize("is_pipelined", [False, True])
async def test_a_drain_note_of_an_instance_that_was_degraded_before_arrives_too(
    server: Server,
    client: ConsulClient,
    service: ServiceName,
    new_id: NewId,
    barrier: ConsulGatewayBarrier,
    is_pipelined: bool,
) -> None:
    one = new_id()
    async with contextlib.AsyncExitStack() as stack, gateway(server, "gw-1") as it:
        registry = await stack.enter_async_context(BeatingRegistry(client)) if is_pipelined else ConsulRegistry(client)
        await registry.register(registration(service, one))
        await registry.report_health(one, HealthStatus.DEGRADED, "slow")
        for words in ("draining", "draining, 3 left"):
            await registry.report_health(one, HealthStatus.DEGRADED, words)
            report = await wait(barrier, service)
            assert report.is_applied, report
            found = it.instance(service, one)
            assert found is not None
            assert found.is_draining


async def test_mere_words_that_an_agent_keeps_to_itself_are_not_said_to_have_arrived(
    server: Server,
    client: ConsulClient,
    registry: ConsulRegistry,
    service: ServiceName,
    new_id: NewId,
    barrier: ConsulGatewayBarrier,
) -> None:
    one = new_id()
    await registry.register(registration(service, one))
    await registry.report_health(one, HealthStatus.DEGRADED, "slow")
    async with gateway(server, "gw-1") as it:
        # As another control plane would say it, without making way for the note.
        await client.call("PUT", f"/v1/agent/check/warn/service:{one}", {"note": "draining"})
        report = await wait(barrier, service, 1)
        found = it.instance(service, one)
        assert found is not None
        assert report.is_applied is found.is_draining, report


async def test_a_gateway_that_hangs_is_named_and_one_that_leaves_is_not_waited_for(
    server: Server, client: ConsulClient, service: ServiceName, barrier: ConsulGatewayBarrier
) -> None:
    async with gateway(server, "gw-1"), asyncio.TaskGroup() as tasks:
        async with gateway(server, "gw-2") as second:
            second.is_stuck = True
            late = await wait(barrier, service, 1)
            assert not late.is_applied
            assert late.reason == "1 of 2 gateways have not applied it: gw-2"
            waiting = tasks.create_task(wait(barrier, service))
            await eventually(lambda: keys(client))
        report = await waiting
        assert report.is_applied
        assert [one.name for one in report.gateways] == ["gw-1"]
    assert service.encode() not in await keys(client)


async def test_a_gateway_that_died_without_a_word_is_gone_with_its_session(
    server: Server, client: ConsulClient, service: ServiceName, barrier: ConsulGatewayBarrier
) -> None:
    answer = await client.call("PUT", "/v1/session/create", body=b'{"TTL": "15s", "Behavior": "delete"}')
    session = answer.body.decode().split('"')[3]
    await client.call("PUT", "/v1/kv/toska/gateways/dead", {"acquire": session}, b'{"applied": 1}')
    assert not (await wait(barrier, service, 0.5)).is_applied
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(wait(barrier, service))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        # What the registry does itself when the TTL runs out; it may take twice as long as the TTL.
        await client.call("PUT", f"/v1/session/destroy/{session}")
    assert waiting.result().is_applied


async def test_many_waits_at_once_for_the_same_and_for_other_services_all_end(
    server: Server, client: ConsulClient, service: ServiceName, barrier: ConsulGatewayBarrier
) -> None:
    others = [ServiceName(f"{service}-{number}") for number in range(5)]
    async with gateway(server, "gw-1"), gateway(server, "gw-2"), asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(wait(barrier, name, 20)) for name in [service] * 10 + others * 2]
    assert all(one.result().is_applied for one in waits), [one.result() for one in waits]
    assert service.encode() not in await keys(client)

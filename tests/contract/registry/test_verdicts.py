"""Verdicts and leadership over every registry behind the seam."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import orjson
from tests.support.servers import ConsulServer, RegistryServer
from tests.support.wait import eventually

from toska_mesh.aio import Latest
from toska_mesh.model import NO_VERDICTS, HealthStatus, InstanceId, ServiceName, Verdicts
from toska_mesh.registry.consul import (
    ConsulClient,
    ConsulLeaderLock,
    ConsulOptions,
    ConsulVerdictBoard,
    ConsulVerdictFollower,
)
from toska_mesh.registry.consul.client import segment

Server = ConsulServer | RegistryServer


def verdicts(service: ServiceName, found: Mapping[str, HealthStatus], probed: int) -> Verdicts:
    return Verdicts({service: {InstanceId(key): status for key, status in found.items()}}, {service: probed})


@asynccontextmanager
async def monitor(server: Server, name: str, source: Latest[Verdicts]) -> AsyncIterator[ConsulVerdictBoard]:
    async with ConsulClient(ConsulOptions(server.url)) as client, asyncio.TaskGroup() as tasks:
        board = ConsulVerdictBoard(client, name)
        running = tasks.create_task(board.run(source), name=name)
        try:
            yield board
        finally:
            running.cancel()


@asynccontextmanager
async def gateway(server: Server) -> AsyncIterator[Latest[Verdicts]]:
    seen = Latest[Verdicts]()
    async with ConsulClient(ConsulOptions(server.url)) as client, asyncio.TaskGroup() as tasks:
        running = tasks.create_task(ConsulVerdictFollower(client).follow(seen), name="gateway")
        try:
            yield seen
        finally:
            running.cancel()


async def test_verdicts_arrive_change_and_vanish_with_the_monitor(server: Server, service: ServiceName) -> None:
    source = Latest[Verdicts]()
    async with gateway(server) as seen:
        await eventually(lambda: seen.peek() == NO_VERDICTS)
        async with monitor(server, "monitor-1", source) as board:
            await eventually(lambda: board.is_leader)
            first = verdicts(service, {"a": HealthStatus.UNHEALTHY, "b": HealthStatus.DEGRADED}, 5)
            source.set(first)
            await eventually(lambda: seen.peek() == first)
            second = verdicts(service, {"b": HealthStatus.UNHEALTHY}, 5)
            source.set(second)
            await eventually(lambda: seen.peek() == second)
            source.set(NO_VERDICTS)
            await eventually(lambda: seen.peek() == NO_VERDICTS)
            source.set(first)
            await eventually(lambda: seen.peek() == first)
        await eventually(lambda: seen.peek() == NO_VERDICTS)


async def test_one_of_two_monitors_writes_and_the_other_takes_over(server: Server, service: ServiceName) -> None:
    mine, theirs = Latest[Verdicts](), Latest[Verdicts]()
    mine.set(verdicts(service, {"a": HealthStatus.UNHEALTHY}, 1))
    theirs.set(verdicts(service, {"b": HealthStatus.UNHEALTHY}, 2))
    async with gateway(server) as seen, monitor(server, "first", mine) as first:
        await eventually(lambda: first.is_leader)
        await eventually(lambda: seen.peek() == mine.peek())
        async with monitor(server, "second", theirs) as second:
            await asyncio.sleep(0.3)
            assert not second.is_leader
            assert seen.peek() == mine.peek()
            await _leave(server, "first")
            await eventually(lambda: first.is_leader != second.is_leader)
            leader = mine if first.is_leader else theirs
            await eventually(lambda: seen.peek() == leader.peek())


async def _leave(server: Server, name: str) -> None:
    """Destroy the sessions of that name, as an operator might."""
    async with ConsulClient(ConsulOptions(server.url)) as client:
        for session in orjson.loads((await client.call("GET", "/v1/session/list")).body):
            if session["Name"] == name:
                await client.call("PUT", f"/v1/session/destroy/{segment(session['ID'])}")


async def test_a_leader_that_leaves_hands_over_at_once(server: Server, service: ServiceName) -> None:
    key = f"toska/test/{service}/leader"
    async with ConsulClient(ConsulOptions(server.url)) as client, asyncio.TaskGroup() as tasks:
        first, second = (ConsulLeaderLock(client, key, name) for name in ("first", "second"))
        running = tasks.create_task(first.run())
        await eventually(lambda: first.is_leader)
        waiting = tasks.create_task(second.run())
        await asyncio.sleep(0.2)
        assert not second.is_leader
        running.cancel()
        await eventually(lambda: second.is_leader, seconds=5)
        assert not first.is_leader
        assert second.leadership.peek() is True
        waiting.cancel()

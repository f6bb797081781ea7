"""Parts of the mesh that freeze, die and forget, under beats and requests."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import aio_pika
from tests.integration.mesh.mesh import HEALTHY, UNHEALTHY, Beats, Mesh, Sdk, serving
from tests.support.load import Figures
from tests.support.servers import RabbitMQServer
from tests.support.wait import eventually

EXCHANGE = "ToskaMesh.Common.Messaging:ServiceHealthChangedEvent"


@asynccontextmanager
async def busy_service(mesh: Mesh, sdk: Sdk, service: str) -> AsyncIterator[tuple[Beats, Figures, tuple[str, str]]]:
    """Two instances that registered once, beat, and answer a constant stream of requests."""
    one, two = names = (f"{service}-1", f"{service}-2")
    async with serving(*names) as instances:
        for name in names:
            await sdk.register(service, name, instances[name].port)
        await mesh.until_eligible(service, names)
        async with sdk.beating(*names) as beats, mesh.load(service).running() as figures:
            await beats.until_taken()
            yield beats, figures, (one, two)
        await mesh.until_calm()
        for name in names:
            assert await sdk.deregister(name)


async def registration_times(sdk: Sdk, service: str) -> dict[str, int]:
    return {key: found.registeredAt.ToMicroseconds() for key, found in (await sdk.instances(service)).items()}


@asynccontextmanager
async def health_changes(rabbitmq: RabbitMQServer) -> AsyncIterator[list[tuple[str, str, str]]]:
    """Instance, previous and current status of every change that is announced, as they come."""
    seen: list[tuple[str, str, str]] = []

    async def take(message: Any) -> None:
        body = json.loads(message.body)["message"]
        seen.append((body["serviceId"], body["previousStatus"], body["currentStatus"]))

    async with await aio_pika.connect(rabbitmq.url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.FANOUT, durable=True)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange)
        tag = await queue.consume(take, no_ack=True)
        yield seen
        await queue.cancel(tag)


async def _stops_beating(mesh: Mesh, sdk: Sdk, service: str, changes: list[tuple[str, str, str]]) -> None:
    silent, beating = f"{service}-silent", f"{service}-beating"
    async with serving(silent, beating) as instances:
        for name in (silent, beating):
            await sdk.register(service, name, instances[name].port, healthCheck={"intervalSeconds": 5})
        await mesh.until_eligible(service, {silent, beating})
        async with sdk.beating(beating, every_seconds=1), mesh.load(service, pause_seconds=0.05).running() as figures:
            await mesh.until_eligible(service, {beating}, 25)  # the TTL is 10 s
            assert (await sdk.instances(service))[silent].status == UNHEALTHY
            await eventually(lambda: (silent, "Healthy", "Unhealthy") in changes, 40)  # longer without a leader
            assert await sdk.beat(silent)
            await mesh.until_eligible(service, {silent, beating})
            assert (await sdk.instances(service))[silent].status == HEALTHY
            await eventually(lambda: (silent, "Unhealthy", "Healthy") in changes, 15)
        figures.assert_no_failure()
        assert not [change for change in changes if change[0] == beating]
        for name in (silent, beating):
            assert await sdk.deregister(name)


async def _fails_its_probes(mesh: Mesh, sdk: Sdk, service: str) -> None:
    """The instance beats all the time and says it is healthy; only its health path knows better."""
    names = {f"{service}-{number}" for number in (1, 2, 3)}
    sick = f"{service}-1"
    async with serving(*names) as instances:
        for name in names:
            await sdk.register(service, name, instances[name].port)
        await mesh.until_eligible(service, names)
        async with sdk.beating(*names, every_seconds=2), mesh.load(service, pause_seconds=0.05).running() as figures:
            instances[sick].is_healthy = False
            await mesh.until_eligible(service, names - {sick}, 25)
            entry = mesh.routed(service)[sick]
            assert (entry["status"], entry["verdict"]) == ("Healthy", "Unhealthy")
            assert entry["why"]
            await asyncio.sleep(0.3)  # what was under way has been answered
            figures.instances.clear()
            await eventually(lambda: sum(figures.instances.values()) > 20)
            assert set(figures.instances) == names - {sick}

            mesh.monitor.kill()
            try:
                await mesh.until_eligible(service, names, 45)  # the session's TTL, at most twice
                await eventually(lambda: figures.instances[sick])
            finally:
                await asyncio.to_thread(mesh.monitor.start)
            await mesh.until_eligible(service, names - {sick}, 45)
            instances[sick].is_healthy = True
            await mesh.until_eligible(service, names, 25)
        figures.assert_no_failure()
        for name in names:
            assert await sdk.deregister(name)


async def test_an_instance_leaves_the_routes_when_it_stops_beating_or_fails_its_probes_and_comes_back(
    meshes: Mapping[str, Mesh], generated: tuple[ModuleType, ModuleType], rabbitmq: RabbitMQServer, service: str
) -> None:
    """Back with its next beat; or, while it still fails, when the monitor is killed, whose verdicts die with it.

    On both registries at once, and both stories at once: they are made of waiting for times to live.
    """

    async def play(mesh: Mesh) -> None:
        mesh.assert_unharmed()
        async with mesh.connect(generated) as sdk, asyncio.TaskGroup() as stories:
            stories.create_task(_stops_beating(mesh, sdk, f"{service}-{mesh.kind}-beat", changes))
            stories.create_task(_fails_its_probes(mesh, sdk, f"{service}-{mesh.kind}-probe"))
        mesh.assert_unharmed()

    async with health_changes(rabbitmq) as changes, asyncio.TaskGroup() as tasks:
        for kind, mesh in meshes.items():
            tasks.create_task(play(mesh), name=kind)


async def test_a_frozen_registry_costs_no_request_and_holds_no_call_beyond_its_deadline(
    mesh: Mesh, sdk: Sdk, service: str
) -> None:
    loop = asyncio.get_running_loop()
    async with busy_service(mesh, sdk, service) as (beats, figures, names):
        mesh.registry.pause()
        try:
            started = loop.time()
            assert not await sdk.beat(names[0], timeout=1.5)
            answer = await sdk.stub.Register(
                sdk.pb.RegisterServiceRequest(serviceName=f"{service}-late", serviceId="late", port=9), timeout=1.5
            )
            assert not answer.success
            assert answer.errorMessage
            # Both were answered, and in time: the client would have raised otherwise. Reading falls back on memory.
            assert set(await sdk.instances(service)) == set(names)
            assert loop.time() - started < 10
        finally:
            mesh.registry.resume()
        await beats.until_taken()
        assert mesh.eligible(service) == set(names)
        await mesh.until_calm()
    figures.assert_no_failure()
    assert not beats.failures, beats.failures
    assert set(figures.instances) == set(names)


async def test_what_still_beats_is_back_after_the_registry_was_wiped(mesh: Mesh, sdk: Sdk, service: str) -> None:
    """Neither service registers a second time: the Go SDK never does."""
    async with busy_service(mesh, sdk, service) as (beats, figures, names):
        before = await registration_times(sdk, service)
        await asyncio.to_thread(mesh.registry.wipe_and_restart)
        await beats.until_taken()
        await eventually(lambda: back_in(mesh, service) == set(names), 20, what="the registry knows them again")
        assert await registration_times(sdk, service) == before
        await mesh.until_calm()
        await mesh.until_eligible(service, names)
        figures.instances.clear()
        await eventually(lambda: set(figures.instances) == set(names))
    figures.assert_no_failure()


def back_in(mesh: Mesh, service: str) -> set[str]:
    """Passing instances, as the registry itself has them."""
    return {entry["Service"]["ID"] for entry in mesh.call_registry("GET", f"/health/service/{service}?passing")}


async def test_killing_the_registry_costs_no_request_and_what_comes_later_arrives(
    mesh: Mesh, sdk: Sdk, service: str
) -> None:
    late = f"{service}-3"
    async with busy_service(mesh, sdk, service) as (beats, figures, names), serving(late) as instances:
        before = await registration_times(sdk, service)
        mesh.registry.kill()
        await asyncio.sleep(1.5)
        registering = asyncio.to_thread(mesh.registry.start)
        await asyncio.gather(registering, sdk.register(service, late, instances[late].port))  # noqa: TID251 - of a test
        await mesh.until_eligible(service, {*names, late}, 20)
        await beats.until_taken()
        await eventually(lambda: figures.instances[late])
        after = await registration_times(sdk, service)
        assert after.items() >= before.items()
        assert await sdk.deregister(late)
        await mesh.until_eligible(service, names)
    figures.assert_no_failure()


async def test_killing_discovery_costs_no_request_and_beats_go_on(mesh: Mesh, sdk: Sdk, service: str) -> None:
    async with busy_service(mesh, sdk, service) as (beats, figures, names):
        before = await registration_times(sdk, service)
        mesh.discovery.kill()
        await asyncio.sleep(0.5)
        assert mesh.eligible(service) == set(names)
        await asyncio.to_thread(mesh.discovery.start)
        await beats.until_taken()
        assert await registration_times(sdk, service) == before
        assert not beats.refused
    figures.assert_no_failure()

"""Starting when something is missing or taken: a port, a folder, the registry, the broker."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import grpc.aio
import pytest
from tests.integration.daemons.daemons import (
    ALL,
    DISCOVERY,
    GATEWAY,
    HEALTHMONITOR,
    NO_BROKER,
    Daemon,
    Running,
    run_to_the_end,
)
from tests.integration.messaging.proxy import proxying
from tests.support.ports import free_port
from tests.support.servers import ConsulServer, RabbitMQServer, RegistryServer
from tests.support.wait import eventually

from toska_mesh.pb import discovery_pb2 as pb
from toska_mesh.pb.discovery_pb2_grpc import DiscoveryRegistryStub

Make = Callable[..., Running]
NAMESPACE = "ToskaMesh.Common.Messaging"
EARLY = "early-bird"


@pytest.mark.parametrize(("daemon", "variable"), [(daemon, port) for daemon in ALL for port in daemon.ports])
def test_a_port_in_use_is_named_with_its_variable(daemon: Daemon, variable: str, make: Make) -> None:
    running = make(daemon)
    with socket.create_server(("127.0.0.1", running.ports[variable])):
        ended = run_to_the_end(daemon.program, running.home, running.env)
    assert ended.code == 2, ended
    assert ended.errors == (
        f"{daemon.program}: port {running.ports[variable]} is in use by another program;"
        f" stop it or set {variable} to a free port\n"
    )
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("daemon", [d for d in ALL if d.data_dir], ids=str)
@pytest.mark.parametrize("folder", ["{file}", "/proc/nobody-can-write-here"])
def test_a_folder_that_cannot_be_used_is_named_with_its_variable(
    daemon: Daemon, folder: str, make: Make, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    path = folder.format(file=file)
    env = make(daemon).env | {daemon.data_dir: path}
    if daemon is HEALTHMONITOR:
        env["RABBITMQ_URL"] = NO_BROKER  # without a broker it keeps nothing
    ended = run_to_the_end(daemon.program, tmp_path, env)
    assert ended.code == 2, ended
    assert len(ended.lines) == 1, ended
    assert ended.errors.startswith(f"{daemon.program}: {daemon.data_dir}={path!r} "), ended
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("daemon", [d for d in ALL if d.data_dir], ids=str)
async def test_a_second_process_stays_out_of_the_first_ones_folder(daemon: Daemon, make: Make) -> None:
    broker = {"RABBITMQ_URL": NO_BROKER} if daemon is HEALTHMONITOR else {}
    first, second = make(daemon, **broker), make(daemon, **broker)
    await asyncio.to_thread(first.start, False)
    await eventually(first.is_live, 30)
    folder = str(first.data)
    ended = await asyncio.to_thread(run_to_the_end, daemon.program, second.home, second.env | {daemon.data_dir: folder})
    assert ended.code == 2, ended
    assert len(ended.lines) == 1, ended
    assert ended.errors.startswith(f"{daemon.program}: {daemon.data_dir}={folder!r} is in use by another "), ended
    await asyncio.to_thread(first.assert_clean_exit)


@pytest.mark.parametrize("daemon", [d for d in ALL if d.follows], ids=str)
async def test_without_a_registry_it_lives_says_why_it_is_not_ready_and_catches_up(
    daemon: Daemon, make: Make, registry_factory: Callable[[], RegistryServer]
) -> None:
    registry = RegistryServer()
    running = make(daemon, registry.url)
    try:
        await asyncio.to_thread(running.start, False)
        await eventually(running.is_live, 30)
        check = {GATEWAY: "routes", DISCOVERY: "registry", HEALTHMONITOR: "catalog"}[daemon]
        await eventually(lambda: registry.url in str(running.readiness()[1][check]["description"]), 10)
        status, checks = running.readiness()
        assert status == 503
        assert checks[check]["status"] == "Unhealthy"
        await asyncio.to_thread(registry.start)
        await eventually(running.is_ready, 20)
        assert running.is_running
        await asyncio.to_thread(running.assert_clean_exit)
    finally:
        await asyncio.to_thread(registry.close)


async def test_events_of_a_start_without_a_broker_are_delivered_when_it_comes(
    consul: ConsulServer, rabbitmq: RabbitMQServer, make: Make
) -> None:
    """Discovery and the monitor: ready and degraded while the broker is away, and nothing is lost."""
    port = free_port()  # where the broker will come to be
    url = f"amqp://guest:guest@127.0.0.1:{port}/"
    discovery = make(DISCOVERY, consul.url, RABBITMQ_URL=url)
    monitor = make(
        HEALTHMONITOR,
        consul.url,
        RABBITMQ_URL=url,
        HEALTHMONITOR_PROBE_INTERVAL_SECONDS="0.2",
        HEALTHMONITOR_FAILURE_THRESHOLD="1",
    )
    async with await aio_pika.connect(rabbitmq.url) as connection, listening(connection) as events:
        for daemon in (discovery, monitor):
            await asyncio.to_thread(daemon.start)
        for daemon in (discovery, monitor):
            await eventually(lambda daemon=daemon: daemon.readiness()[1]["events"]["status"] == "Degraded", 20)
            assert daemon.readiness()[0] == 200

        async with grpc.aio.insecure_channel(f"127.0.0.1:{discovery.ports['DISCOVERY_PORT']}") as channel:
            request = pb.RegisterServiceRequest(
                serviceName=EARLY,
                serviceId=f"{EARLY}-1",
                address="127.0.0.1",
                port=9,  # nobody listens: the monitor finds it unhealthy
                metadata={"scheme": "http", "health_check_endpoint": "/health"},
            )
            stub = DiscoveryRegistryStub(channel)
            assert (await stub.Register(request, timeout=10)).success
            for daemon in (discovery, monitor):
                await eventually(lambda daemon=daemon: daemon.readiness()[1]["events"]["data"]["waiting"] >= 1, 20)
            assert (await stub.Deregister(pb.DeregisterServiceRequest(serviceId=f"{EARLY}-1"), timeout=10)).removed
        assert events == []

        async with proxying("127.0.0.1", rabbitmq.port, own_port=port):
            wanted = {
                ("ServiceRegisteredEvent", "discovery"),
                ("ServiceDeregisteredEvent", "discovery"),
                ("ServiceHealthChangedEvent", "healthmonitor"),
            }
            await eventually(lambda: wanted <= set(events), 30)
            for daemon in (discovery, monitor):
                await eventually(lambda daemon=daemon: daemon.readiness()[1]["events"]["status"] == "Healthy", 20)
                await asyncio.to_thread(daemon.assert_clean_exit)


@asynccontextmanager
async def listening(connection: Any) -> AsyncIterator[list[tuple[str, str]]]:
    """Kind and sending process of the events about our service, as they come."""
    channel = await connection.channel()
    exchange = await channel.declare_exchange(f"{NAMESPACE}:IMeshEvent", aio_pika.ExchangeType.FANOUT, durable=True)
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(exchange)
    seen: list[tuple[str, str]] = []

    async def take(message: Any) -> None:
        envelope = json.loads(message.body)
        if envelope["message"].get("serviceName") == EARLY:
            seen.append((envelope["messageType"][0].rpartition(":")[2], envelope["host"]["processName"]))

    tag = await queue.consume(take, no_ack=True)
    yield seen
    await queue.cancel(tag)

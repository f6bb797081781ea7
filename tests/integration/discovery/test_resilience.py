"""What happens when the registry, the broker or discovery itself goes away in the middle."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import aio_pika
import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.integration.discovery.conftest import Client, DiscoveryServer
from tests.support.ports import free_port
from tests.support.servers import ConsulServer, RabbitMQServer, RegistryServer, ServerProcess, http_get
from tests.support.wait import eventually

EVENT_EXCHANGE = "ToskaMesh.Common.Messaging:ServiceRegisteredEvent"

Connect = Callable[[DiscoveryServer], Client]
Make = Callable[..., Any]


@pytest.fixture(params=["consul", "embedded"])
def registry(request: pytest.FixtureRequest) -> ServerProcess:
    """A registry of one's own, of either kind."""
    kind = "consul_factory" if request.param == "consul" else "registry_factory"
    server: ServerProcess = request.getfixturevalue(kind)()
    return server


def url_of(registry: ServerProcess) -> str:
    assert isinstance(registry, ConsulServer | RegistryServer)
    return registry.url


def ready(server: DiscoveryServer) -> tuple[int, dict[str, Any]]:
    status, body = http_get(f"{server.url}/health/ready")
    checks = {check["name"]: check for check in json.loads(body)["checks"]}
    return status, checks


def put(url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5).close()


def logged(server: DiscoveryServer, event: str) -> list[dict[str, Any]]:
    found = []
    for line in server.log_lines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("msg") == event:
            found.append(entry)
    return found


async def test_a_wiped_registry_gets_back_what_still_beats(
    registry: ServerProcess, discovery_factory: Make, connect: Connect
) -> None:
    discovery = discovery_factory(url_of(registry))
    client = connect(discovery)
    for number in range(5):
        await client.register("orders", f"orders-{number}", 9000 + number, metadata={"scheme": "http"})
    before = await client.instances("orders")
    assert len(before) == 5

    await asyncio.to_thread(registry.wipe_and_restart)
    await eventually(lambda: ready(discovery)[0] == 200, 20)

    async def all_back() -> bool:
        beats = [await client.beat(f"orders-{number}") for number in range(5)]
        return all(beats)

    await eventually(all_back, 20)
    after = await client.instances("orders")
    assert {key: (i.port, i.status, i.registeredAt) for key, i in after.items()} == {
        key: (i.port, i.status, i.registeredAt) for key, i in before.items()
    }


async def test_a_frozen_registry_holds_no_call_beyond_its_deadline(
    registry: ServerProcess, discovery_factory: Make, connect: Connect
) -> None:
    discovery = discovery_factory(url_of(registry))
    client = connect(discovery)
    await client.register("orders", "orders-1")

    registry.pause()
    try:
        started = time.monotonic()
        answer = await client.register("orders", "orders-2", timeout=2)
        assert not answer.success
        assert "registry" in answer.errorMessage
        assert not await client.beat("orders-1", timeout=2)
        assert time.monotonic() - started < 4  # both within their deadlines, with room for a busy machine
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.instances("nobody", timeout=4)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        registry.resume()
    await eventually(lambda: client.beat("orders-1"), 15)


async def test_the_last_known_instances_are_served_and_marked_while_the_registry_is_away(
    registry: ServerProcess, discovery_factory: Make, connect: Connect
) -> None:
    discovery = discovery_factory(url_of(registry))
    client = connect(discovery)
    await client.register("orders", "orders-1", metadata={"scheme": "http"})
    await asyncio.sleep(1)  # the follower has seen it
    await asyncio.to_thread(registry.kill)

    call = client.stub.GetInstances(client.pb.GetInstancesRequest(serviceName="orders"), timeout=5)
    assert [instance.serviceId for instance in (await call).instances] == ["orders-1"]
    assert "x-toska-stale" in dict(await call.trailing_metadata())
    assert await client.services() == ["orders"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.instances("nobody")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def without_clock(data: Any) -> Any:
    return {**data, "generatedAt": ""} if isinstance(data, dict) else data


async def test_rest_marks_the_last_known_instances_too(
    registry: ServerProcess, discovery_factory: Make, connect: Connect
) -> None:
    discovery = discovery_factory(url_of(registry))
    client = connect(discovery)
    await client.register("orders", "orders-1", metadata={"scheme": "http"})
    lookups = (
        "services/orders/instances",
        "services/orders/instances/healthy",
        "services/orders/instances/tracking",
        "services/orders/metadata",
        "instances/orders-1",
        "instances/orders-1/tracking",
        "services",
    )
    async with aiohttp.ClientSession(f"{discovery.url}/api/ServiceDiscovery/") as session:

        async def look_up(path: str) -> tuple[int, str | None, Any]:
            async with session.get(path) as answer:
                return answer.status, answer.headers.get("X-Toska-Stale"), (await answer.json())["data"]

        fresh = {path: await look_up(path) for path in lookups}
        assert {(status, stale) for status, stale, _ in fresh.values()} == {(200, None)}
        await asyncio.sleep(1)  # the follower has seen it
        await asyncio.to_thread(registry.kill)

        for path in lookups:
            status, stale, data = await look_up(path)
            assert status == 200, path
            assert stale, path
            assert stale.isascii(), path
            assert without_clock(data) == without_clock(fresh[path][2])
        status, stale, data = await look_up("services/nobody/instances")
        assert (status, stale, data) == (503, None, None)


async def test_registering_outlasts_a_hiccup_of_the_registry(
    registry_factory: Make, discovery_factory: Make, connect: Connect
) -> None:
    registry = registry_factory()
    discovery = discovery_factory(registry.url)
    client = connect(discovery)
    await asyncio.to_thread(registry.kill)
    async with asyncio.TaskGroup() as tasks:
        registering = tasks.create_task(client.register("orders", "orders-1", timeout=20))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(registry.start)
    assert registering.result().success
    assert "orders-1" in await client.instances("orders")


async def test_it_starts_without_a_registry_says_so_and_recovers(registry_factory: Make, connect: Connect) -> None:
    registry = registry_factory()
    await asyncio.to_thread(registry.kill)
    with_registry_down = DiscoveryServer(registry.url)
    try:
        await asyncio.to_thread(with_registry_down.start, False)
        await eventually(with_registry_down.is_live, 20)
        assert ready(with_registry_down)[0] == 503
        await eventually(lambda: "cannot be reached" in ready(with_registry_down)[1]["registry"]["description"], 10)
        client = connect(with_registry_down)
        health = health_pb2_grpc.HealthStub(client.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 2
        answer = await client.register("orders", "orders-1", timeout=1)
        assert not answer.success
        await asyncio.to_thread(registry.start)
        await eventually(lambda: ready(with_registry_down)[0] == 200, 20)
        for name in ("", "toskamesh.discovery.DiscoveryRegistry"):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == 1
        # A client that registers once in its life and beats: its registration was not in vain.
        assert await client.beat("orders-1")
        assert "orders-1" in await client.instances("orders")
    finally:
        await asyncio.to_thread(with_registry_down.close)


async def test_a_killed_discovery_remembers_who_registered(
    registry: ServerProcess, discovery_factory: Make, connect: Connect
) -> None:
    discovery = discovery_factory(url_of(registry))
    client = connect(discovery)
    await client.register("orders", "orders-1", 9001, healthCheck={"intervalSeconds": 60})
    first = (await client.instances("orders"))["orders-1"]
    await client.register("orders", "orders-2")
    await client.deregister("orders-2")
    await asyncio.to_thread(discovery.kill)
    await asyncio.to_thread(registry.wipe_and_restart)
    await asyncio.to_thread(discovery.start)

    assert await client.beat("orders-1", wait_for_ready=True)
    assert not await client.beat("orders-2")
    again = (await client.instances("orders"))["orders-1"]
    assert (again.port, again.registeredAt) == (9001, first.registeredAt)


async def test_registration_times_survive_the_loss_of_discoverys_own_memory(
    consul: ConsulServer, connect: Connect
) -> None:
    with DiscoveryServer(consul.url) as first:
        client = connect(first)
        await client.register("keeps-time", "keeps-time-1")
        before = (await client.instances("keeps-time"))["keeps-time-1"].registeredAt
    with DiscoveryServer(consul.url) as second:  # an empty data folder
        client = connect(second)
        assert (await client.instances("keeps-time"))["keeps-time-1"].registeredAt == before
        await asyncio.sleep(2)  # adopted from the catalog
        await client.register("keeps-time", "keeps-time-1", 9002)
        assert (await client.instances("keeps-time"))["keeps-time-1"].registeredAt == before


async def test_expiry_and_removal_by_the_registry_are_announced(
    consul_factory: Make, discovery_factory: Make, connect: Connect
) -> None:
    consul = consul_factory()  # of our own: the leader announces, and there must be no other discovery
    discovery = discovery_factory(consul.url)
    client = connect(discovery)
    await client.register("expiring", "expiring-1", metadata={"scheme": "http"}, healthCheck={"intervalSeconds": 1})
    await eventually(
        lambda: (
            [
                (e["previousStatus"], e["currentStatus"])
                for e in published(discovery, "ServiceHealthChangedEvent")
                if e["serviceId"] == "expiring-1"
            ]
            == [("Healthy", "Unhealthy")]
        ),
        30,
    )
    put(f"{consul.url}/v1/agent/service/deregister/expiring-1")  # what the reaper does, a minute earlier
    await eventually(
        lambda: (
            [e["reason"] for e in published(discovery, "ServiceDeregisteredEvent")]
            == ["Expired: removed by the registry"]
        ),
        10,
    )


def published(discovery: DiscoveryServer, kind: str) -> list[dict[str, Any]]:
    return [json.loads(entry["body"]) for entry in logged(discovery, "event") if entry.get("type") == kind]


async def test_what_discovery_was_killed_in_the_middle_of_is_announced_after_its_restart(
    consul: ConsulServer, rabbitmq: RabbitMQServer, discovery_factory: Make, connect: Connect
) -> None:
    """SIGKILL under a stream of registrations: every instance in the registry has its event, before or after."""
    heard: set[str] = set()

    async def hear(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        heard.add(json.loads(message.body)["message"]["serviceId"])

    connection = await aio_pika.connect_robust(rabbitmq.url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(EVENT_EXCHANGE, aio_pika.ExchangeType.FANOUT, durable=True)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange)
        await queue.consume(hear, no_ack=True)
        discovery = discovery_factory(consul.url, RABBITMQ_URL=rabbitmq.url)
        client = connect(discovery)
        sent = 0

        async def register() -> None:
            nonlocal sent
            while True:
                sent += 1
                await client.register("killed", f"killed-{sent}", metadata={"scheme": "http"})

        async def kill() -> None:
            await asyncio.sleep(0.7)
            await asyncio.to_thread(discovery.kill)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill())
            for _ in range(8):
                tasks.create_task(until_broken(register))
        await asyncio.to_thread(discovery.start)
        entries = json.loads(http_get(f"{consul.url}/v1/health/service/killed")[1])
        there = {entry["Service"]["ID"] for entry in entries}
        assert there
        await eventually(lambda: there <= heard, 20)


async def until_broken(work: Callable[[], Any]) -> None:
    try:
        await work()
    except grpc.aio.AioRpcError:
        pass


async def test_a_stop_drains_and_ends_in_time(consul: ConsulServer, discovery_factory: Make, connect: Connect) -> None:
    discovery = discovery_factory(consul.url, DISCOVERY_DRAIN_SECONDS="3")
    client = connect(discovery)
    health = health_pb2_grpc.HealthStub(client.channel)
    watching = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watching.read()).status == 1
    started = time.monotonic()
    await asyncio.to_thread(discovery.assert_clean_exit)
    assert time.monotonic() - started < 15
    watching.cancel()


@pytest.mark.parametrize("variable", ["DISCOVERY_PORT", "DISCOVERY_HTTP_PORT"])
async def test_a_port_in_use_is_said_with_its_variable(consul: ConsulServer, variable: str) -> None:
    port = free_port()
    other = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port)
    async with other:
        server = DiscoveryServer(consul.url, **{variable: str(port)})
        try:
            await asyncio.to_thread(server.start, False)
            assert await asyncio.to_thread(server.wait, 20) == 2
            assert f"port {port}" in server.log_text()
            assert variable in server.log_text()
        finally:
            server.close()


async def test_a_second_discovery_stays_out_of_the_first_ones_folder(
    consul: ConsulServer, discovery: DiscoveryServer
) -> None:
    server = DiscoveryServer(consul.url, DISCOVERY_DATA_DIR=str(discovery.data))
    try:
        await asyncio.to_thread(server.start, False)
        assert await asyncio.to_thread(server.wait, 20) == 2
        assert "DISCOVERY_DATA_DIR" in server.log_text()
    finally:
        server.close()


async def test_an_unreachable_broker_degrades_and_serves(
    consul: ConsulServer, discovery_factory: Make, connect: Connect
) -> None:
    discovery = discovery_factory(consul.url, RABBITMQ_URL=f"amqp://guest:guest@127.0.0.1:{free_port()}/")
    client = connect(discovery)
    assert (await client.register("unheard", "unheard-1")).success
    await eventually(lambda: ready(discovery)[1]["events"]["status"] == "Degraded", 15)
    assert ready(discovery)[0] == 200


async def test_reflection_and_metrics(discovery: DiscoveryServer, client: Client) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = [answer async for answer in stub.ServerReflectionInfo(iter([question]))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names >= {"toskamesh.discovery.DiscoveryRegistry", "toskamesh.mesh.Mesh", "grpc.health.v1.Health"}
    health = health_pb2_grpc.HealthStub(client.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest(service="toskamesh.mesh.Mesh"))).status == 1
    await client.register("counted", "counted-1")
    text = http_get(f"{discovery.url}/metrics")[1].decode()
    assert 'toska_discovery_calls_total{method="Register",outcome="ok",transport="grpc"}' in text
    assert "toska_discovery_known_instances" in text

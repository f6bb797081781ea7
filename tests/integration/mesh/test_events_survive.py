"""Events of registrations while the broker goes and discovery is killed: each arrives, in order per service.

On the embedded registry: a thousand registrations cost Consul a quarter of a minute, and it has no part in this.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aio_pika
import grpc
import grpc.aio
import pytest
from tests.support.ports import free_port
from tests.support.servers import DaemonProcess, RabbitMQServer, RegistryServer, http_get
from tests.support.wait import eventually

from toska_mesh.pb import discovery_pb2 as pb
from toska_mesh.pb.discovery_pb2_grpc import DiscoveryRegistryStub

SERVICES = 50
INSTANCES = 20
METADATA = {"scheme": "http", "lb_strategy": "RoundRobin"}
NAMESPACE = "ToskaMesh.Common.Messaging"


class Consumer:
    """What a MassTransit consumer of `IMeshEvent` does on the wire: its queue is bound to the interface's exchange."""

    def __init__(self) -> None:
        self.by_service: dict[str, list[tuple[str, str]]] = defaultdict(list)

    async def declare(self, url: str) -> None:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue("survivors", durable=True)
            exchange = await channel.declare_exchange(
                f"{NAMESPACE}:IMeshEvent", aio_pika.ExchangeType.FANOUT, durable=True
            )
            await queue.bind(exchange)

    async def read(self, url: str, is_enough: Callable[["Consumer"], bool]) -> None:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            await channel.set_qos(200)
            queue = await channel.get_queue("survivors")
            async with asyncio.timeout(60), queue.iterator() as messages:
                async for message in messages:
                    async with message.process():
                        self._take(json.loads(message.body))
                    if is_enough(self):
                        return

    def _take(self, envelope: dict[str, Any]) -> None:
        kind = envelope["messageType"][0].rpartition(":")[2]
        body = envelope["message"]
        self.by_service[body["serviceName"]].append((kind, body["serviceId"]))

    def instances(self, kind: str) -> set[str]:
        return {instance for events in self.by_service.values() for was, instance in events if was == kind}


async def insist(call: Callable[[], Any]) -> Any:
    """What a client does that must get through: ask again while discovery is away."""
    for _ in range(200):
        try:
            return await call()
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.1)
    raise AssertionError("discovery did not come back")


def waiting_events(daemon: DaemonProcess) -> int:
    """How many events discovery keeps on its disk."""
    _, body = http_get(str(daemon.ready_url))
    (events,) = [check for check in json.loads(body)["checks"] if check["name"] == "events"]
    return int(events["data"]["waiting"])


@pytest.fixture
def discovery(
    registry_factory: Callable[[], RegistryServer], rabbitmq_factory: Callable[[], RabbitMQServer], tmp_path: Path
) -> Any:
    registry, broker = registry_factory(), rabbitmq_factory()
    port, http_port = free_port(), free_port()
    env = {
        "CONSUL_ADDRESS": registry.url,
        "RABBITMQ_URL": broker.url,
        "DISCOVERY_PORT": str(port),
        "DISCOVERY_HTTP_PORT": str(http_port),
        "DISCOVERY_DATA_DIR": str(tmp_path / "discovery"),
    }
    with DaemonProcess("toska-discovery", env, f"http://127.0.0.1:{http_port}/health/ready") as daemon:
        yield daemon, broker, port


async def test_no_event_is_lost_while_the_broker_is_gone_and_discovery_is_killed(discovery: Any) -> None:
    daemon, broker, port = discovery
    consumer = Consumer()
    await consumer.declare(broker.url)

    numbers = iter(range(SERVICES * INSTANCES))
    acknowledged: set[str] = set()

    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}",
        options=[("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)],
    ) as channel:
        stub = DiscoveryRegistryStub(channel)

        async def register_some() -> None:
            for number in numbers:
                name = f"survivor-{number % SERVICES}"
                instance = f"{name}-{number}"
                request = pb.RegisterServiceRequest(
                    serviceName=name, serviceId=instance, address="127.0.0.1", port=9000, metadata=METADATA
                )
                answer = await insist(lambda request=request: stub.Register(request, timeout=10))
                assert answer.success, answer.errorMessage
                acknowledged.add(instance)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(broker.stop))
            for _ in range(16):
                tasks.create_task(register_some())
            await eventually(lambda: len(acknowledged) > SERVICES * INSTANCES // 2, 60)
            await asyncio.to_thread(daemon.kill)
            await asyncio.to_thread(daemon.start)

        assert not broker.is_running
        assert len(acknowledged) == SERVICES * INSTANCES
        # One of each service leaves again, still without a broker: its farewell must come after its welcome.
        leaving = {f"survivor-{number}-{number}" for number in range(SERVICES)}
        for instance in sorted(leaving):
            answer = await insist(
                lambda instance=instance: stub.Deregister(pb.DeregisterServiceRequest(serviceId=instance), timeout=10)
            )
            assert answer.removed

    assert waiting_events(daemon) >= SERVICES
    await asyncio.to_thread(broker.start)
    await consumer.read(
        broker.url,
        lambda seen: (
            acknowledged <= seen.instances("ServiceRegisteredEvent")
            and leaving <= seen.instances("ServiceDeregisteredEvent")
        ),
    )
    for events in consumer.by_service.values():
        kinds = {}
        for kind, instance in events:
            kinds.setdefault(instance, []).append(kind)
        for instance, order in kinds.items():
            if instance in leaving:
                assert order[0] == "ServiceRegisteredEvent"
                assert order[-1] == "ServiceDeregisteredEvent"
    daemon.assert_clean_exit()

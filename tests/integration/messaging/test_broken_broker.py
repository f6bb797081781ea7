"""Delivery to a real RabbitMQ that is stopped, frozen, killed or set up wrongly: nothing is lost, order is kept."""

import asyncio
from contextlib import asynccontextmanager

import aio_pika
from aio_pika import ExchangeType
from prometheus_client import CollectorRegistry
from tests.integration.messaging.events import QUICK, expected_numbers, numbers_by_service, registered
from tests.integration.messaging.listener import NAMESPACE, declare_endpoint, listening
from tests.support.wait import eventually

from toska_mesh.messaging import open_event_sink
from toska_mesh.messaging.decode import decode


@asynccontextmanager
async def sending(broker, folder):
    async with open_event_sink(broker.url, folder, "discovery", CollectorRegistry(), options=QUICK) as sink:
        yield sink


async def test_a_broker_stopped_during_a_thousand_events_gets_them_all_in_order(own_broker, tmp_path):
    await declare_endpoint(own_broker.url, "stopped", ["IMeshEvent"])
    async with sending(own_broker, tmp_path) as sink:
        for number in range(200):
            await sink.publish(registered(number))
        stopping = asyncio.to_thread(own_broker.stop)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stopping)
            for number in range(200, 700):
                await sink.publish(registered(number))
        assert not own_broker.is_running
        for number in range(700, 1000):
            await sink.publish(registered(number))  # returns although there is no broker at all
        assert sink.state.waiting >= 300
        await eventually(lambda: sink.state.trouble)
        await asyncio.to_thread(own_broker.start)
        await eventually(lambda: sink.state.waiting == 0, seconds=30)
    async with listening(own_broker.url, name="stopped") as listener:
        await listener.wait_for(1000)
    assert numbers_by_service(listener.received) == expected_numbers(1000)


async def test_a_frozen_broker_is_noticed_and_gets_everything_when_it_wakes(own_broker, tmp_path):
    await declare_endpoint(own_broker.url, "frozen", ["IMeshEvent"])
    async with sending(own_broker, tmp_path) as sink:
        await eventually(lambda: sink.state.is_connected)
        own_broker.pause()
        try:
            await _publish_all(sink, 200)  # returns although nobody confirms
            assert sink.state.waiting == 200
            await eventually(lambda: not sink.state.is_connected)
            await eventually(lambda: "did not answer" in sink.state.trouble)
        finally:
            own_broker.resume()
        await eventually(lambda: sink.state.waiting == 0, seconds=30)
    async with listening(own_broker.url, name="frozen") as listener:
        await listener.wait_for(200)
    assert numbers_by_service(listener.received) == expected_numbers(200)


async def test_an_exchange_of_another_kind_is_named_and_waited_for(own_broker, tmp_path):
    name = f"{NAMESPACE}:AlertTriggeredEvent"
    async with await aio_pika.connect(own_broker.url, timeout=10) as connection:
        channel = await connection.channel()
        await (await channel.get_exchange(name, ensure=False)).delete()
        await channel.declare_exchange(name, ExchangeType.TOPIC, durable=True)
        async with sending(own_broker, tmp_path) as sink:
            await sink.publish(registered(1))
            await eventually(lambda: name in sink.state.trouble and "another form" in sink.state.trouble)
            assert (sink.state.is_connected, sink.state.waiting) == (False, 1)
            await (await channel.get_exchange(name, ensure=False)).delete()
            await eventually(lambda: sink.state.waiting == 0)


async def test_an_exchange_that_is_deleted_under_way_is_declared_again(own_broker, tmp_path):
    async with sending(own_broker, tmp_path) as sink:
        await eventually(lambda: sink.state.is_connected)
        async with await aio_pika.connect(own_broker.url, timeout=10) as connection:
            channel = await connection.channel()
            await (await channel.get_exchange(f"{NAMESPACE}:ServiceRegisteredEvent", ensure=False)).delete()
        await sink.publish(registered(1))
        await eventually(lambda: sink.state.waiting == 0)
        async with listening(own_broker.url, "IMeshEvent") as listener:
            await sink.publish(registered(2))
            await listener.wait_for(1)


async def test_a_full_queue_that_refuses_gets_its_events_in_order_once_it_has_room(own_broker, tmp_path):
    async with await aio_pika.connect(own_broker.url, timeout=10) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(
            f"{NAMESPACE}:ServiceRegisteredEvent", ExchangeType.FANOUT, durable=True
        )
        queue = await channel.declare_queue(
            "small", durable=True, arguments={"x-max-length": 5, "x-overflow": "reject-publish"}
        )
        await queue.bind(exchange, routing_key="")
        async with sending(own_broker, tmp_path) as sink:
            await _publish_all(sink, 40, services=3)
            await eventually(lambda: sink.state.waiting < 40)
            numbers: dict[str, list[int]] = {}
            seen = 0
            while seen < 40:
                message = await queue.get(no_ack=True, fail=False)
                if message is None:
                    await asyncio.sleep(0.02)
                    continue
                for service, found in numbers_by_service([decode(message.body)]).items():
                    if found[0] not in numbers.setdefault(service, []):
                        numbers[service].append(found[0])
                        seen += 1
            await eventually(lambda: sink.state.waiting == 0)
        assert numbers == expected_numbers(40, services=3)
        await queue.delete(if_unused=False, if_empty=False)


async def _publish_all(sink, count, services=10):
    for number in range(count):
        await sink.publish(registered(number, services))

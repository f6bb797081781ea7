"""The exchanges, the bindings and the messages in a real RabbitMQ, seen as another client sees them."""

import aio_pika
import pytest
from aio_pika import ExchangeType
from prometheus_client import CollectorRegistry
from tests.integration.messaging.events import QUICK, registered
from tests.integration.messaging.listener import NAMESPACE, listening
from tests.support.wait import eventually
from tests.unit.messaging.acceptance import CONTRACTS, accept
from tests.unit.messaging.examples import ALL_MESSAGES, RESTART

from toska_mesh.messaging import open_event_sink

EVENTS = [name for name in CONTRACTS if name.endswith("Event")]
COMMANDS = [name for name in CONTRACTS if not name.endswith("Event")]


@pytest.fixture
async def declared(rabbitmq, tmp_path):
    """A sink that has connected, and so declared everything, before any event."""
    async with open_event_sink(rabbitmq.url, tmp_path, "discovery", CollectorRegistry(), options=QUICK) as sink:
        await eventually(lambda: sink.state.is_connected)
        yield sink


@pytest.mark.parametrize("name", [*EVENTS, "IMeshEvent", *COMMANDS])
async def test_every_exchange_is_there_before_the_first_event_and_is_a_plain_durable_fanout(declared, rabbitmq, name):
    async with await aio_pika.connect(rabbitmq.url, timeout=10) as connection:
        channel = await connection.channel()
        await channel.declare_exchange(f"{NAMESPACE}:{name}", ExchangeType.FANOUT, passive=True)
        # The broker compares every property of a second declaration with the first one's.
        await channel.declare_exchange(
            f"{NAMESPACE}:{name}", ExchangeType.FANOUT, durable=True, auto_delete=False, internal=False, arguments={}
        )


async def test_consumers_of_the_interface_get_every_event_and_no_command(declared, rabbitmq):
    async with listening(rabbitmq.url, "IMeshEvent") as listener:
        for message in (*ALL_MESSAGES, registered(7)):
            await declared.publish(message)
        received = await listener.wait_for(len(EVENTS) + 1)
        await eventually(lambda: declared.state.waiting == 0)
        assert [type(one.message) for one in received].count(type(RESTART)) == 0
        assert {one.message for one in received if one.message == ALL_MESSAGES[1]} == {ALL_MESSAGES[1]}
        assert len(listener.raw) == len(EVENTS) + 1


async def test_consumers_of_a_command_get_it(declared, rabbitmq):
    async with listening(rabbitmq.url, "RestartServiceCommand") as listener:
        await declared.publish(RESTART)
        (received,) = await listener.wait_for(1)
        assert received.message == RESTART


async def test_the_message_has_masstransits_properties(declared, rabbitmq):
    event = registered(1)
    async with listening(rabbitmq.url, "ServiceRegisteredEvent") as listener:
        await declared.publish(event)
        (received,) = await listener.wait_for(1)
    (raw,) = listener.raw
    assert raw.content_type == "application/vnd.masstransit+json"
    assert raw.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert raw.message_id == received.message_id
    assert raw.correlation_id == str(event.event_id) == received.correlation_id
    assert raw.routing_key == ""
    assert raw.expiration is None
    assert set(raw.headers) == {"publishId"}
    assert int(raw.headers["publishId"]) >= 1
    accept(raw.body, "ServiceRegisteredEvent")
    assert received.message == event


async def test_publish_ids_are_the_confirm_sequence(declared, rabbitmq):
    async with listening(rabbitmq.url, "ServiceRegisteredEvent") as listener:
        for number in range(20):
            await declared.publish(registered(number))
        await listener.wait_for(20)
    ids = sorted(int(message.headers["publishId"]) for message in listener.raw)
    assert ids == list(range(ids[0], ids[0] + 20))


async def test_the_source_address_names_this_process_and_broker(declared, rabbitmq):
    async with listening(rabbitmq.url, "ServiceRegisteredEvent") as listener:
        await declared.publish(registered(1))
        (received,) = await listener.wait_for(1)
    assert received.source_address.startswith(f"rabbitmq://127.0.0.1:{rabbitmq.port}/")
    assert "_discovery_bus_" in received.source_address

"""What every EventSink promises, held against the one that only logs and the one on RabbitMQ."""

import asyncio
import re
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.unit.messaging.examples import ALL_MESSAGES, REGISTERED, RESPONSE

from toska_mesh.errors import PublishError
from toska_mesh.messaging import SinkState, open_event_sink


@pytest.fixture(params=["null", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "null" else request.getfixturevalue("rabbitmq").url


@pytest.fixture
def metrics() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def sink(url, tmp_path, metrics):
    async with open_event_sink(url, tmp_path, "contract", metrics) as opened:
        yield opened


@pytest.mark.parametrize("message", ALL_MESSAGES, ids=lambda message: type(message).__name__)
async def test_every_message_is_taken_and_counted(sink, metrics, message):
    await sink.publish(message)
    assert re.search(r'toska_events_published_total\{type="\w+"\} 1\.0', generate_latest(metrics).decode())


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(
            replace(REGISTERED, timestamp=REGISTERED.timestamp.replace(tzinfo=None)), id="time without a zone"
        ),
        pytest.param(replace(RESPONSE, data={"x": object()}), id="not json"),
    ],
)
async def test_a_message_that_cannot_be_sent_is_a_publish_error(sink, metrics, message):
    with pytest.raises(PublishError):
        await sink.publish(message)
    assert 'toska_events_refused_total{reason="invalid"} 1.0' in generate_latest(metrics).decode()
    await sink.publish(REGISTERED)


async def test_many_publishers_at_once_are_served(sink):
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for _ in range(200):
            tasks.create_task(sink.publish(REGISTERED))


async def test_the_state_tells_whether_there_is_a_broker(sink, url):
    assert isinstance(sink.state, SinkState)
    assert sink.state.is_enabled is bool(url)


async def test_a_cancelled_publisher_disturbs_nobody(sink):
    async with asyncio.TaskGroup() as tasks:
        leaving = tasks.create_task(sink.publish(REGISTERED))
        await asyncio.sleep(0)
        leaving.cancel()
    await sink.publish(REGISTERED)


async def test_a_sink_can_be_opened_again_in_the_same_folder(url, tmp_path):
    for _ in range(2):
        async with open_event_sink(url, tmp_path, "contract", CollectorRegistry()) as sink:
            await sink.publish(REGISTERED)


async def test_gauges_follow_the_state(sink, metrics):
    text = generate_latest(metrics).decode()
    for name in ("toska_events_waiting", "toska_events_oldest_age_seconds", "toska_broker_connected"):
        assert re.search(rf"^{name} \d", text, re.MULTILINE)

"""What can happen between us and the broker: resets, alarms, silence, TLS, refusals, a broker that comes late."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trustme
from prometheus_client import CollectorRegistry
from tests.integration.messaging.events import QUICK, expected_numbers, numbers_by_service, registered
from tests.integration.messaging.listener import listening
from tests.integration.messaging.proxy import proxying
from tests.support.ports import free_port
from tests.support.wait import eventually

from toska_mesh.errors import ConfigError
from toska_mesh.messaging import open_event_sink


@asynccontextmanager
async def sending(url, folder, options=QUICK):
    async with open_event_sink(url, folder, "discovery", CollectorRegistry(), options=options) as sink:
        yield sink


async def test_connections_that_are_reset_again_and_again_lose_nothing(rabbitmq, tmp_path):
    async with (
        listening(rabbitmq.url, "IMeshEvent") as listener,
        proxying("127.0.0.1", rabbitmq.port) as proxy,
        sending(f"amqp://guest:guest@127.0.0.1:{proxy.port}/", tmp_path) as sink,
    ):
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(_publish_all(sink, 500))
            for cuts in range(5):
                await eventually(lambda cuts=cuts: proxy.connections > cuts and sink.state.is_connected)
                await asyncio.sleep(0.05)
                proxy.cut()
                await eventually(lambda: not sink.state.is_connected, every_seconds=0.001)
        assert publishing.exception() is None
        await eventually(lambda: sink.state.waiting == 0)
        assert proxy.connections > 5
        await listener.wait_for(500)
        assert numbers_by_service(listener.received) == expected_numbers(500)


async def test_a_daemon_that_starts_before_its_broker_delivers_when_it_comes(rabbitmq, tmp_path):
    port = free_port()
    url = f"amqp://guest:guest@127.0.0.1:{port}/"
    async with sending(url, tmp_path) as sink:
        await _publish_all(sink, 20)
        await eventually(lambda: "cannot be used" in sink.state.trouble)
        assert (sink.state.is_connected, sink.state.waiting) == (False, 20)
    async with listening(rabbitmq.url, "IMeshEvent") as listener, sending(url, tmp_path) as sink:
        assert sink.state.waiting == 20  # left by the last run
        async with proxying("127.0.0.1", rabbitmq.port, own_port=port):
            await eventually(lambda: sink.state.waiting == 0)
            await listener.wait_for(20)
            assert numbers_by_service(listener.received) == expected_numbers(20)


async def test_an_alarm_is_waited_out_without_reconnecting_or_repeating(rabbitmq, tmp_path):
    async with (
        listening(rabbitmq.url, "IMeshEvent") as listener,
        proxying("127.0.0.1", rabbitmq.port) as proxy,
        sending(f"amqp://guest:guest@127.0.0.1:{proxy.port}/", tmp_path) as sink,
    ):
        await eventually(lambda: sink.state.is_connected)
        proxy.hold()  # in an alarm RabbitMQ stops reading and says so
        proxy.block()
        await eventually(lambda: sink.state.is_blocked)
        assert "alarm" in sink.state.trouble
        await _publish_all(sink, 50)
        await asyncio.sleep(3 * QUICK.timeouts.confirm)
        assert sink.state.is_connected
        assert sink.state.waiting == 50
        proxy.pass_on()
        proxy.unblock()
        await eventually(lambda: sink.state.waiting == 0)
        await eventually(lambda: not sink.state.is_blocked)  # the word may come after the confirms
        assert proxy.connections == 1
        await listener.wait_for(50)
        assert len(listener.raw) == 50


async def test_a_broker_that_stops_reading_without_a_word_is_given_up(rabbitmq, tmp_path):
    async with (
        listening(rabbitmq.url, "IMeshEvent") as listener,
        proxying("127.0.0.1", rabbitmq.port) as proxy,
        sending(f"amqp://guest:guest@127.0.0.1:{proxy.port}/", tmp_path) as sink,
    ):
        await eventually(lambda: sink.state.is_connected)
        proxy.hold()
        await sink.publish(registered(0))
        await eventually(lambda: "no confirm" in sink.state.trouble)
        proxy.pass_on()
        await eventually(lambda: sink.state.waiting == 0)
        await listener.wait_for(1)


async def test_heartbeats_notice_silence_while_nothing_is_published(rabbitmq, tmp_path):
    async with (
        proxying("127.0.0.1", rabbitmq.port) as proxy,
        sending(f"amqp://guest:guest@127.0.0.1:{proxy.port}/?heartbeat=1", tmp_path) as sink,
    ):
        await eventually(lambda: sink.state.is_connected)
        proxy.hold()  # the broker hears no heartbeat from us and hangs up
        await eventually(lambda: not sink.state.is_connected, seconds=15)
        proxy.pass_on()
        await eventually(lambda: sink.state.is_connected)


async def test_tls_is_used_and_the_certificate_is_checked(rabbitmq, tmp_path):
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    async with proxying("127.0.0.1", rabbitmq.port, context) as proxy:
        url = f"amqps://guest:guest@localhost:{proxy.port}/?cafile={tmp_path}"
        async with sending(f"{url}/ca.pem", tmp_path / "trusting") as sink:
            await sink.publish(registered(1))
            await eventually(lambda: sink.state.waiting == 0)
        async with sending(f"{url}/stranger.pem", tmp_path / "distrusting") as sink:
            await eventually(lambda: "CERTIFICATE_VERIFY_FAILED" in sink.state.trouble)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        pytest.param("amqp://guest:wrong-pa55@127.0.0.1:{port}/", "ACCESS_REFUSED", id="wrong password"),
        pytest.param("amqp://guest:guest@127.0.0.1:{port}/no-such-vhost", "no-such-vhost", id="unknown vhost"),
    ],
)
async def test_a_broker_that_refuses_us_is_no_reason_to_end_and_is_said(rabbitmq, tmp_path, caplog, url, reason):
    async with sending(url.format(port=rabbitmq.port), tmp_path) as sink:
        await sink.publish(registered(1))
        await eventually(lambda: reason in sink.state.trouble)
        assert sink.state.waiting == 1
        assert "pa55" not in sink.state.trouble + caplog.text + repr(sink.state)


async def test_what_cannot_go_out_within_the_flush_time_stays_for_the_next_start(rabbitmq, tmp_path):
    async with proxying("127.0.0.1", rabbitmq.port) as proxy:
        url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/"
        async with sending(url, tmp_path, replace(QUICK, flush_seconds=0.1)) as sink:
            await eventually(lambda: sink.state.is_connected)
            proxy.hold()
            await _publish_all(sink, 30)
        proxy.pass_on()
        async with listening(rabbitmq.url, "IMeshEvent") as listener, sending(url, tmp_path) as sink:
            await listener.wait_for(30)
            assert numbers_by_service(listener.received) == expected_numbers(30)


async def test_events_published_just_before_the_end_go_out(rabbitmq, tmp_path):
    async with listening(rabbitmq.url, "IMeshEvent") as listener:
        async with sending(rabbitmq.url, tmp_path) as sink:
            await eventually(lambda: sink.state.is_connected)
            await _publish_all(sink, 100)
        await listener.wait_for(100)


async def test_two_processes_cannot_share_an_outbox(rabbitmq, tmp_path):
    async with sending(rabbitmq.url, tmp_path):
        with pytest.raises(ConfigError, match=r"DISCOVERY_DATA_DIR=.* is in use by another process"):
            async with open_event_sink(
                rabbitmq.url, tmp_path, "discovery", CollectorRegistry(), data_dir_variable="DISCOVERY_DATA_DIR"
            ):
                pass
    async with sending(rabbitmq.url, tmp_path):
        pass  # free again


async def test_an_error_of_the_block_leaves_it_as_it_came(rabbitmq, tmp_path):
    with pytest.raises(ConfigError, match="of the daemon"):
        async with sending(rabbitmq.url, tmp_path):
            raise ConfigError("of the daemon")


async def test_cancelling_the_block_ends_everything(rabbitmq, tmp_path):
    async def daemon() -> None:
        async with sending(rabbitmq.url, tmp_path) as sink:
            await sink.publish(registered(1))
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(daemon())
        await asyncio.sleep(0.2)
        task.cancel()
    assert task.cancelled()


async def test_the_block_can_end_at_any_moment_of_connecting(rabbitmq, tmp_path):
    for step in range(60):
        async with asyncio.timeout(4), sending(rabbitmq.url, tmp_path):
            await asyncio.sleep(step * 0.0007)


async def _publish_all(sink, count):
    for number in range(count):
        await sink.publish(registered(number))

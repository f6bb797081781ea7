"""The gateway's metrics: each exists, is documented, counts what happens, and cannot be made to grow by clients."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.gateway.daemons import Gateway as Daemon
from tests.integration.gateway.daemons import hello, start
from tests.integration.gateway.harness import OK, REQUEST, Backend, Caller, Gateway, running_gateway
from tests.support.servers import RegistryServer, http_get
from tests.support.wait import eventually

from toska_mesh.gateway.merge import NEWEST, OF_ONE_PROCESS, SMALLEST, MergedMetrics
from toska_mesh.model import InstanceId, ServiceName
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry

__all__ = ["hello", "start"]

DOCUMENT = Path(__file__).parents[3] / "docs" / "gateway.md"
ONLY_WITH_FILES = {
    "toska_gateway_certificate_expiry_timestamp_seconds",
    "toska_gateway_file_reloads",
    "toska_gateway_files_refused",
}

Samples = dict[str, float]
"""By name and labels as Prometheus writes them: `name{label="value"}`."""


def samples_of(text: str) -> Samples:
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def exposition(gateway: Gateway) -> str:
    registry = CollectorRegistry()
    registry.register(gateway.proxy.stats)
    return generate_latest(registry).decode()


def metrics(gateway: Gateway) -> Samples:
    return samples_of(exposition(gateway))


def documented() -> set[str]:
    """Families in the table of docs/gateway.md, without the `_total` that samples of counters have."""
    rows = re.findall(r"(?m)^\| (`toska_gateway_[^|]*)\|", DOCUMENT.read_text())
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(names) == len(set(names))
    return {name.removesuffix("_total") for name in names}


async def test_a_scripted_day() -> None:
    """Good requests, refusals, retries, an instance that breaks, one that is slow, and a client that stays."""
    held = asyncio.Event()

    async def script(caller: Caller) -> None:
        while (request := await caller.request()) is not None:
            if request.target == "/held":
                await held.wait()
            if request.target == "/dies":
                caller.reset()
                return
            await caller.send(OK)

    async with (
        Backend(script) as backend,
        running_gateway(
            backend, GATEWAY_RETRY_COUNT=1, GATEWAY_BREAKER_FAILURE_THRESHOLD=2, GATEWAY_BREAKER_OPEN_SECONDS=4
        ) as gateway,
    ):
        client = await gateway.connect()
        for _ in range(5):
            assert (await client.ask(REQUEST)).status == 200
        before = metrics(gateway)
        assert before['toska_gateway_requests_total{service="orders",status="200"}'] == 5
        assert before['toska_gateway_request_duration_seconds_count{service="orders"}'] == 5
        assert before['toska_gateway_request_duration_seconds_bucket{le="+Inf",service="orders"}'] == 5
        assert 0 < before['toska_gateway_request_duration_seconds_sum{service="orders"}'] < 100
        assert before['toska_gateway_retries_total{service="orders"}'] == 0
        assert before['toska_gateway_breakers{service="orders",state="closed"}'] == 1
        assert before["toska_gateway_upstream_connections_idle"] == 1
        assert before["toska_gateway_client_connections"] == 1
        assert before["toska_gateway_requests_in_flight"] == 0
        assert before["toska_gateway_services"] == before["toska_gateway_instances"] == 1
        assert before["toska_gateway_table_stale_seconds"] == 0

        waiting = await gateway.connect()
        waiting.send(b"POST /api/orders/held HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
        await eventually(lambda: metrics(gateway)["toska_gateway_requests_in_flight"] == 1)
        assert metrics(gateway)["toska_gateway_client_connections"] == 2
        assert metrics(gateway)["toska_gateway_upstream_connections_idle"] == 0
        held.set()
        assert (await waiting.answer()).status == 200
        assert metrics(gateway)["toska_gateway_requests_in_flight"] == 0
        assert metrics(gateway)['toska_gateway_request_bytes_total{service="orders"}'] == 4
        assert metrics(gateway)['toska_gateway_response_bytes_total{service="orders"}'] > 12

        assert (await gateway.get("/api/nobody/")).status == 404
        assert metrics(gateway)['toska_gateway_requests_failed_total{reason="no-such-route",service=""}'] == 1
        assert metrics(gateway)['toska_gateway_requests_total{service="",status="404"}'] == 1

        assert (await gateway.get("/api/orders/dies")).status == 502
        after = metrics(gateway)
        assert after['toska_gateway_retries_total{service="orders"}'] == 1
        assert after['toska_gateway_tries_failed_total{kind="reset",service="orders"}'] == 2
        assert after['toska_gateway_requests_failed_total{reason="upstream-failed",service="orders"}'] == 1
        assert (await gateway.get("/api/orders/dies")).status == 503, "its own failure opened the last breaker"
        after = metrics(gateway)
        assert after['toska_gateway_tries_failed_total{kind="reset",service="orders"}'] == 3
        assert after['toska_gateway_breaker_changes_total{service="orders",state="open"}'] == 1
        assert after['toska_gateway_breakers{service="orders",state="open"}'] == 1
        assert 'toska_gateway_breakers{service="orders",state="closed"}' not in after
        assert after["toska_gateway_breakers_not_closed"] == 1
        assert after['toska_gateway_requests_failed_total{reason="breaker-open",service="orders"}'] == 1


async def test_clients_cannot_make_the_metrics_grow() -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_EXPOSE="all") as gateway:
        await gateway.get()
        await gateway.get("/api/nobody/")
        client = await gateway.connect()
        await client.ask(b"\x00\r\n\r\n")

        async def ask(number: int) -> None:
            for request in (
                f"M{number} /api/orders/{number} HTTP/1.1\r\nHost: h{number}\r\nX-{number}: {number}\r\n",
                f"GET /api/orders{number}/x HTTP/1.1\r\nHost: a\r\n",
                f"GET /{number} HTTP/1.1\r\nHost: a\r\nOrigin: http://o{number}\r\nb3: {number}\r\n",
                f"GET /api/OR{'de' if number % 2 else 'DE'}RS/?{number} HTTP/1.1\r\nHost: a\r\n",
                f"GET /api/orders/ HTTP/1.1\r\nHost: a\r\nUpgrade: u{number}\r\nConnection: Upgrade\r\n",
            ):
                other = await gateway.connect()
                await other.ask(f"{request}\r\n".encode())
                other.close()

        await ask(0)
        before = set(metrics(gateway))
        for number in range(1, 60):
            await ask(number)
        assert set(metrics(gateway)) == before


async def test_services_that_are_gone_leave_nothing() -> None:
    """Not even those whose last request ended after they had gone."""
    held = asyncio.Event()

    async def script(caller: Caller) -> None:
        await caller.request()
        await held.wait()
        await caller.send(OK)

    async with Backend(script) as backend, running_gateway() as gateway:
        clients = []
        for number in range(20):
            held.clear()
            gateway.route({f"s{number}": [backend]})
            client = await gateway.connect()
            clients.append(client)
            client.send(f"GET /api/s{number}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            await eventually(lambda: gateway.in_flight)
            gateway.route({"other": [backend]})
            held.set()
            assert (await client.answer()).status == 200
        gateway.route({"last": [backend]})
        named = {service for service in re.findall(r'service="([^"]*)"', exposition(gateway)) if service}
        assert named <= {"last", "other"}


async def test_two_workers_count_together() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for _ in range(3):
            await client.ask(REQUEST)
        text = exposition(gateway)
        one = samples_of(text)
        both = samples_of(generate_latest(MergedMetrics({"1": text, "2": text})).decode())
        assert both.keys() == one.keys()
        for name, value in one.items():
            family = name.partition("{")[0]
            assert not family.startswith(OF_ONE_PROCESS)
            assert both[name] == (value if family in NEWEST + SMALLEST else 2 * value), name


async def test_every_metric_of_a_running_gateway_is_documented_and_freshness_is_measured(
    start: Callable[..., Daemon], hello: RegistryServer
) -> None:
    """Two workers behind one page."""
    daemon = await asyncio.to_thread(start)
    await eventually(lambda: len(daemon.serving()) == 2, 20)

    def page() -> str:
        return http_get(f"http://127.0.0.1:{daemon.admin_port}/metrics")[1].decode()

    families = {
        family.name for family in text_string_to_metric_families(page()) if family.name.startswith("toska_gateway_")
    }
    assert families == documented() - ONLY_WITH_FILES

    def seen() -> float:
        return samples_of(page())["toska_gateway_table_freshness_seconds_count"]

    before = await asyncio.to_thread(seen)
    async with ConsulClient(ConsulOptions(address=hello.url)) as client:
        await ConsulRegistry(client).register(
            Registration(ServiceName("late"), InstanceId("late-1"), "127.0.0.1", 9, {"scheme": "http"}, 3600)
        )
    await eventually(lambda: seen() >= before + 2, 20)
    assert samples_of(page())["toska_gateway_services"] == 2
    status: Mapping[str, object] = json.loads(http_get(f"http://127.0.0.1:{daemon.admin_port}/health/ready")[1])
    assert status["status"] == "Healthy"

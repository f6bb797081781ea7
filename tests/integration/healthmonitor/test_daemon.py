"""The daemon as its users meet it: against a real Consul, a real broker, and without either."""

import asyncio
import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.integration.healthmonitor.rude_servers import refusing_port, says, serving
from tests.integration.messaging.listener import listening
from tests.support.ports import free_port
from tests.support.servers import ConsulServer, DaemonProcess, RabbitMQServer, http_get
from tests.support.wait import eventually

from toska_mesh.model import InstanceHealthChanged

OK = says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
INTERVAL = "0.3"


@pytest.fixture(scope="module")
def own_consul() -> Iterator[ConsulServer]:
    """A Consul that no other test's monitor leads in."""
    with ConsulServer() as server:
        yield server


class Monitor:
    """A running `toska-healthmonitor` and the questions one asks it."""

    def __init__(self, process: DaemonProcess, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    async def get(self, path: str) -> tuple[int, Any]:
        status, body = await asyncio.to_thread(http_get, self.url + path)
        return status, json.loads(body) if body else None

    async def header(self, path: str, name: str) -> str:
        def ask() -> str:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return str(answer.headers[name])

        return await asyncio.to_thread(ask)

    async def texts(self, service: str) -> dict[str, str]:
        _, items = await self.get(f"/api/status/{service}")
        return {item["serviceId"]: item["statusText"] for item in items}

    async def metric(self, name: str) -> float:
        _, body = await asyncio.to_thread(http_get, self.url + "/metrics")
        return sum(float(line.rpartition(" ")[2]) for line in body.decode().splitlines() if line.startswith(name))


@pytest.fixture
def start_monitor(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`await start_monitor(consul_url, **env)`: a monitor, ready."""
    with ExitStack() as stack:

        async def start(consul_url: str, ready: str = "/health/ready", **env: str) -> Monitor:
            port = free_port()
            variables = {
                "HEALTHMONITOR_HOST": "127.0.0.1",
                "HEALTHMONITOR_PORT": str(port),
                "HEALTHMONITOR_PROBE_INTERVAL_SECONDS": INTERVAL,
                "HEALTHMONITOR_HTTP_TIMEOUT_SECONDS": "0.25",
                "HEALTHMONITOR_DATA_DIR": str(tmp_path / str(port)),
                "CONSUL_ADDRESS": consul_url,
                **env,
            }
            process = DaemonProcess("toska-healthmonitor", variables, f"http://127.0.0.1:{port}{ready}")
            await asyncio.to_thread(stack.enter_context, process)
            return Monitor(process, port)

        yield start


PROBED = {"scheme": "http", "health_check_endpoint": "/health"}
BOOKKEEPING = {
    "toska-registered-at": "2026-01-01T00:00:00.000000Z",
    "toska-ttl-seconds": "35",
    "toska-owner": "somebody",
}
"""What discovery adds to the metadata of an instance; nobody is shown it."""


async def register(consul: ConsulServer, service: str, instance_id: str, port: int, **meta: str) -> None:
    check = {"CheckID": f"service:{instance_id}", "TTL": "300s", "Status": "passing"}
    body = {"ID": instance_id, "Name": service, "Address": "127.0.0.1", "Port": port, "Meta": meta, "Check": check}
    await ask_consul(consul, "PUT", "/v1/agent/service/register", body)


async def ask_consul(consul: ConsulServer, method: str, path: str, body: object = None) -> Any:
    def ask() -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(consul.url + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            return error.code
        return json.loads(text) if text.strip() else None

    return await asyncio.to_thread(ask)


async def test_instances_are_probed_shown_and_objected_to_until_the_monitor_goes(own_consul, start_monitor):
    async with serving(OK) as port:
        await register(own_consul, "Orders", "orders-1", port, **BOOKKEEPING, **PROBED)
        await register(own_consul, "Orders", "orders-2", refusing_port(), health_check_endpoint="/health")
        await register(own_consul, "Orders", "orders-3", port)
        monitor = await start_monitor(own_consul.url)
        expected = {"orders-1": "Healthy", "orders-2": "Unhealthy", "orders-3": "Unknown"}

        async def judged() -> bool:
            return await monitor.texts("orders") == expected

        await eventually(judged, what="verdicts in the status API")
        _, everything = await monitor.get("/api/Status")
        by_id = {item["serviceId"]: item for item in everything if item["serviceName"] == "Orders"}
        first = by_id["orders-1"]
        assert set(first) == {
            "serviceId", "serviceName", "address", "port", "status", "statusText", "lastProbe", "probeType",
            "lastProbeType", "message", "metadata",
        }  # fmt: skip
        assert (first["address"], first["port"], first["status"], first["message"]) == (
            "127.0.0.1",
            port,
            1,
            "HTTP 200",
        )
        assert first["probeType"] == first["lastProbeType"] == "http"
        assert first["metadata"] == PROBED
        assert first["lastProbe"].endswith("Z")
        assert by_id["orders-2"]["status"] == 2
        assert by_id["orders-2"]["probeType"] in ("http", "circuit-breaker")
        assert "connection refused" in by_id["orders-2"]["message"]
        assert (by_id["orders-3"]["status"], by_id["orders-3"]["probeType"], by_id["orders-3"]["message"]) == (
            0, "none", "No probe configuration available",
        )  # fmt: skip
        assert by_id["orders-3"]["lastProbe"] == "0001-01-01T00:00:00Z"
        assert await monitor.get("/api/status/no-such-service") == (200, [])
        assert await monitor.header("/api/status", "X-Toska-Catalog-Stale-Seconds") == "0"

        _, history = await monitor.get("/api/status/ORDERS/history")
        changes = {item["serviceId"]: (item["previousStatus"], item["currentStatus"]) for item in history}
        assert changes == {"orders-1": ("Unknown", "Healthy"), "orders-2": ("Unknown", "Unhealthy")}

        async def written() -> Any:
            value = await ask_consul(own_consul, "GET", "/v1/kv/toska/verdicts/Orders?raw")
            return isinstance(value, dict) and value

        verdicts = await eventually(written, what="verdicts in the registry")
        assert (verdicts["instances"], verdicts["probed"]) == ({"orders-2": "Unhealthy"}, 2)

        assert await monitor.metric("toska_healthmonitor_probes_total") > 4
        assert await monitor.metric('toska_healthmonitor_instances{status="Unhealthy"}') == 1

        await ask_consul(own_consul, "PUT", "/v1/agent/service/deregister/orders-2")

        async def gone() -> bool:
            return "orders-2" not in await monitor.texts("orders") and await written() is False

        await eventually(gone, what="the departed instance to be forgotten")
        await asyncio.to_thread(monitor.process.assert_clean_exit)


async def test_a_stopped_monitor_takes_its_verdicts_with_it(own_consul, start_monitor):
    await register(own_consul, "carts", "carts-1", refusing_port(), health_check_endpoint="/health")
    monitor = await start_monitor(own_consul.url)

    async def written() -> bool:
        return isinstance(await ask_consul(own_consul, "GET", "/v1/kv/toska/verdicts/carts?raw"), dict)

    await eventually(written, what="the verdict in the registry")
    await asyncio.to_thread(monitor.process.assert_clean_exit)
    assert not await written()


async def test_a_registry_that_dies_leaves_the_last_instances_probed_and_says_so(consul_factory, start_monitor):
    consul = await asyncio.to_thread(consul_factory)
    async with serving(OK) as port:
        await register(consul, "orders", "orders-1", port, health_check_endpoint="/health")
        monitor = await start_monitor(consul.url)

        async def healthy() -> bool:
            return await monitor.texts("orders") == {"orders-1": "Healthy"}

        await eventually(healthy)
        await asyncio.to_thread(consul.kill)

        async def stale() -> bool:
            return int(await monitor.header("/api/status", "X-Toska-Catalog-Stale-Seconds")) > 0

        await eventually(stale, seconds=20, what="the sign of a stale catalog")
        before = await monitor.metric("toska_healthmonitor_probes_total")
        await asyncio.sleep(1.5)
        assert await monitor.metric("toska_healthmonitor_probes_total") >= before + 2
        assert await healthy()

        async def degraded() -> bool:
            status, report = await monitor.get("/health/ready")
            return status == 200 and report["status"] == "Degraded"

        await eventually(degraded, what="ready, but degraded")
        checks = {check["name"]: check for check in (await monitor.get("/health/ready"))[1]["checks"]}
        assert "the last known instances are probed" in checks["catalog"]["description"]


async def test_without_a_registry_it_starts_lives_and_is_not_ready(start_monitor):
    monitor = await start_monitor(f"http://127.0.0.1:{refusing_port()}", ready="/health/live")
    assert (await monitor.get("/health/ready"))[0] == 503
    status, body = await monitor.get("/api/status")
    assert (status, body["code"]) == (503, "catalog-unknown")
    await asyncio.to_thread(monitor.process.assert_clean_exit)


async def test_of_two_monitors_one_announces(own_consul, rabbitmq: RabbitMQServer, start_monitor):
    async with listening(rabbitmq.url, "ServiceHealthChangedEvent") as listener, serving(OK) as port:
        monitors = [await start_monitor(own_consul.url, RABBITMQ_URL=rabbitmq.url) for _ in range(2)]
        await register(own_consul, "payments", "payments-1", refusing_port(), health_check_endpoint="/health")
        await register(own_consul, "payments", "payments-2", port, health_check_endpoint="/health")
        for monitor in monitors:

            async def judged(monitor: Monitor = monitor) -> bool:
                return await monitor.texts("payments") == {"payments-1": "Unhealthy", "payments-2": "Healthy"}

            await eventually(judged)
        await eventually(lambda: _changes(listener) == [("payments-1", "Unknown", "Unhealthy")], seconds=20)
        await asyncio.sleep(1.5)
        assert _changes(listener) == [("payments-1", "Unknown", "Unhealthy")]
        leaders = [await monitor.metric("toska_healthmonitor_leader") for monitor in monitors]
        assert sorted(leaders) == [0, 1]
        for monitor in monitors:
            await asyncio.to_thread(monitor.process.assert_clean_exit)


def _changes(listener: Any) -> list[tuple[str, str, str]]:
    messages = [received.message for received in listener.received]
    return [
        (message.instance_id, message.previous.label, message.current.label)
        for message in messages
        if isinstance(message, InstanceHealthChanged) and message.service == "payments"
    ]


@pytest.mark.parametrize(
    ("env", "words"),
    [
        pytest.param({"HEALTHMONITOR_INTERVAL": "5"}, "HEALTHMONITOR_INTERVAL is not a setting", id="unknown"),
        pytest.param({"HEALTHMONITOR_CONCURRENCY": "many"}, "HEALTHMONITOR_CONCURRENCY='many'", id="unparsable"),
        pytest.param({"HEALTHMONITOR_TLS_CA_FILE": "/none.pem"}, "HEALTHMONITOR_TLS_CA_FILE", id="no such file"),
    ],
)
async def test_wrong_settings_end_it_with_a_sentence(env, words):
    with DaemonProcess("toska-healthmonitor", env) as process:
        assert await asyncio.to_thread(process.wait) == 2
        assert words in process.log_text()
        assert "Traceback" not in process.log_text()


async def test_a_port_in_use_is_named_with_its_variable(tmp_path):
    async with serving(OK) as port:
        env = {
            "HEALTHMONITOR_HOST": "127.0.0.1",
            "HEALTHMONITOR_PORT": str(port),
            "HEALTHMONITOR_DATA_DIR": str(tmp_path),
            "CONSUL_ADDRESS": "http://127.0.0.1:1",
        }
        with DaemonProcess("toska-healthmonitor", env) as process:
            assert await asyncio.to_thread(process.wait) == 2
            text = process.log_text()
    assert f"port {port} is in use" in text
    assert "HEALTHMONITOR_PORT" in text

"""The dashboard's paths and the admin API, with scripted servers behind them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import jwt
import orjson
import pytest
from aiohttp import web
from tests.integration.gateway.harness import Backend, Gateway, instance, running_gateway
from tests.support.ports import free_port

from toska_mesh.admin import AdminServer, Health
from toska_mesh.gateway.adminapi import admin_routes
from toska_mesh.gateway.dashboard import Dashboard
from toska_mesh.gateway.proxy import Proxy
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.settings import load
from toska_mesh.telemetry import new_metrics_registry

SECRET = "the mesh's own secret, long enough for HS256"
BOOKKEEPING = {
    "toska-registered-at": "2026-01-01T00:00:00.000000Z",
    "toska-ttl-seconds": "35",
    "toska-owner": "somebody",
}
"""What discovery adds to the metadata of an instance; nobody is shown it."""


class Peers:
    """Prometheus, the tracing service and the health monitor in one: remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.statuses: Any = []
        self.runner: web.AppRunner

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.raw_path, request.headers.get("Authorization")))
        if request.path == "/m/api/status":
            return web.json_response(self.statuses)
        return web.json_response({"path": request.raw_path}, status=422 if "bad" in request.raw_path else 200)

    async def __aenter__(self) -> "Peers":
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"


@contextlib.asynccontextmanager
async def dashboard(backend: Backend, url: str, secret: str = SECRET) -> AsyncIterator[Gateway]:
    async with aiohttp.ClientSession() as session:

        def configure(proxy: Proxy) -> None:
            settings = GatewaySettings(
                dashboard_prometheus_url=f"{url}/p",
                dashboard_tracing_url=f"{url}/t",
                dashboard_healthmonitor_url=f"{url}/m",
                service_auth_secret=secret,
            )
            proxy.guarded_prefix = b"/api/dashboard/"
            proxy.guarded_handler = Dashboard(
                settings, session, lambda: proxy.table, lambda: datetime(2026, 1, 2, tzinfo=UTC)
            ).handle

        async with running_gateway(backend, configure=configure) as gateway:
            yield gateway


PASSED = {
    "prometheus/query?query=up%7Bjob%3D%22a%22%7D&time=1": "/p/api/v1/query?query=up%7Bjob%3D%22a%22%7D&time=1",
    "prometheus/query-range?start=1": "/p/api/v1/query_range?start=1",
    "prometheus/query_range?start=1": "/p/api/v1/query_range?start=1",
    "prometheus/labels": "/p/api/v1/labels",
    "prometheus/series?match[]=up": "/p/api/v1/series?match[]=up",
    "traces?page=2": "/t/api/traces?page=2",
    "traces/performance": "/t/api/traces/performance",
    "traces/services": "/t/api/traces/services",
    "traces/services/orders/operations": "/t/api/traces/services/orders/operations",
    "traces/correlation/abc-1": "/t/api/traces/correlation/abc-1",
    "traces/0af7651916cd43dd": "/t/api/traces/0af7651916cd43dd",
    "health": "/m/api/status",
}

REFUSED = (
    "prometheus/query%3Fquery=up",
    "prometheus/query%23x",
    "prometheus/admin/tsdb/delete_series",
    "prometheus/query/../admin",
    "prometheus/%2e%2e/api/v1/query",
    "prometheus//query",
    "prometheus",
    "prometheus/",
    "traces/a%2Fb%2Fc",
    "traces/a%3Fb",
    "traces/a%23b",
    "traces/a%0A",
    "traces%0A",
    "traces/a%0D%0AX-Evil:%201",
    "traces/..%2F..%2Fadmin",
    "traces/%2e%2e%2f",
    "traces/a..b",
    "traces/ingest/x",
    "traces/",
    "services/",
    "services/orders",
    "health/x",
    "",
    "nothing",
)


async def test_proxied_paths() -> None:
    async with Backend() as backend, Peers() as peers, dashboard(backend, peers.url) as gateway:
        for path, expected in PASSED.items():
            answer = await gateway.get(f"/api/dashboard/{path}", "Authorization: Bearer user\r\nCookie: a=1\r\n")
            assert (answer.status, answer.get("Content-Type")) == (200, "application/json"), path
            asked, authorization = peers.asked.pop()
            assert asked == expected
            if path.startswith("prometheus"):
                assert authorization is None, "the service token is not for Prometheus"
            else:
                claims = jwt.decode(
                    (authorization or "").removeprefix("Bearer "),
                    SECRET,
                    ["HS256"],
                    audience="ToskaMesh.Services",
                    options={"verify_exp": False, "verify_iat": False},
                )
                assert (claims["sub"], claims["iss"]) == ("gateway", "ToskaMesh.Services")
        assert (await gateway.get("/api/dashboard/prometheus/query?query=bad")).status == 422


async def test_other_paths_and_methods_are_refused() -> None:
    async with Backend() as backend, Peers() as peers, dashboard(backend, peers.url) as gateway:
        for path in REFUSED:
            answer = await gateway.get(f"/api/dashboard/{path}")
            assert answer.status == 404, path
            assert answer.get("Content-Type") == "application/problem+json"
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert (await gateway.get("/api/dashboard/prometheus/query", method=method)).status == 405
        assert not peers.asked
        assert not backend.requests


async def test_a_peer_that_is_down_is_a_502() -> None:
    async with Backend() as backend, dashboard(backend, f"http://127.0.0.1:{free_port()}") as gateway:
        for path in ("prometheus/query", "traces", "health"):
            answer = await gateway.get(f"/api/dashboard/{path}")
            assert answer.status == 502
            assert b'"code":"upstream-failed"' in answer.body
        services = await gateway.get("/api/dashboard/services")
        assert services.status == 200
        assert orjson.loads(services.body)[0]["health"] == []


async def test_services() -> None:
    async with Backend() as backend, Peers() as peers, dashboard(backend, peers.url) as gateway:
        gateway.route(
            {
                "orders": [
                    instance("orders", 0, backend, version="1", weight="2", **BOOKKEEPING),
                    instance("orders", 1, backend, version="2"),
                ],
                "Billing": [instance("Billing", 0, backend)],
            }
        )
        peers.statuses = [
            {
                "serviceId": "orders-0",
                "serviceName": "orders",
                "address": "127.0.0.1",
                "port": backend.port,
                "status": 1,
                "lastProbe": "2026-01-01T00:00:00Z",
                "probeType": "http",
                "lastProbeType": "http",
                "message": None,
                "metadata": {"a": "b", **BOOKKEEPING},
            }
        ]
        answer = await gateway.get("/api/dashboard/services")
        assert (answer.status, answer.get("Content-Type")) == (200, "application/json")
        billing, orders = orjson.loads(answer.body)
        assert (billing["serviceName"], billing["health"]) == ("Billing", [])
        assert orders["serviceName"] == "orders"
        first, second = orders["instances"]
        assert first == {
            "serviceName": "orders",
            "serviceId": "orders-0",
            "address": "127.0.0.1",
            "port": backend.port,
            "status": "Healthy",
            "metadata": {"scheme": "http", "version": "1", "weight": "2"},
            "registeredAt": "",
            "lastHealthCheck": "2026-01-01T00:00:00Z",
        }
        assert (second["serviceId"], second["lastHealthCheck"]) == ("orders-1", "")
        assert orders["health"] == [
            {
                "serviceId": "orders-0",
                "serviceName": "orders",
                "address": "127.0.0.1",
                "port": backend.port,
                "status": "Healthy",
                "lastProbe": "2026-01-01T00:00:00Z",
                "lastProbeType": "http",
                "message": None,
                "metadata": {"a": "b"},
            }
        ]
        assert orders["metadata"] == {
            "serviceName": "orders",
            "instanceCount": 2,
            "generatedAt": "2026-01-02T00:00:00Z",
            "keys": [
                {"key": "scheme", "instanceCount": 2, "values": ["http"]},
                {"key": "version", "instanceCount": 2, "values": ["1", "2"]},
                {"key": "weight", "instanceCount": 1, "values": ["2"]},
            ],
        }


async def test_before_the_first_table_there_is_no_answer() -> None:
    async with Backend() as backend, Peers() as peers, dashboard(backend, peers.url) as gateway:
        gateway.proxy.table = None
        answer = await gateway.get("/api/dashboard/services")
        assert (answer.status, orjson.loads(answer.body)["code"]) == (503, "no-table-yet")
        gateway.route({})
        answer = await gateway.get("/api/dashboard/services")
        assert (answer.status, answer.body) == (200, b"[]")


LISTED = [{"serviceId": "orders-0", "serviceName": "orders", "metadata": ["a"]}]
"""Metadata that is no object."""


@pytest.mark.parametrize("statuses", [{}, "text", [1], [{"serviceName": "orders"}], [{"status": "x"}], None, LISTED])
async def test_an_unusable_answer_of_the_monitor_does_no_harm(statuses: Any) -> None:
    async with Backend() as backend, Peers() as peers, dashboard(backend, peers.url) as gateway:
        peers.statuses = statuses
        answer = await gateway.get("/api/dashboard/services")
        assert answer.status == 200
        assert orjson.loads(answer.body)[0]["health"] == []


async def test_a_client_that_leaves_before_the_dashboard_answers() -> None:
    go = asyncio.Event()

    async def slow(exchange: object) -> Any:
        await go.wait()
        raise AssertionError("a bug of the handler")

    def configure(proxy: Proxy) -> None:
        proxy.guarded_prefix = b"/api/dashboard/"
        proxy.guarded_handler = slow

    async with Backend() as backend, running_gateway(backend, configure=configure) as gateway:
        client = await gateway.connect()
        client.send(b"GET /api/dashboard/x HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.05)
        client.reset()
        other = await gateway.connect()
        other.send(b"GET /api/dashboard/x HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.05)
        go.set()
        answer = await other.answer()
        assert answer.status == 500
        assert b'"code":"internal-error"' in answer.body


async def test_admin_api(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"JWT_SECRET_KEY": SECRET, "GATEWAY_RETRY_COUNT": "5"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with Backend() as backend, running_gateway() as gateway:
        gateway.route({"orders": [instance("orders", 0, backend, zone="a", **BOOKKEEPING)]})
        settings = load(GatewaySettings, environment).settings
        metrics = new_metrics_registry("gateway")
        metrics.register(gateway.proxy.stats)
        async with (
            AdminServer(
                "127.0.0.1",
                0,
                variable="GATEWAY_ADMIN_PORT",
                health=Health(),
                metrics=metrics,
                routes=admin_routes(gateway.proxy, settings),
            ) as admin,
            aiohttp.ClientSession(f"http://127.0.0.1:{admin.port}") as session,
        ):
            for _ in range(3):
                await gateway.get()
            await gateway.get("/api/none/")

            async def read(path: str, status: int = 200) -> Any:
                async with session.get(path) as answer:
                    assert answer.status == status
                    return orjson.loads(await answer.read())

            routes = await read("/routes")
            assert [(route["service"], route["path"], route["eligible"]) for route in routes["routes"]] == [
                ("orders", "/api/orders/", 1)
            ]
            assert routes["routes"][0]["warnings"] == []
            assert await read("/routes?service=ORDERS") == routes
            assert "no service 'none'" in (await read("/routes?service=none", 404))["detail"]
            (item,) = await read("/instances?service=ORDERS")
            assert (item["id"], item["breaker"], item["inFlight"], item["why"]) == ("orders-0", "closed", 0, "")
            assert item["idleConnections"] == 1
            assert item["metadata"] == {"scheme": "http", "zone": "a"}
            assert await read("/instances") == [item]
            assert (await read("/instances?service=none", 404))["status"] == 404
            config = await read("/config")
            assert config["GATEWAY_RETRY_COUNT"]["value"] == "5"
            assert config["GATEWAY_PORT"]["origin"] == "default"
            assert SECRET not in str(config)
            assert "answer" not in await read("/tasks")
            async with session.get("/metrics") as answer:
                text = await answer.text()
            assert 'toska_gateway_requests_total{service="orders",status="200"} 3.0' in text
            assert 'toska_gateway_requests_total{service="",status="404"} 1.0' in text
            assert "toska_gateway_requests_in_flight 0.0" in text
            gateway.route({"rpc": [instance("rpc", 0, backend, scheme="grpc")]})
            assert (await gateway.get("/api/rpc/")).status == 503
            assert (await read("/instances"))[0]["why"] == "scheme grpc is not served over HTTP/1.1"
            (rpc,) = (await read("/routes"))["routes"]
            assert rpc["warnings"] == ["instances with scheme grpc get no requests: that is not served over HTTP/1.1"]

            gateway.route({"Dashboard": [instance("Dashboard", 0, backend)]})
            (shadowed,) = (await read("/routes"))["routes"]
            assert shadowed["warnings"] == [
                "requests to /api/dashboard/ are answered by the gateway itself, not by this service"
            ]
            gateway.proxy.table = None
            assert (await read("/routes", 503))["status"] == 503
            assert (await read("/instances", 503))["status"] == 503
            gateway.route({"orders": [backend]})

"""The admin server over a real socket."""

import json
import socket

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from tests.support.ports import free_port

from toska_mesh.admin import AdminServer, Health, HealthState, json_response, problem
from toska_mesh.errors import ConfigError
from toska_mesh.telemetry import new_metrics_registry


def server(health: Health | None = None, host: str = "127.0.0.1", port: int = 0, **rest: object) -> AdminServer:
    metrics = CollectorRegistry()
    return AdminServer(host, port, variable="X_PORT", health=health or Health(), metrics=metrics, **rest)  # type: ignore[arg-type]


async def get(at: AdminServer, path: str, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    async with (
        aiohttp.ClientSession() as client,
        client.request(method, f"http://127.0.0.1:{at.port}{path}", timeout=aiohttp.ClientTimeout(total=5)) as answer,
    ):
        return answer.status, await answer.text(), dict(answer.headers)


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_a_healthy_daemon_answers_200_with_its_status(path: str) -> None:
    async with server() as at:
        status, body, headers = await get(at, path)
    assert status == 200
    assert '"status":"Healthy"' in body
    assert headers["Content-Type"].startswith("application/json")


async def test_an_unhealthy_daemon_is_live_and_not_ready() -> None:
    health = Health()
    async with server(health) as at:
        health.set("registry", HealthState.UNHEALTHY, "no answer")
        assert (await get(at, "/health/live"))[0] == 200
        status, body, _ = await get(at, "/health/ready")
    assert status == 503
    assert "no answer" in body


async def test_draining_shows_at_once() -> None:
    health = Health()
    async with server(health) as at:
        assert (await get(at, "/health/ready"))[0] == 200
        health.start_draining()
        assert (await get(at, "/health/ready"))[0] == 503


async def test_head_is_answered_for_load_balancers() -> None:
    async with server() as at:
        assert (await get(at, "/health", "HEAD"))[0] == 200


async def test_metrics_are_prometheus_text() -> None:
    metrics = new_metrics_registry("test")
    async with AdminServer("127.0.0.1", 0, variable="X_PORT", health=Health(), metrics=metrics) as at:
        status, body, headers = await get(at, "/metrics")
    assert status == 200
    assert "toska_build_info" in body
    assert headers["Content-Type"].startswith("text/plain; version=")


async def test_added_routes_are_served_and_their_failures_are_problems() -> None:
    async def fine(_: web.Request) -> web.StreamResponse:
        return json_response({"ok": True})

    async def broken(_: web.Request) -> web.StreamResponse:
        raise RuntimeError("secret detail")

    async def refused(_: web.Request) -> web.StreamResponse:
        return problem(404, "no-such-service", "No such service", "orders")

    routes = [web.get("/fine", fine), web.get("/broken", broken), web.get("/refused", refused)]
    async with server(routes=routes) as at:
        assert (await get(at, "/fine"))[:2] == (200, '{"ok":true}')
        status, body, headers = await get(at, "/broken")
        assert status == 500
        assert headers["Content-Type"].startswith("application/problem+json")
        assert '"code":"internal-error"' in body
        assert "secret detail" not in body
        assert '"code":"no-such-service"' in (await get(at, "/refused"))[1]


async def test_unknown_paths_and_methods_are_problems_that_say_what_there_is() -> None:
    async def fine(_: web.Request) -> web.StreamResponse:
        return json_response({"ok": True})

    async def missing(_: web.Request) -> web.StreamResponse:
        raise web.HTTPNotFound

    patterns = ["/{_1:(?i:api)}/{_2:(?i:Orders)}/{id}", "/api/status", "/api/Status", r"/v1/{rest:.*}", r"/n/{n:\d{3}}"]
    routes = [web.get("/missing", missing), *(web.get(pattern, fine) for pattern in patterns)]
    async with server(routes=routes) as at:
        status, body, headers = await get(at, "/nope")
        assert (status, headers["Content-Type"]) == (404, "application/problem+json")
        problem_document = json.loads(body)
        assert problem_document["code"] == "not-found"
        assert problem_document["detail"] == (
            "the paths here: /api/Orders/{id}, /api/status, /health, /health/live, /health/ready, /metrics, /missing,"
            " /n/{n}, /v1/{rest}"
        )
        status, body, headers = await get(at, "/health", "POST")
        assert status == 405
        assert json.loads(body)["code"] == "method-not-allowed"
        assert json.loads(body)["detail"] == "the methods here: GET,HEAD"
        assert "GET" in headers["Allow"]
        assert json.loads((await get(at, "/missing"))[1])["detail"] == ""  # the path is there, what it names is not


async def test_a_taken_port_names_itself_and_its_variable() -> None:
    async with server() as first:
        with pytest.raises(ConfigError, match=f"port {first.port} is in use.*X_PORT"):
            async with server(port=first.port):
                pass


async def test_a_port_taken_on_one_address_is_taken_for_all_addresses() -> None:
    port = free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with pytest.raises(ConfigError, match=f"port {port} is in use"):
            async with server(host="0.0.0.0", port=port):
                pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_a_foreign_bind_address_is_a_configuration_error(host: str) -> None:
    with pytest.raises(ConfigError, match=f"X_HOST={host!r} is not an address or host name of this machine"):
        async with server(host=host):
            pass


async def test_the_port_is_free_again_after_a_stop() -> None:
    async with server() as first:
        port = first.port
    async with server(port=port) as second:
        assert second.port == port
        assert (await get(second, "/health"))[0] == 200

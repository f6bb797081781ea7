"""What instances' metadata does to their routes, over real sockets: every key, and what the admin API says of it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import orjson
import pytest
from tests.integration.gateway import daemons
from tests.integration.gateway.daemons import hello, start
from tests.integration.gateway.harness import OK, Backend, Caller, Gateway, Message, instance, running_gateway
from tests.integration.gateway.tokens import token, with_tokens
from tests.support.servers import RegistryServer, http_get
from tests.support.wait import eventually

from toska_mesh.admin import AdminServer, Health
from toska_mesh.gateway.adminapi import admin_routes
from toska_mesh.gateway.local import LocalAnswer
from toska_mesh.gateway.proxy import Proxy
from toska_mesh.model import InstanceId, ServiceName
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry
from toska_mesh.telemetry import new_metrics_registry

__all__ = ["hello", "start"]

UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
FORWARDED = "X-Forwarded-For: 192.0.2.{}\r\n"


def bearer() -> str:
    return f"Authorization: Bearer {token()}\r\n"


async def silent(caller: Caller) -> None:
    await caller.head()
    await caller.wait_closed()


def say(gateway: Gateway, *backends: Backend, service: str = "orders", **more: list[Any]) -> Any:
    """Route the service with metadata: `say(gateway, backend)({"toska-retries": "1"})`."""

    def with_metadata(*metadata: dict[str, str]) -> None:
        pairs = zip(backends, metadata, strict=True)
        instances = [instance(service, number, backend, **said) for number, (backend, said) in enumerate(pairs)]
        gateway.route({service: instances, **more})

    return with_metadata


def code(answer: Message) -> str:
    return str(orjson.loads(answer.body)["code"])


async def ask(gateway: Gateway, path: str, host: str, headers: str = "") -> Message:
    client = await gateway.connect()
    try:
        return await client.ask(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n".encode())
    finally:
        client.close()


@contextlib.asynccontextmanager
async def admin_of(gateway: Gateway) -> AsyncIterator[Any]:
    """Asks the admin API for the one route there is, or for that of a service."""
    async with (
        AdminServer(
            "127.0.0.1",
            0,
            variable="GATEWAY_ADMIN_PORT",
            health=Health(),
            metrics=new_metrics_registry("gateway"),
            routes=admin_routes(gateway.proxy, gateway.settings),
        ) as admin,
        aiohttp.ClientSession(f"http://127.0.0.1:{admin.port}") as session,
    ):

        async def route(service: str = "orders") -> Any:
            async with session.get("/routes") as answer:
                routes = orjson.loads(await answer.read())["routes"]
            (found,) = [route for route in routes if route["service"] == service]
            return found

        yield route


@pytest.mark.parametrize("key", ["toska-timeout-ms", "toska-try-timeout-ms"])
async def test_a_timeout_ends_the_wait_for_an_answer(key: str) -> None:
    async with Backend(silent) as backend, running_gateway(backend, GATEWAY_RETRY_COUNT=0) as gateway:
        say(gateway, backend)({key: "200"})
        answer = await gateway.get()
        assert (answer.status, code(answer)) == (504, "upstream-timeout")


async def test_a_timeout_covers_all_tries_and_the_other_key_each_of_them() -> None:
    async with Backend(silent) as backend, running_gateway(backend) as gateway:
        say(gateway, backend)({"toska-timeout-ms": "300"})
        assert (await gateway.get()).status == 504
        assert backend.connections == 1
        say(gateway, backend)({"toska-timeout-ms": "8000", "toska-try-timeout-ms": "150", "toska-retries": "1"})
        assert (await gateway.get()).status == 504
        assert backend.connections == 3


async def test_a_longer_timeout_needs_the_operators_consent() -> None:
    async def late(caller: Caller) -> None:
        await caller.request()
        await asyncio.sleep(0.8)
        await caller.send(OK)

    for may_relax, status in (("false", 504), ("true", 200)):
        variables = {"GATEWAY_RESPONSE_TIMEOUT_SECONDS": "0.2", "GATEWAY_RETRY_COUNT": "0"}
        async with (
            Backend(late) as backend,
            running_gateway(backend, GATEWAY_METADATA_MAY_RELAX=may_relax, **variables) as gateway,
        ):
            say(gateway, backend)({"toska-timeout-ms": "5000"})
            assert (await gateway.get()).status == status


@pytest.mark.parametrize(
    ("said", "may_relax", "tries"),
    [("0", "false", 1), ("1", "false", 2), ("4", "false", 3), ("4", "true", 5), ("x", "true", 3)],
)
async def test_retries(said: str, may_relax: str, tries: int) -> None:
    variables = {"GATEWAY_RETRY_COUNT": "2", "GATEWAY_BREAKER_FAILURE_THRESHOLD": "100"}
    async with (
        Backend() as backend,
        running_gateway(backend, GATEWAY_METADATA_MAY_RELAX=may_relax, **variables) as gateway,
    ):
        backend.script = backend.answer(UNAVAILABLE)
        say(gateway, backend)({"toska-retries": said})
        assert (await gateway.get()).status == 503
        assert len(backend.requests) == tries


async def test_a_body_over_the_routes_limit_is_refused_however_it_comes() -> None:
    post = b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\n"
    async with Backend() as backend, running_gateway(backend) as gateway:
        say(gateway, backend)({"toska-max-request-bytes": "100"})
        client = await gateway.connect()
        assert (await client.ask(post + b"Content-Length: 100\r\n\r\n" + b"a" * 100)).status == 200
        assert (await client.ask(post + b"Content-Length: 101\r\n\r\n")).status == 413

        client = await gateway.connect()
        chunk = b"32\r\n" + b"a" * 50 + b"\r\n"
        client.send(post + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + chunk)
        await eventually(lambda: gateway.in_flight == 1)
        client.send(b"1\r\na\r\n")
        assert (await client.answer()).status == 413

        # Behind another request its body is held against the operator's limit first, then against the route's.
        client = await gateway.connect()
        first = b"GET /api/orders/ HTTP/1.1\r\nHost: a\r\n\r\n"
        client.send(first + post + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3 + b"0\r\n\r\n")
        assert [(await client.answer()).status, (await client.answer()).status] == [200, 413]
        assert [len(request.body) for request in backend.requests] == [100, 0]


@pytest.mark.parametrize(("may_relax", "status"), [("false", 413), ("true", 200)])
async def test_a_larger_body_needs_the_operators_consent(may_relax: str, status: int) -> None:
    variables = {"GATEWAY_MAX_REQUEST_BYTES": "100", "GATEWAY_METADATA_MAY_RELAX": may_relax}
    async with Backend() as backend, running_gateway(backend, **variables) as gateway:
        say(gateway, backend, other=[backend])({"toska-max-request-bytes": "200"})
        body = b"Transfer-Encoding: chunked\r\n\r\n96\r\n" + b"a" * 150 + b"\r\n0\r\n\r\n"
        for before in (b"", b"GET /api/orders/ HTTP/1.1\r\nHost: a\r\n\r\n"):
            client = await gateway.connect()
            client.send(before + b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\n" + body)
            if before:
                await client.answer()
            assert (await client.answer()).status == status
            # Nobody else's limit is any higher for it.
            client = await gateway.connect()
            client.send(before + b"POST /api/other/ HTTP/1.1\r\nHost: a\r\n" + body)
            if before:
                await client.answer()
            assert (await client.answer()).status == 413


async def test_a_rate_limit_is_per_client_and_route_and_outlives_the_table() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        limited = say(gateway, backend, other=[backend])
        limited({"toska-rate-limit": "3/10m"})
        for remaining in ("2", "1"):
            answer = await gateway.get(headers=FORWARDED.format(1))
            assert (answer.get("RateLimit-Limit"), answer.get("RateLimit-Remaining")) == ("3", remaining)
        before = gateway.proxy.table
        limited({"toska-rate-limit": "3/10m", "version": "2"})
        assert before is not None
        assert gateway.proxy.table is not None
        assert gateway.proxy.table.services["orders"] is not before.services["orders"]
        assert (await gateway.get(headers=FORWARDED.format(1))).status == 200
        refused = await gateway.get(headers=FORWARDED.format(1))
        assert (refused.status, code(refused)) == (429, "rate-limited")
        assert int(refused.get("Retry-After") or 0) >= 1
        assert (await gateway.get(headers=FORWARDED.format(2))).status == 200
        other = await gateway.get("/api/other/", headers=FORWARDED.format(1))
        assert (other.status, other.get("RateLimit-Limit")) == (200, None)
        limited({"toska-rate-limit": "30/10m"})
        assert (await gateway.get(headers=FORWARDED.format(1))).get("RateLimit-Remaining") == "29"


async def test_of_two_rate_limits_the_client_is_told_the_nearer() -> None:
    variables = {"GATEWAY_RATE_LIMIT_ENABLED": "true", "GATEWAY_RATE_LIMIT_PERMITS": "4"}
    async with Backend() as backend, running_gateway(backend, **variables) as gateway:
        say(gateway, backend, other=[backend])({"toska-rate-limit": "2/h"})
        answer = await gateway.get()
        assert (answer.get("RateLimit-Limit"), answer.get("RateLimit-Remaining")) == ("2", "1")
        assert (await gateway.get("/api/other/")).get("RateLimit-Remaining") == "2"
        assert (await gateway.get("/api/other/")).get("RateLimit-Remaining") == "1"
        assert (await gateway.get()).get("RateLimit-Limit") in ("2", "4")
        assert (await gateway.get()).status == 429  # the gateway's own limit holds whatever a route says


async def test_a_demand_for_tokens_without_a_key_closes_the_route_alone() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway, admin_of(gateway) as route:
        say(gateway, backend, other=[backend])({"toska-auth": "required"})
        answer = await gateway.get(headers=bearer())
        assert (answer.status, code(answer)) == (503, "auth-not-configured")
        assert (await gateway.get("/api/other/")).status == 200
        assert not [request for request in backend.requests if request.target != "/"]
        shown = await route()
        assert shown["policy"]["auth"] == {"value": "required", "origin": "metadata", "instance": "orders-0"}
        assert any("JWT_" in warning for warning in shown["warnings"])


@pytest.mark.parametrize(("may_relax", "status"), [("false", 401), ("true", 200)])
async def test_a_route_without_tokens_needs_the_operators_consent(may_relax: str, status: int) -> None:
    async def dashboard(exchange: object) -> LocalAnswer:
        return LocalAnswer(200, b"[]")

    def configure(proxy: Proxy) -> None:
        proxy.guarded_prefix = b"/api/dashboard/"
        proxy.guarded_handler = dashboard

    async with (
        Backend() as backend,
        running_gateway(
            backend, configure=configure, options=with_tokens, GATEWAY_METADATA_MAY_RELAX=may_relax
        ) as gateway,
        admin_of(gateway) as route,
    ):
        public = {"toska-auth": "off", "toska-path": "/open"}
        say(gateway, backend, other=[backend], dashboard=[instance("dashboard", 0, backend, **public)])(public)
        assert (await gateway.get()).status == status
        assert (await gateway.get("/API/../api/Orders/")).status == status
        assert (await gateway.get(headers="Authorization: Bearer x\r\n")).status == status
        assert (await gateway.get("/api/dashboard/services")).status == 401
        assert (await gateway.get("/api/dashboard/services", headers=bearer())).body == b"[]"
        assert (await gateway.get("/api/other/")).status == 401
        assert (await gateway.get("/api/none/")).status == 401
        assert (await gateway.get("/none")).status == 401
        assert (await gateway.get("/api/other/", headers=bearer())).status == 200
        assert (await gateway.get("/open")).status == status
        shown = await route()
        assert shown["policy"]["auth"]["value"] == ("required" if status == 401 else "off")
        assert [item["key"] for item in shown["ignored"]] == (["toska-auth"] if status == 401 else [])


async def test_the_prefix_is_stripped_or_kept() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        routed = say(gateway, backend)
        for said, expected in (
            ({}, ["/a%2Fb?c=/d", "/"]),
            ({"toska-prefix": "strip", "toska-path": "/shop"}, ["/a%2Fb?c=/d", "/", "/x//y?z", "/"]),
            (
                {"toska-prefix": "keep", "toska-path": "/shop"},
                ["/api/orders/a%2Fb?c=/d", "/api/orders", "/shop/x//y?z", "/shop"],
            ),
        ):
            routed(said)
            backend.requests.clear()
            for path in ("/api/orders/a%2Fb?c=/d", "/api/orders", "/shop/x//y?z", "/shop")[: len(expected)]:
                assert (await gateway.get(path)).status == 200
            assert [request.target for request in backend.requests] == expected


async def test_a_path_of_its_own_beside_the_route_by_name() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        say(gateway, backend)({"toska-path": "/shop"})
        assert (await gateway.get("/shop/1")).status == 200
        assert (await gateway.get("/api/orders/1")).status == 200
        for path in ("/shopping", "/SHOP", "/", "/api", "/api/none"):
            answer = await gateway.get(path)
            assert (answer.status, code(answer)) == (404, "no-such-route"), path
        assert [request.target for request in backend.requests] == ["/1", "/1"]


async def test_hosts_close_a_route_to_all_others() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        say(gateway, backend)({"toska-host": "shop.example, *.shop.example", "toska-path": "/shop"})
        for host in ("shop.example", "SHOP.EXAMPLE:80", "eu.shop.example", "shop.example."):
            assert (await ask(gateway, "/api/orders/", host)).status == 200
            assert (await ask(gateway, "/shop", host)).status == 200
        assert (await ask(gateway, "http://shop.example/shop", "other.example")).status == 200
        for host in ("other.example", "notshop.example", "shop.example.org", "", "127.0.0.1"):
            for path in ("/api/orders/", "/shop", "http://other.example/shop"):
                answer = await ask(gateway, path, host, "X-Forwarded-Host: shop.example\r\n")
                assert (answer.status, code(answer)) == (404, "no-such-route")


async def test_nobody_takes_a_path_over_that_belongs_to_another_or_to_the_gateway() -> None:
    async with Backend() as mine, Backend() as theirs, running_gateway(mine) as gateway, admin_of(gateway) as route:
        greedy = instance("greedy", 0, theirs, **{"toska-path": "/api/orders,/health,/api/dashboard,/"})
        gateway.route({"orders": [mine], "greedy": [greedy]})
        assert (await gateway.get("/api/orders/")).status == 200
        assert (await gateway.get("/health")).get("Content-Type") == "application/json"
        assert (await gateway.get("/api/unknown/")).status == 404
        assert (await gateway.get("/api/dashboard/services")).status == 404
        assert (await gateway.get("/.well-known/acme-challenge/x")).status == 404
        assert not theirs.requests
        assert (await gateway.get("/anything")).status == 200
        assert len(theirs.requests) == 1
        shown = await route("greedy")
        assert shown["policy"]["paths"]["value"] == ["/"]
        assert [item["key"] for item in shown["ignored"]] == ["toska-path"] * 3


@pytest.mark.parametrize(("prefix", "name"), [("/api/", "dashboard"), ("/", "api")])
async def test_a_service_whose_name_covers_the_dashboard_does_not_get_its_requests(prefix: str, name: str) -> None:
    async def dashboard(exchange: object) -> LocalAnswer:
        return LocalAnswer(200, b"[]")

    def configure(proxy: Proxy) -> None:
        proxy.guarded_prefix = b"/api/dashboard/"
        proxy.guarded_handler = dashboard

    async with (
        Backend() as backend,
        running_gateway(backend, configure=configure, GATEWAY_ROUTE_PREFIX=prefix) as gateway,
    ):
        gateway.route({name: [backend]})
        assert (await gateway.get("/api/dashboard/services")).body == b"[]"
        assert not backend.requests
        for path in (f"{prefix}{name}", f"{prefix}{name.upper()}/dashboard/services"):
            assert (await gateway.get(path)).body == b"ok"


async def test_with_the_prefix_at_the_root_names_win_over_paths() -> None:
    async with (
        Backend() as mine,
        Backend() as theirs,
        running_gateway(mine, GATEWAY_ROUTE_PREFIX="/") as gateway,
    ):
        other = instance("other", 0, theirs, **{"toska-path": "/orders,/shop"})
        gateway.route({"orders": [mine], "other": [other]})
        assert (await gateway.get("/orders/1")).status == 200
        assert (len(mine.requests), len(theirs.requests)) == (1, 0)
        assert (await gateway.get("/shop/1")).status == 200
        assert [request.target for request in theirs.requests] == ["/1"]


async def test_the_admin_api_says_what_holds_and_what_does_not() -> None:
    async with Backend() as one, Backend() as two, running_gateway(one) as gateway, admin_of(gateway) as route:
        plain = (await route())["policy"]
        assert {value["origin"] for value in plain.values()} == {"operator"}
        say(gateway, one, two)(
            {"toska-retries": "1", "toska-timeout-ms": "500"}, {"toska-retries": "2", "toska-max-request-bytes": "0"}
        )
        shown = await route()
        assert shown["policy"]["retries"] == {"value": 2, "origin": "metadata", "instance": "orders-1"}
        assert shown["policy"]["timeoutMs"] == {"value": 500, "origin": "metadata", "instance": "orders-0"}
        assert shown["policy"]["tryTimeoutMs"]["value"] == 500
        assert shown["policy"]["maxRequestBytes"] == {"value": 10485760, "origin": "operator", "instance": None}
        (ignored,) = shown["ignored"]
        assert (ignored["key"], ignored["value"], ignored["instance"], ignored["operator"]) == (
            "toska-max-request-bytes",
            "0",
            "orders-1",
            "10485760",
        )
        (warning,) = shown["warnings"]
        assert "disagree on toska-retries" in warning

        claim = {"toska-path": "/shop"}
        gateway.route({"a": [instance("a", 0, one, **claim)], "b": [instance("b", 0, two, **claim)]})
        for service in ("a", "b"):
            assert any("/shop" in warning for warning in (await route(service))["warnings"])


async def test_only_a_policy_that_changed_is_decided_anew() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        say(gateway, backend, other=[backend], third=[backend])({"toska-retries": "1"})
        table = gateway.proxy.table
        assert table is not None
        assert table.services["other"].policy is table.services["third"].policy
        say(gateway, backend, other=[backend], third=[instance("third", 0, backend, **{"toska-retries": "0"})])(
            {"toska-retries": "1"}
        )
        newest = gateway.proxy.table
        assert newest is not None
        assert newest.services["orders"].policy is table.services["orders"].policy
        assert newest.services["third"].policy.retry.count == 0


async def test_a_routes_limit_holds_across_workers(
    hello: RegistryServer, start: Callable[..., daemons.Gateway]
) -> None:
    (registered,) = json.loads((await asyncio.to_thread(http_get, f"{hello.url}/v1/health/service/hello"))[1])
    port = registered["Service"]["Port"]
    metadata = {"scheme": "http", "toska-rate-limit": "200/10m"}
    async with ConsulClient(ConsulOptions(address=hello.url)) as client:
        await ConsulRegistry(client).register(
            Registration(ServiceName("hello"), InstanceId("hello-1"), "127.0.0.1", port, metadata, 3600)
        )
    gateway = await asyncio.to_thread(start)
    await eventually(lambda: len(gateway.serving()) == 2)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(gateway.load(stop))
        await eventually(lambda: gateway.asked >= 400)
        stop.set()
    seen = load.result()
    refilled = (loop.time() - began) * 200 / 600
    assert 200 <= seen["200"] <= (200 + refilled) * 1.05 + 1
    assert seen["429"] >= 150
    assert seen.keys() == {"200", "429"}

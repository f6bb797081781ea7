"""Limits, deadlines, rate limit, CORS and tokens, as a client meets them."""

import asyncio
import contextlib
import random

import pytest
from tests.integration.gateway.harness import OK, REQUEST, Backend, Caller, Message, TruncatedError, running_gateway
from tests.integration.gateway.tokens import token, with_tokens
from tests.support.wait import eventually

from toska_mesh.gateway.local import LocalAnswer
from toska_mesh.gateway.proxy import Proxy
from toska_mesh.resilience import State

POST = b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\n"


async def test_a_body_over_the_limit_is_refused_before_and_within() -> None:
    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_MAX_REQUEST_BYTES=100) as gateway:
        client = await gateway.connect()
        answer = await client.ask(POST + b"Content-Length: 101\r\n\r\n")
        assert (answer.status, answer.get("Connection")) == (413, "close")
        assert await client.is_closed()
        assert backend.connections == 0

        client = await gateway.connect()
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n32\r\n" + b"a" * 50 + b"\r\n")
        await eventually(lambda: backend.connections == 1)
        client.send(b"33\r\n" + b"a" * 51 + b"\r\n")
        answer = await client.answer()
        assert (answer.status, answer.get("Connection")) == (413, "close")
        assert await client.is_closed()
        assert gateway.breakers == {State.CLOSED}
        assert gateway.in_flight == 0


async def test_a_body_of_the_limit_passes_and_zero_is_no_limit() -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_REQUEST_BYTES=100) as gateway:
        client = await gateway.connect()
        assert (await client.ask(POST + b"Content-Length: 100\r\n\r\n" + b"a" * 100)).status == 200
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_REQUEST_BYTES=0) as gateway:
        client = await gateway.connect()
        assert (await client.ask(POST + b"Content-Length: 12000000\r\n\r\n" + bytes(12_000_000))).status == 200


async def test_a_large_upload_is_answered_with_413_while_it_is_sent() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(POST + b"Content-Length: 20000000\r\n\r\n" + bytes(4_000_000))
        assert (await client.answer()).status == 413


@pytest.mark.parametrize("start", [b"G", b"GET /api/orders/ HTTP/1.1\r\nHost:", REQUEST + b"GET"])
async def test_a_head_that_does_not_arrive_is_a_408(start: bytes) -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_HEADER_TIMEOUT_SECONDS=0.4) as gateway:
        client = await gateway.connect()
        client.send(start)
        if start.startswith(REQUEST):
            assert (await client.answer()).status == 200
        answer = await client.answer()
        assert (answer.status, answer.get("Connection")) == (408, "close")
        assert await client.is_closed()


async def test_one_byte_now_and_then_does_not_prolong_a_head() -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_HEADER_TIMEOUT_SECONDS=0.6) as gateway:
        client = await gateway.connect()
        async with asyncio.timeout(10):
            for byte in b"GET /api/orders/ HTTP/1.1\r\nX-Slow: " + b"a" * 100:
                client.send(bytes([byte]))
                await asyncio.sleep(0.1)
                if not gateway.proxy.clients:
                    break
        assert (await client.answer()).status == 408


@pytest.mark.parametrize("first", [b"", b"\r\n"], ids=["silent", "empty line"])
async def test_silent_connections_are_closed_without_a_word(first: bytes) -> None:
    async with (
        Backend() as backend,
        running_gateway(backend, GATEWAY_HEADER_TIMEOUT_SECONDS=0.4, GATEWAY_KEEP_ALIVE_SECONDS=0.8) as gateway,
    ):
        client = await gateway.connect()
        client.send(first)
        assert await client.is_closed()
        client = await gateway.connect()
        await client.ask(REQUEST)
        client.send(first)
        await asyncio.sleep(0.1)
        assert gateway.proxy.clients
        assert await client.is_closed()


async def test_rate_limit() -> None:
    variables = {
        "GATEWAY_RATE_LIMIT_ENABLED": "true",
        "GATEWAY_RATE_LIMIT_PERMITS": "3",
        "GATEWAY_RATE_LIMIT_WINDOW_SECONDS": "600",
    }
    async with Backend() as backend, running_gateway(backend, **variables) as gateway:
        backend.script = backend.answer(OK.replace(b"\r\n\r\n", b"\r\nRateLimit-Limit: 9999\r\n\r\n"))
        for remaining in (2, 1, 0):
            answer = await gateway.get(headers="X-Forwarded-For: 192.0.2.1\r\n")
            assert (answer.get("RateLimit-Limit"), answer.get("RateLimit-Remaining")) == ("3", str(remaining))
        refused = await gateway.get(headers="X-Forwarded-For: 192.0.2.1\r\n")
        assert refused.status == 429
        assert int(refused.get("Retry-After") or 0) >= 1
        assert refused.get("RateLimit-Remaining") == "0"
        assert (await gateway.get(headers="X-Forwarded-For: 192.0.2.2\r\n")).status == 200
        for path in ("/health", "/health/live", "/health/ready"):
            health = await gateway.get(path, "X-Forwarded-For: 192.0.2.1\r\n")
            assert health.status == 200
            assert health.get("RateLimit-Limit") is None
        assert len(backend.requests) == 4


PREFLIGHT = "Origin: https://app.example\r\nAccess-Control-Request-Method: PUT\r\n"


async def test_cors_for_any_origin() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(OK.replace(b"\r\n\r\n", b"\r\nAccess-Control-Allow-Origin: theirs\r\n\r\n"))
        answer = await gateway.get(headers=PREFLIGHT, method="OPTIONS")
        assert (answer.status, answer.get("Access-Control-Allow-Origin")) == (204, "*")
        assert "PUT" in (answer.get("Access-Control-Allow-Methods") or "")
        assert not backend.requests
        assert (await gateway.get(headers="Origin: https://app.example\r\n")).get("Access-Control-Allow-Origin") == "*"
        assert (await gateway.get()).get("Access-Control-Allow-Origin") == "theirs"
        for headers in ("", "Origin: https://app.example\r\n", "Access-Control-Request-Method: PUT\r\n"):
            assert (await gateway.get(headers=headers, method="OPTIONS")).body == b"ok"
        assert [request.method for request in backend.requests].count("OPTIONS") == 3


async def test_cors_for_a_list_of_origins() -> None:
    async with (
        Backend() as backend,
        running_gateway(backend, GATEWAY_CORS_ALLOWED_ORIGINS="https://app.example") as gateway,
    ):
        answer = await gateway.get(headers=PREFLIGHT, method="OPTIONS")
        assert (answer.status, answer.get("Access-Control-Allow-Origin")) == (204, "https://app.example")
        refused = await gateway.get(headers=PREFLIGHT.replace("app", "evil"), method="OPTIONS")
        assert (refused.status, refused.get("Access-Control-Allow-Origin")) == (403, None)
        other = await gateway.get(headers="Origin: https://evil.example\r\n")
        assert (other.status, other.get("Access-Control-Allow-Origin"), other.get("Vary")) == (200, None, "Origin")


async def test_tokens_guard_routes_and_dashboard_but_not_health() -> None:
    async def dashboard(exchange: object) -> LocalAnswer:
        return LocalAnswer(200, b"[]")

    def configure(proxy: Proxy) -> None:
        proxy.guarded_prefix = b"/api/dashboard/"
        proxy.guarded_handler = dashboard

    async with Backend() as backend, running_gateway(backend, configure=configure, options=with_tokens) as gateway:
        good, bad = f"Authorization: Bearer {token()}\r\n", f"Authorization: Bearer {token(exp=1)}\r\n"
        for path in ("/api/orders/", "/api/dashboard/services", "/x/../api/orders/", "/api/none/"):
            for headers in ("", bad, "Authorization: Basic YTpi\r\n"):
                answer = await gateway.get(path, headers)
                assert answer.status == 401, (path, headers)
                assert (answer.get("WWW-Authenticate") or "").startswith('Bearer realm="toska"')
        assert not backend.requests
        assert (await gateway.get(headers=good)).status == 200
        assert (await gateway.get("/api/dashboard/services", good)).body == b"[]"
        assert (await gateway.get("/health")).status == 200
        assert backend.requests[0].get("Authorization") == good[15:-2]
        preflight = await gateway.get(headers=PREFLIGHT, method="OPTIONS")
        assert preflight.status == 204


async def test_health_is_read_only_and_exact() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        assert (await gateway.get("/health", method="DELETE")).status == 405
        head = await gateway.get("/health", method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert int(head.get("Content-Length") or 0) > 10
        assert (await gateway.get("/health/")).status == 404
        assert (await gateway.get("/x/%2e%2e/health")).status == 200


async def test_asterisk_and_no_table() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        assert (await gateway.get("*", method="OPTIONS")).status == 204
        gateway.proxy.table, gateway.proxy._plain = None, {}  # as before the first table
        answer = await gateway.get()
        assert (answer.status, answer.get("Retry-After")) == (503, "1")
        gateway.route({"orders": [backend]})


async def test_a_service_without_instances() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        gateway.route({"orders": [backend], "Billing": [backend]})
        assert (await gateway.get("/api/billing/")).status == 200
        assert (await gateway.get("/api/BILLING/")).status == 200
        gateway.route({"orders": [backend]})
        answer = await gateway.get("/api/billing/")
        assert answer.status == 404
        assert b'"code":"no-such-route"' in answer.body
        assert (answer.get("X-Request-ID") or "").encode() in answer.body


async def test_ids_and_traces_pass() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with Backend() as backend, running_gateway(backend) as gateway:
        answer = await gateway.get(
            headers=f"X-Correlation-ID: mine\r\ntraceparent: 00-{trace}-b7ad6b7169203331-01\r\ntracestate: a=1\r\n"
        )
        (request,) = backend.requests
        assert (
            request.get("X-Correlation-ID") == request.get("X-Request-ID") == answer.get("X-Correlation-ID") == "mine"
        )
        parts = (request.get("traceparent") or "").split("-")
        assert parts[:2] == ["00", trace]
        assert parts[2] != "b7ad6b7169203331"
        assert request.get("tracestate") == "a=1"


async def test_bytes_of_one_client_never_reach_another() -> None:
    """Random interleavings of clients, instances, sizes and endings; every byte says whose it is."""
    rng = random.Random(7)

    async def script(caller: Caller) -> None:
        while (request := await caller.request()) is not None:
            name = request.target.removeprefix("/").encode()
            assert request.body in (b"", name * (len(request.body) // max(1, len(name))))
            body = name * rng.choice((0, 1, 7, 5000, 40_000))
            await asyncio.sleep(rng.choice((0, 0, 0.001)))
            kind = rng.randrange(10)
            if kind < 4:
                head = b"HTTP/1.1 200 OK\r\nX-Whose: %b\r\nContent-Length: %d\r\n\r\n" % (name, len(body))
                await caller.send(head + body)
            elif kind < 7:
                await caller.send(b"HTTP/1.1 200 OK\r\nX-Whose: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % name)
                for start in range(0, len(body), 9000):
                    part = body[start : start + 9000]
                    await caller.send(b"%x\r\n%b\r\n" % (len(part), part))
                await caller.send(b"0\r\n\r\n")
            elif kind == 7:
                await caller.send(b"HTTP/1.1 200 OK\r\nX-Whose: %b\r\n\r\n%b" % (name, body))
                return
            elif kind == 8:
                await caller.send(b"HTTP/1.1 200 OK\r\nX-Whose: %b\r\nContent-Length: 99999\r\n\r\n%b" % (name, name))
                return
            else:
                await caller.send(b"HTTP/1.1 200 OK\r\nX-Whose: %b\r\nContent-Length: 0\r\n\r\njunk" % name)

    def check(answer: Message, name: bytes) -> None:
        if answer.status == 200:
            assert answer.get("X-Whose") == name.decode()
            assert answer.body == name * (len(answer.body) // len(name))
        else:
            assert answer.status in (502, 503)

    async def use(number: int) -> None:
        for turn in range(12):
            client = await gateway.connect(limit=2**18)
            names = [b"client-%d-%d-%d;" % (number, turn, item) for item in range(rng.randrange(1, 5))]
            for name in names:
                body = name * rng.choice((1, 500)) if rng.random() < 0.4 else b""
                method = b"PUT" if body else b"GET"
                head = b"%b /api/orders/%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (
                    method,
                    name,
                    len(body),
                )
                client.send(head + body)
            if rng.random() < 0.1:
                client.reset()
                continue
            with contextlib.suppress(TruncatedError):
                for name in names:
                    check(await client.answer(), name)
            client.close()

    async with (
        Backend(script) as one,
        Backend(script) as two,
        running_gateway(one, two, GATEWAY_BREAKER_FAILURE_THRESHOLD=100000) as gateway,
        asyncio.TaskGroup() as users,
    ):
        for number in range(16):
            users.create_task(use(number))


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE"])
async def test_max_forwards_is_counted_down_and_ends_here(method: str) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        for _ in range(2):
            client = await gateway.connect()
            for left in (2, 1):
                request = f"{method} /api/orders/ HTTP/1.1\r\nHost: a\r\nMax-Forwards: {left}\r\n\r\n".encode()
                assert (await client.ask(request)).status == 200
                assert backend.requests[-1].get("Max-Forwards") == str(left - 1)
            answer = await client.ask(request.replace(b"s: 1", b"s: 0"))
            assert answer.status == (204 if method == "OPTIONS" else 405)
            assert "GET" in (answer.get("Allow") or "")
            assert answer.get("Via") == "1.1 toska"
        assert len(backend.requests) == 4
        assert (await gateway.get(headers="Max-Forwards: 0\r\n")).body == b"ok"

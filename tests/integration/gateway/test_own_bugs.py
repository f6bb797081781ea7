"""A bug in the gateway is logged as one, costs the request it hit, and leaves nothing behind."""

import asyncio
from typing import Never

import pytest
from tests.integration.gateway.harness import OK, REQUEST, Backend, TruncatedError, running_gateway
from tests.support.wait import eventually

from toska_mesh.gateway import client as client_module
from toska_mesh.gateway.exchange import Exchange
from toska_mesh.gateway.proxy import Proxy
from toska_mesh.resilience import State

POST = b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
READY = b"GET /health/ready HTTP/1.1\r\nHost: a\r\n\r\n"


def fail(*_: object) -> Never:
    raise RuntimeError("a bug")


@pytest.mark.parametrize("request_bytes", [REQUEST, POST, REQUEST + REQUEST], ids=["get", "post", "two"])
@pytest.mark.parametrize("place", ["reading the head", "choosing", "sending"])
async def test_while_a_request_is_taken(
    place: str, request_bytes: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        other = await gateway.connect()
        assert (await other.ask(REQUEST)).status == 200
        with monkeypatch.context() as patch:
            if place == "reading the head":
                patch.setattr(client_module, "make_head", fail)
            else:
                patch.setattr(Exchange, {"choosing": "forward", "sending": "_send_on"}[place], fail)
            client = await gateway.connect()
            answer = await client.ask(request_bytes)
            assert (answer.status, answer.get("Connection")) == (500, "close")
            assert b'"code":"internal-error"' in answer.body
            assert await client.is_closed()
        assert "request_failed_inside" in caplog.text
        assert (await (await gateway.connect()).ask(REQUEST)).body == b"ok"
        assert gateway.breakers == {State.CLOSED}
    assert gateway.recorded == 3


@pytest.mark.parametrize("first", [REQUEST, READY], ids=["answered by the instance", "answered at once"])
@pytest.mark.parametrize("place", ["choosing", "sending", "counting"])
async def test_at_the_second_of_pipelined_requests(
    place: str, first: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its turn comes in a callback of the first one's instance, or in a later turn of the loop."""
    second = b"/health/live" if place == "counting" else b"/api/orders/second"
    place_in_code: dict[str, tuple[type, str]] = {
        "choosing": (Exchange, "forward"),
        "sending": (Exchange, "_send_on"),
        "counting": (Exchange, "_record"),
    }
    owner, name = place_in_code[place]
    original = getattr(owner, name)

    def fail_at_the_second(exchange: Exchange, *arguments: object) -> None:
        original(exchange, *arguments)
        if exchange.head.path == second:
            fail()

    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with Backend() as backend, running_gateway(backend) as gateway:
        assert (await gateway.get()).status == 200
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail_at_the_second)
            client = await gateway.connect()
            client.send(first + REQUEST.replace(b"/api/orders/", second) + REQUEST)
            assert (await client.answer()).status == 200
            rest = await client.everything()
            if place == "counting":
                assert rest.count(b"HTTP/1.1 ") <= 1, "it was answered already"
            else:
                assert rest.startswith(b"HTTP/1.1 500 ")
                assert rest.count(b"HTTP/1.1 ") == 1
                assert b"Connection: close" in rest
            await eventually(lambda: not gateway.proxy.clients, what="the end of the connection")
        assert caplog.text.count("request_failed_inside") == 1
        assert "answer_failed_inside" not in caplog.text
        assert (await (await gateway.connect()).ask(REQUEST)).body == b"ok"
        assert gateway.breakers == {State.CLOSED}
        assert gateway.in_flight == 0
    assert not failures


async def test_at_a_request_that_has_its_answer_the_ones_behind_it_get_theirs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handle = Proxy.handle

    def fail_afterwards(proxy: Proxy, exchange: Exchange) -> None:
        handle(proxy, exchange)
        if exchange.head.path == b"/health/live":
            fail()

    async with Backend() as backend, running_gateway(backend) as gateway:
        monkeypatch.setattr(Proxy, "handle", fail_afterwards)
        client = await gateway.connect()
        client.send(REQUEST + REQUEST.replace(b"/api/orders/", b"/health/live") + REQUEST)
        assert [(await client.answer()).status for _ in range(4)] == [200, 200, 200, 500]
        assert await client.is_closed()
        assert caplog.text.count("request_failed_inside") == 1


@pytest.mark.parametrize("place", ["on_response_head", "on_interim"])
async def test_while_an_answer_is_taken(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_RETRY_COUNT=0) as gateway:
        backend.script = backend.answer(b"HTTP/1.1 102 Processing\r\n\r\n" + OK)
        with monkeypatch.context() as patch:
            patch.setattr(Exchange, place, fail)
            client = await gateway.connect()
            client.send(REQUEST)
            try:
                assert (await client.answer()).status == 502
            except TruncatedError:
                assert place == "on_response_head"
        assert "answer_failed_inside" in caplog.text
        assert (await (await gateway.connect()).ask(REQUEST)).body == b"ok"
    assert gateway.recorded == 2

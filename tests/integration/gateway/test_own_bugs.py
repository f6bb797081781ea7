"""A bug in the gateway is logged as one, costs the request it hit, and leaves nothing behind."""

from typing import Never

import pytest
from tests.integration.gateway.harness import OK, REQUEST, Backend, TruncatedError, running_gateway

from toska_mesh.gateway import client as client_module
from toska_mesh.gateway.exchange import Exchange
from toska_mesh.resilience import State

POST = b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"


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

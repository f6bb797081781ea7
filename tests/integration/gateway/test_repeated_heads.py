"""Heads that repeat are not parsed again: what comes of them is the same as if they were."""

import asyncio
import re

import pytest
from tests.integration.gateway.harness import OK, Backend, Caller, Message, TruncatedError, running_gateway

from toska_mesh.gateway.request import MAX_KNOWN_BLOCK_BYTES, MAX_KNOWN_BLOCKS, HeaderBlock

BLOCK = b"Host: shop.example\r\nAccept: */*\r\nCookie: a=b\r\nX-Own: one\r\n\r\n"
DATE = b"Date: Fri, 20 Nov 2026 18:00:00 GMT\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\n" + DATE + b"Server: s\r\nX-Own: two\r\nContent-Length: 5\r\n\r\n"


def request(target: bytes = b"/api/orders/x", method: bytes = b"GET", block: bytes = BLOCK) -> bytes:
    return method + b" " + target + b" HTTP/1.1\r\n" + block


def without_ids(message: Message) -> tuple[str, list[tuple[str, str]], bytes]:
    ids = re.compile("x-request-id|x-correlation-id|ratelimit-.*", re.IGNORECASE)
    return message.start, [(name, value) for name, value in message.headers if not ids.fullmatch(name)], message.body


async def test_the_instance_and_the_client_see_the_same_every_time() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(ANSWER + b"first", ANSWER + b"again")
        client = await gateway.connect()
        answers = [await client.ask(request()) for _ in range(4)]
    assert len({str(without_ids(seen)) for seen in backend.requests}) == 1
    assert [answer.body for answer in answers] == [b"first", b"again", b"again", b"again"]
    assert len({str(without_ids(answer)[1]) for answer in answers}) == 1
    assert len({answer.get("X-Request-ID") for answer in answers}) == 4
    assert backend.connections == 1


async def test_first_lines_may_differ() -> None:
    targets = [b"/api/orders/a", b"/api/orders/b?c=%2e", b"/api/x/../orders/d", b"/api/ORDERS", b"/api/orders/%2e%2E/e"]
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for target in targets:
            await client.ask(request(target))
        missing = await client.ask(request(b"/api/nobody/"))
        await client.ask(request(b"/api/orders/h", b"DELETE"))
    assert missing.status == 404
    starts = [seen.start for seen in backend.requests]
    assert starts[:4] == ["GET /a HTTP/1.1", "GET /b?c=%2e HTTP/1.1", "GET /d HTTP/1.1", "GET / HTTP/1.1"]
    assert starts[-1] == "DELETE /h HTTP/1.1"


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"GET  /api/orders/x HTTP/1.1 \r\n", id="space at the end"),
        pytest.param(b"GET /api/orders/x y HTTP/1.1\r\n", id="space inside"),
        pytest.param(b"GET /api/orders/\x80 HTTP/1.1\r\n", id="not ASCII"),
        pytest.param(b"GET /api/orders/\x01 HTTP/1.1\r\n", id="control character"),
        pytest.param(b"get /api/orders/x HTTP/1.1\r\n", id="lower case method"),
        pytest.param(b"GET /api/orders/x HTTP/1.1\n", id="bare LF"),
        pytest.param(b"GET /api/orders/x#y HTTP/1.1\r\n", id="fragment"),
        pytest.param(b"GET /../x HTTP/1.1\r\n", id="above the root"),
        pytest.param(b"GET /api/orders/x HTTP/3.0\r\n", id="version"),
        pytest.param(b"CONNECT /api/orders/x HTTP/1.1\r\n", id="CONNECT"),
    ],
)
async def test_a_bad_first_line_is_refused_before_a_known_block_too(line: bytes) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(request())
        refused = await client.ask(line + BLOCK)
        assert await client.is_closed()
    assert 400 <= refused.status < 600
    assert len(backend.requests) == 1


async def test_a_block_is_known_only_when_it_is_the_whole_rest() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(request())
        client.send(request(b"/api/orders/one") + request(b"/api/orders/two"))
        await client.answer()
        await client.answer()
        body = b"Content-Length: 4\r\n" + BLOCK
        assert (await client.ask(request(b"/api/orders/body", b"POST", body) + b"abcd")).status == 200
        for part in (request(b"/api/orders/split")[:20], request(b"/api/orders/split")[20:]):
            client.send(part)
            await asyncio.sleep(0.02)
        assert (await client.answer()).status == 200
        assert (await client.ask(request(b"/api/orders/last"))).status == 200
    seen = [(message.start.split()[1], message.body) for message in backend.requests]
    assert seen == [("/x", b""), ("/one", b""), ("/two", b""), ("/body", b"abcd"), ("/split", b""), ("/last", b"")]


async def test_policies_look_at_every_request() -> None:
    variables = {"GATEWAY_RATE_LIMIT_ENABLED": "true", "GATEWAY_RATE_LIMIT_PERMITS": "3"}
    async with Backend() as backend, running_gateway(backend, **variables) as gateway:
        client = await gateway.connect()
        statuses = [(await client.ask(request())).status for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]


async def test_a_known_answer_may_come_in_pieces_and_with_other_bodies() -> None:
    async def pieces(caller: Caller) -> None:
        for body in (b"first", b"other", b"third"):
            await caller.request()
            await caller.send(ANSWER + body[:2])
            await asyncio.sleep(0.02)
            await caller.send(body[2:])
        await caller.wait_closed()

    async with Backend(pieces) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        assert [(await client.ask(request())).body for _ in range(3)] == [b"first", b"other", b"third"]
    assert backend.connections == 1


async def test_other_answers_between_known_ones() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(
            ANSWER + b"first",
            b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
            ANSWER + b"third",
            b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER + b"later",
            ANSWER + b"fifth",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            ANSWER + b"final",
        )
        client = await gateway.connect()
        answers = [await client.ask(request()) for _ in range(7)]
    assert [answer.status for answer in answers] == [200, 304, 200, 200, 200, 200, 200]
    assert [answer.body for answer in answers] == [b"first", b"", b"third", b"later", b"fifth", b"abc", b"final"]
    assert backend.connections == 1


async def test_the_answer_to_head_has_no_body_though_its_head_is_known() -> None:
    async def script(caller: Caller) -> None:
        for body in (b"first", b"", b"third"):
            await caller.request()
            await caller.send(ANSWER + body)
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        assert (await client.ask(request())).body == b"first"
        head = await client.ask(request(method=b"HEAD"), "HEAD")
        assert (head.status, head.get("Content-Length"), head.body) == (200, "5", b"")
        assert (await client.ask(request())).body == b"third"


async def test_a_known_head_with_too_much_or_too_little_behind_it() -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.send(ANSWER + b"first")
        await caller.request()
        await caller.send(ANSWER + b"secondHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        assert (await client.ask(request())).body == b"first"
        assert (await client.ask(request())).body == b"secon"

        async def truncating(caller: Caller) -> None:
            await caller.request()
            await caller.send(ANSWER + b"whole")
            await caller.request()
            await caller.send(ANSWER + b"ha")
            caller.close()

        backend.script = truncating
        assert (await client.ask(request())).body == b"whole"  # the connection with the surplus was not used again
        with pytest.raises(TruncatedError):
            await client.ask(request())


async def test_what_is_replaced_in_an_answer_depends_on_its_request() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\n" + DATE + b"Access-Control-Allow-Origin: https://own.example\r\nContent-Length: 0\r\n\r\n"
    )
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(answer)
        client = await gateway.connect()
        plain = await client.ask(request())
        cross = await client.ask(request(block=b"Origin: https://app.example\r\n" + BLOCK))
        again = await client.ask(request())
    assert plain.get("Access-Control-Allow-Origin") == "https://own.example"
    assert cross.get("Access-Control-Allow-Origin") == "*"
    assert again.get("Access-Control-Allow-Origin") == "https://own.example"


async def test_a_known_answer_that_says_503_is_still_tried_elsewhere() -> None:
    failing = b"HTTP/1.1 503 Service Unavailable\r\n" + DATE + b"Content-Length: 0\r\n\r\n"
    async with Backend() as one, Backend() as two, running_gateway(one, two) as gateway:
        one.script = one.answer(failing)
        two.script = two.answer(ANSWER + b"works")
        client = await gateway.connect()
        assert [(await client.ask(request())).body for _ in range(8)] == [b"works"] * 8


async def test_what_one_client_said_is_known_from_another_but_who_said_it_is_not() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
            client = await gateway.connect(local_addr=(source, 0))
            assert (await client.ask(request())).status == 200
            client.close()
        assert len(gateway.proxy.known_blocks) == 1
    assert [seen.get("X-Forwarded-For") for seen in backend.requests] == ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
    assert len({seen.get("X-Request-ID") for seen in backend.requests}) == 3


async def test_a_block_that_speaks_of_forwarding_is_read_for_each_peer() -> None:
    block = b"X-Forwarded-For: 203.0.113.9\r\n" + BLOCK
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        assert [(await client.ask(request(block=block))).status for _ in range(3)] == [200, 200, 200]
        assert len(gateway.proxy.known_blocks) == 0


async def test_blocks_that_take_turns_are_all_known() -> None:
    blocks = [BLOCK.replace(b"a=b", b"a=%d" % number) for number in range(5)]
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for block in blocks * 3:
            assert (await client.ask(request(block=block))).status == 200
        assert len(gateway.proxy.known_blocks) == 5
    assert [seen.get("Cookie") for seen in backend.requests] == [f"a={number}" for number in range(5)] * 3


async def test_known_blocks_are_bounded() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for number in range(MAX_KNOWN_BLOCKS + 5):
            gateway.proxy.known_blocks.keep(b"%d" % number, HeaderBlock("1.1"))
        assert len(gateway.proxy.known_blocks) <= MAX_KNOWN_BLOCKS
        before = len(gateway.proxy.known_blocks)
        assert (
            await client.ask(request(block=b"X-Long: %b\r\n" % (b"x" * MAX_KNOWN_BLOCK_BYTES) + BLOCK))
        ).status == 200
        assert len(gateway.proxy.known_blocks) == before


async def test_a_first_line_that_comes_alone_is_not_taken_for_a_request() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for _ in range(2):
            client.send(b"GET /api/orders/x HTTP/1.1\r\n")
            await asyncio.sleep(0.05)
            client.send(BLOCK)
            assert (await client.answer()).status == 200
            client.send(request() + b"GET /api/orders/y HTTP/1.1\r\n")
            assert (await client.answer()).status == 200
            await asyncio.sleep(0.05)
            client.send(BLOCK)
            assert (await client.answer()).status == 200
    assert len(backend.requests) == 6


def post(body: bytes, method: bytes = b"POST", target: bytes = b"/api/orders/x") -> bytes:
    return request(target, method, b"Content-Length: %d\r\n" % len(body) + BLOCK) + body


async def test_a_known_block_may_have_a_body_that_comes_with_it() -> None:
    bodies = [b"first", b"other", b"\r\n\r\nx", b"final"]
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for body in bodies:
            assert (await client.ask(post(body))).status == 200
        assert len(gateway.proxy.known_blocks) == 1
    assert [seen.body for seen in backend.requests] == bodies
    assert {seen.start for seen in backend.requests} == {"POST /x HTTP/1.1"}
    assert backend.connections == 1


async def test_a_body_that_comes_later_or_with_more_behind_it_is_read_as_ever() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(post(b"first"))
        client.send(post(b"later")[:-2])
        await asyncio.sleep(0.05)
        client.send(b"er")
        assert (await client.answer()).status == 200
        client.send(post(b"three") + post(b"fours") + request())
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 200]
        assert (await client.ask(post(b"after"))).status == 200
    assert [seen.body for seen in backend.requests] == [b"first", b"later", b"three", b"fours", b"", b"after"]


async def test_a_known_block_with_a_body_is_limited_and_tried_again_like_any_other() -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_REQUEST_BYTES="4") as gateway:
        client = await gateway.connect()
        for _ in range(2):
            assert (await client.ask(post(b"four"))).status == 200
        for _ in range(2):
            refusing = await gateway.connect()
            assert (await refusing.ask(post(b"fives"))).status == 413
    async with Backend() as backend, running_gateway(backend, GATEWAY_RETRY_BASE_MS="1") as gateway:
        client = await gateway.connect()
        backend.script = backend.answer(OK, b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", OK)
        assert [(await client.ask(post(b"whole", b"PUT"))).status for _ in range(2)] == [200, 200]
    assert [seen.body for seen in backend.requests] == [b"whole"] * 3

"""What instances answer, well or badly, and that a broken answer never looks complete."""

import asyncio
import contextlib
import gc
import time
from datetime import UTC, datetime

import pytest
from tests.integration.gateway.harness import OK, REQUEST, Backend, Caller, Script, TruncatedError, running_gateway

POST = b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
REQUEST_10 = b"GET /api/orders/ HTTP/1.0\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n"
UNTIL_CLOSE_10 = b"HTTP/1.0 200 OK\r\n\r\n"
LARGE = bytes(range(256)) * 1024


def once(answer: bytes, *, close: bool = True, reset: bool = False) -> Script:
    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.send(answer)
        if reset:
            caller.reset()
        elif not close:
            await caller.wait_closed()

    return script


WHOLE: dict[str, tuple[bytes, bytes]] = {
    "length": (LENGTH + b"hello", b"hello"),
    "length zero": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "large": (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE, LARGE),
    "chunked": (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "chunked in parts": (CHUNKED + b"1;x=y\r\nh\r\n4\r\nello\r\n0\r\n\r\n", b"hello"),
    "large chunk": (CHUNKED + b"%x\r\n" % len(LARGE) + LARGE + b"\r\n0\r\n\r\n", LARGE),
    "until close": (UNTIL_CLOSE + b"hello", b"hello"),
    "until close, HTTP/1.0": (UNTIL_CLOSE_10 + b"hello", b"hello"),
    "until close, large": (UNTIL_CLOSE + LARGE, LARGE),
    "until close, empty": (UNTIL_CLOSE, b""),
    "length, HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "without a reason": (b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "more than its length": (LENGTH + b"hello world", b"hello"),
    "a second answer": (LENGTH + b"hello" + LENGTH + b"world", b"hello"),
    "interim first": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + LENGTH + b"hello", b"hello"),
}


@pytest.mark.parametrize("request_bytes", [REQUEST, REQUEST_10], ids=["1.1", "1.0"])
@pytest.mark.parametrize("case", WHOLE)
async def test_whole_answers(case: str, request_bytes: bytes) -> None:
    answer_bytes, body = WHOLE[case]
    async with Backend(once(answer_bytes)) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for _ in range(2):
            answer = await client.ask(request_bytes)
            assert (answer.status, answer.body) == (200, body)
            if request_bytes is REQUEST:
                assert answer.framing != "close"
                assert answer.get("Connection") is None
                assert len(answer.interim) == (case == "interim first")
            else:
                assert answer.framing != "chunked"
                assert not answer.interim
                assert await client.is_closed()
                client = await gateway.connect()
        assert gateway.outcomes() == {}


TRUNCATED: dict[str, Script] = {
    "length": once(LENGTH + b"hell"),
    "length, reset": once(LENGTH + b"hell", reset=True),
    "large": once(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE[:-1]),
    "chunked": once(CHUNKED + b"5\r\nhello\r\n"),
    "chunked, in a chunk": once(CHUNKED + b"5\r\nhel"),
    "chunked, in a size": once(CHUNKED + b"5\r\nhello\r\n0"),
    "chunked, in the trailers": once(CHUNKED + b"5\r\nhello\r\n0\r\nX: 1\r\n"),
    "chunked, reset": once(CHUNKED + b"5\r\nhello\r\n", reset=True),
    "chunked, malformed": once(CHUNKED + b"5\r\nhello\r\nxyz\r\n", close=False),
    "chunk too long": once(CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n", close=False),
}
"""Answers that begin and do not end as they should."""


@pytest.mark.parametrize("request_bytes", [REQUEST, REQUEST_10, POST], ids=["1.1", "1.0", "post"])
@pytest.mark.parametrize("case", TRUNCATED)
async def test_a_truncated_answer_never_looks_whole(case: str, request_bytes: bytes) -> None:
    async def send_first(caller: Caller) -> None:
        await TRUNCATED[case](caller)

    async with Backend(send_first) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(request_bytes)
        with pytest.raises(TruncatedError):
            await client.answer()
        assert await client.is_closed()


async def test_until_close_with_a_reset_is_no_end_even_for_http_10() -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.send(UNTIL_CLOSE + b"hello")
        await asyncio.sleep(0.1)
        caller.reset()

    for request in (REQUEST, REQUEST_10):
        async with Backend(script) as backend, running_gateway(backend) as gateway:
            client = await gateway.connect()
            client.send(request)
            with pytest.raises(TruncatedError):
                await client.answer()
            assert gateway.outcomes() == {"upstream-truncated": 1}


BROKEN: dict[str, bytes] = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "bad status": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "status zero": b"HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nok",
    "status of words": b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\nok",
    "both lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "differing lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokx",
    "bad length": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
    "coding and chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "folded field": b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok",
    "space before a colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "null in a value": b"HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 2\r\n\r\nok",
    "101 unasked": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello",
    "101 without fields": b"HTTP/1.1 101 Switching Protocols\r\n\r\nhello",
    "interim answers without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 200,
    "head without end": b"HTTP/1.1 200 OK\r\n" + b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 8000,
    "one field without end": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 400_000,
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "an interim answer alone": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", [REQUEST, POST], ids=["get", "post"])
@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_answer_is_a_502(case: str, request_bytes: bytes) -> None:
    ends = case in ("nothing", "half a head", "an interim answer alone")
    async with (
        Backend(once(BROKEN[case], close=ends)) as backend,
        running_gateway(backend, GATEWAY_RETRY_COUNT=1, GATEWAY_BREAKER_FAILURE_THRESHOLD=100) as gateway,
    ):
        client = await gateway.connect()
        answer = await client.ask(request_bytes)
        assert answer.status == 502
        assert b'"code":"upstream-failed"' in answer.body
        assert b"hello" not in answer.body
        assert (await client.ask(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
        assert backend.connections == (2 if request_bytes is REQUEST else 1)


@pytest.mark.parametrize("part", [b"X-T: " + b"a" * 1000 + b"\r\n", b"a" * 1000], ids=["many trailers", "one trailer"])
async def test_trailers_of_an_answer_without_end(part: bytes) -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.send(CHUNKED + b"5\r\nhello\r\n0\r\n" + (b"" if part.startswith(b"X") else b"X: "))
        await asyncio.sleep(0.05)
        for _ in range(1000):
            await caller.send(part)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(REQUEST)
        with pytest.raises(TruncatedError):
            await client.answer()


NO_BODY = {
    "204 with a length": b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
    "304 with a body": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
    "204 chunked": b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", NO_BODY)
async def test_bodies_where_none_may_be_are_dropped(case: str) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(NO_BODY[case])
        client = await gateway.connect()
        assert (await client.ask(REQUEST)).status in (204, 304)
        await asyncio.sleep(0.05)
        backend.script = backend.answer(OK)
        assert (await client.ask(REQUEST)).body == b"ok"
        assert backend.connections == 2


async def test_head_answered_with_a_body() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(LENGTH + b"hello")
        client = await gateway.connect()
        head = b"HEAD /api/orders/ HTTP/1.1\r\nHost: a\r\n\r\n"
        answer = await client.ask(head, "HEAD")
        assert (answer.status, answer.get("Content-Length")) == (200, "5")
        await asyncio.sleep(0.05)
        backend.script = backend.answer(OK)
        assert (await client.ask(REQUEST)).body == b"ok"


async def test_bytes_on_an_idle_connection_are_nobodys_answer() -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"

    async def script(caller: Caller) -> None:
        while await caller.request() is not None:
            await caller.send(OK)
            await asyncio.sleep(0.02)
            await caller.send(evil)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for _ in range(5):
            assert (await client.ask(REQUEST)).body == b"ok"
            await asyncio.sleep(0.06)
        assert backend.connections == 5


async def test_interim_answers_pass_to_those_who_understand_them() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\n"
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(early + early + OK)
        client = await gateway.connect()
        answer = await client.ask(REQUEST)
        assert [(interim.status, interim.headers) for interim in answer.interim] == [(103, [("Link", "</a>")])] * 2
        assert answer.body == b"ok"
        assert (await (await gateway.connect()).ask(REQUEST_10)).interim == []


async def test_fields_of_an_answer() -> None:
    fields = (
        b"Connection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\n"
        b"Upgrade: h2c\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Request-ID: theirs\r\nTrailer: X-Sum\r\n"
    )
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(
            b"HTTP/1.1 418 I'm a teapot\r\n" + fields + CHUNKED[17:] + b"2\r\nok\r\n0\r\nX-Sum: 1\r\nHost: x\r\n\r\n"
        )
        answer = await gateway.get(headers="TE: trailers\r\n")
        assert answer.start == "HTTP/1.1 418 I'm a teapot"
        assert answer.all("Set-Cookie") == ["a=1", "b=2"]
        for name in ("X-Hop", "Keep-Alive", "Proxy-Authenticate", "Upgrade"):
            assert answer.get(name) is None, name
        assert answer.get("X-Request-ID") == backend.requests[0].get("X-Request-ID")
        assert answer.trailers == [("X-Sum", "1")]


@pytest.mark.parametrize("ending", ["keep", "close"])
async def test_connections_are_used_again(ending: str) -> None:
    answer = OK if ending == "keep" else OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(answer)
        client = await gateway.connect()
        for request in (REQUEST, POST, REQUEST, POST):
            assert (await client.ask(request)).get("Connection") is None
        assert backend.connections == (1 if ending == "keep" else 4)


async def test_a_connection_that_is_closed_as_soon_as_it_is_accepted() -> None:
    async def script(caller: Caller) -> None:
        if backend.connections % 2:
            caller.reset()
        else:
            await backend.answer(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))(caller)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        for _ in range(5):
            assert (await gateway.get()).status == 200


async def test_a_post_is_not_sent_on_a_connection_that_has_been_idle_for_long() -> None:
    async def script(caller: Caller) -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(1.2):  # longer than the gateway trusts an idle connection
                    request = await caller.request()
                if request is None:
                    return
                backend.requests.append(request)
                await caller.send(OK)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        assert (await client.ask(REQUEST)).status == 200
        await asyncio.sleep(1.15)
        for _ in range(3):
            assert (await client.ask(POST)).status == 200
        assert len(backend.requests) == 4


async def test_what_connection_names_ends_here_in_interim_answers_and_switches_too() -> None:
    fields = b"Connection: Upgrade, X-Hop\r\nUpgrade: echo\r\nX-Hop: 1\r\nX-Stays: 1\r\n\r\n"

    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.send(b"HTTP/1.1 103 Early Hints\r\n" + fields)
        await caller.send(b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"bytes")

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        answer = await client.ask(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"))
        assert answer.status == 101
        assert [interim.headers for interim in answer.interim] == [[("X-Stays", "1")]]
        assert (answer.get("X-Hop"), answer.get("X-Stays")) == (None, "1")
        assert (answer.get("Connection"), answer.get("Upgrade")) == ("Upgrade", "echo")
        assert await client.everything() == b"bytes"


GMT = "%a, %d %b %Y %H:%M:%S GMT"


@pytest.mark.parametrize("named_away", [False, True])
async def test_an_answer_without_a_date_gets_that_of_its_arrival(
    monkeypatch: pytest.MonkeyPatch, named_away: bool
) -> None:
    """RFC 9110 section 6.6.1; also when the same head comes again later."""
    own = b"Connection: date\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n" if named_away else b""
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(OK.replace(b"\r\n", b"\r\n" + own, 1))
        client = await gateway.connect()
        for _ in range(2):
            before = datetime.now(UTC)
            date = datetime.strptime((await client.ask(REQUEST)).get("Date") or "", GMT).replace(tzinfo=UTC)
            assert before.replace(microsecond=0) <= date <= datetime.now(UTC)
        monkeypatch.setattr(time, "time", lambda: 1e9)
        for _ in range(2):
            assert (await client.ask(REQUEST)).get("Date") == "Sun, 09 Sep 2001 01:46:40 GMT"
        assert backend.connections == 1


async def test_the_date_of_an_instance_is_kept() -> None:
    date = "Thu, 01 Jan 1970 00:00:00 GMT"
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(OK.replace(b"\r\n", f"\r\ndate: {date}\r\n".encode(), 1))
        client = await gateway.connect()
        assert [(await client.ask(REQUEST)).get("Date") for _ in range(3)] == [date] * 3


@pytest.mark.parametrize("status", [b"200 OK", b"503 Service Unavailable"])
async def test_an_idle_connection_keeps_nothing_of_a_large_answer(status: bytes) -> None:
    field = b"X-Large: " + b"a" * 50_000 + b"\r\n"
    head = (
        b"HTTP/1.1 "
        + status
        + b"\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
        + field
        + b"Content-Length: 150000\r\n\r\n"
    )
    async with Backend() as backend, running_gateway(backend, GATEWAY_RETRY_COUNT=0) as gateway:
        backend.script = backend.answer(head + bytes(150_000))
        assert len((await gateway.get()).body) == 150_000
        await gateway.settled()
        (upstream,) = gateway.proxy.upstreams()
        (connection,) = upstream.idle
        held, depth = list(gc.get_referents(connection)), 3
        for _ in range(depth):
            held += [part for value in held if isinstance(value, tuple | list) for part in value]
        assert sum(len(value) for value in held if isinstance(value, bytes)) < 16_384

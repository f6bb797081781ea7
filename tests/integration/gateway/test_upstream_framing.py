"""Where an answer ends (RFC 9112 sections 4, 6, 7): whole, or a 502, or visibly cut off, and never mixed with another.

The second request of every case goes out behind the first one: whatever the instance said too much is not its answer.
"""

import asyncio

import pytest
from tests.integration.gateway.harness import OK, REQUEST, Backend, Caller, TruncatedError, running_gateway

from toska_mesh.gateway.upstream import MAX_FIELDS

LINE = b"HTTP/1.1 200 OK\r\n"
LENGTH = LINE + b"Content-Length: 5\r\n\r\n"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
EVIL = b"HTTP/1.1 200 OK\r\nX-Evil: 1\r\nContent-Length: 4\r\n\r\nevil"
TAIL = b"\r\nContent-Length: 5\r\n\r\nhello"


def fields(*lines: bytes, body: bytes = b"hello") -> bytes:
    return LINE + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


NO_ANSWER: dict[str, bytes] = {
    # status lines (section 4)
    "no version": b"200 OK" + TAIL,
    "HTTP alone": b"HTTP 200 OK" + TAIL,
    "HTTP/0.9": b"HTTP/0.9 200 OK" + TAIL,
    "HTTP/1.2": b"HTTP/1.2 200 OK" + TAIL,
    "HTTP/2.0": b"HTTP/2.0 200 OK" + TAIL,
    "HTTP/3.0": b"HTTP/3.0 200 OK" + TAIL,
    "lower case": b"http/1.1 200 OK" + TAIL,
    "RTSP/1.0": b"RTSP/1.0 200 OK" + TAIL,
    "ICE/1.0": b"ICE/1.0 200 OK" + TAIL,
    "HTTP/2 settings": b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "a request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "empty line first": b"\r\n" + LENGTH + b"hello",
    "status 99": b"HTTP/1.1 99 OK" + TAIL,
    "status 099": b"HTTP/1.1 099 OK" + TAIL,
    "status 000": b"HTTP/1.1 000 OK" + TAIL,
    "status 600": b"HTTP/1.1 600 OK" + TAIL,
    "status 999": b"HTTP/1.1 999 OK" + TAIL,
    "status 1000": b"HTTP/1.1 1000 OK" + TAIL,
    "status below zero": b"HTTP/1.1 -200 OK" + TAIL,
    "status with a sign": b"HTTP/1.1 +200 OK" + TAIL,
    "status of letters": b"HTTP/1.1 abc OK" + TAIL,
    "status with a letter": b"HTTP/1.1 2a0 OK" + TAIL,
    "no status": b"HTTP/1.1 OK" + TAIL,
    "tab before the status": b"HTTP/1.1\t200 OK" + TAIL,
    "two spaces before the status": b"HTTP/1.1  200 OK" + TAIL,
    "bare CR in the reason": b"HTTP/1.1 200 O\rX-Evil: 1" + TAIL,
    "bare LF in the reason": b"HTTP/1.1 200 O\nX-Evil: 1" + TAIL,
    # lengths (section 6.3)
    "length and chunked": fields(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=END),
    "chunked and length": fields(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=END),
    "differing lengths": fields(b"Content-Length: 5", b"Content-Length: 4"),
    "same length twice": fields(b"Content-Length: 5", b"Content-Length: 5"),
    "list of lengths": fields(b"Content-Length: 5, 5"),
    "length with plus": fields(b"Content-Length: +5"),
    "length with minus": fields(b"Content-Length: -5"),
    "length in hexadecimal": fields(b"Content-Length: 0x5"),
    "length of letters": fields(b"Content-Length: five"),
    "length empty": fields(b"Content-Length:"),
    "length overflowing": fields(b"Content-Length: 18446744073709551621"),
    # codings
    "unknown coding": fields(b"Transfer-Encoding: gzip"),
    "coding before chunked": fields(b"Transfer-Encoding: gzip, chunked", body=END),
    "coding behind chunked": fields(b"Transfer-Encoding: chunked, gzip", body=END),
    "identity": fields(b"Transfer-Encoding: identity"),
    "empty coding": fields(b"Transfer-Encoding:"),
    "chunked twice": fields(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=END),
    "chunked twice in one": fields(b"Transfer-Encoding: chunked, chunked", body=END),
    "chunked and white space": fields(b"Transfer-Encoding: chunked \t", body=b"5\r\nhello\r\n" + END),
    "vertical tab before chunked": fields(b"Transfer-Encoding:\x0bchunked", body=END),
    "chunked in HTTP/1.0": CHUNKED.replace(b"/1.1", b"/1.0") + b"5\r\nhello\r\n" + END,
    # field lines (section 5)
    "folded": fields(b"X-A: 1", b" 2", b"Content-Length: 5"),
    "folded by a tab": fields(b"X-A: 1", b"\t2", b"Content-Length: 5"),
    "space before a colon": fields(b"Content-Length : 5"),
    "space before the first name": fields(b" X-A: 1", b"Content-Length: 5"),
    "no name": fields(b": 1", b"Content-Length: 5"),
    "no colon": fields(b"X-A", b"Content-Length: 5"),
    "null in a name": fields(b"X\x00A: 1", b"Content-Length: 5"),
    "null in a value": fields(b"X-A: \x00", b"Content-Length: 5"),
    "bare CR in a value": fields(b"X-A: 1\rX-Evil: 1", b"Content-Length: 5"),
    "bare LF in a value": fields(b"X-A: 1\nX-Evil: 1", b"Content-Length: 5"),
    "every line ended by LF": LENGTH.replace(b"\r\n", b"\n") + b"hello",
    # too much (one field more than the limit; a head larger than the limit; one field without end)
    "too many fields": fields(*[b"X-A: 1"] * MAX_FIELDS, b"Content-Length: 5"),
    "tiny fields without end": LINE + b"a:\r\n" * 100_000,
    "head too large": LINE + b"X-A: %b\r\n" % (b"a" * 1000) * 400,
    # 1xx (RFC 9110 section 15.2)
    "interim answers without end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100,
    "100 with a body": b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nhello" + LENGTH + b"hello",
    "101 unasked": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" + EVIL,
    "101 without Upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + EVIL,
    "101 with a length": b"HTTP/1.1 101 Switching Protocols\r\nContent-Length: 5\r\n\r\nhello",
}
"""Nothing of it reaches the client but a 502."""


@pytest.mark.parametrize("case", NO_ANSWER, ids=lambda case: case.replace(" ", "-"))
async def test_what_is_no_answer_is_a_502(case: str) -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.send(NO_ANSWER[case])
        await caller.wait_closed()

    async with (
        Backend(script) as backend,
        running_gateway(backend, GATEWAY_RETRY_COUNT=0, GATEWAY_BREAKER_FAILURE_THRESHOLD=100) as gateway,
    ):
        client = await gateway.connect()
        answer = await client.ask(REQUEST)
        assert answer.status == 502
        assert b'"code":"upstream-failed"' in answer.body
        assert answer.get("X-Evil") is None
        backend.script = backend.answer(OK)
        assert (await client.ask(REQUEST)).body == b"ok"
        assert backend.connections == 2


CUT_OFF: dict[str, bytes] = {
    "chunk size with 0x": CHUNKED + b"0x5\r\nhello\r\n" + END,
    "chunk size with plus": CHUNKED + b"+5\r\nhello\r\n" + END,
    "chunk size with minus": CHUNKED + b"-5\r\nhello\r\n" + END,
    "chunk size with a space": CHUNKED + b"5 \r\nhello\r\n" + END,
    "chunk size of letters": CHUNKED + b"five\r\nhello\r\n" + END,
    "chunk size empty": CHUNKED + b"\r\nhello\r\n" + END,
    "chunk size overflowing": CHUNKED + b"10000000000000005\r\nhello\r\n" + END,
    "chunk line ended by LF": CHUNKED + b"5\nhello\r\n" + END,
    "chunk data ended by LF": CHUNKED + b"5\r\nhello\n" + END,
    "chunk longer than its size": CHUNKED + b"5\r\nhello!\r\n" + END,
    "chunk shorter than its size": CHUNKED + b"6\r\nhello\r\n" + END,
    "line feed in an extension": CHUNKED + b"5;a\nb\r\nhello\r\n" + END,
    "CRLF in a quoted extension": CHUNKED + b'5;a="\r\n"\r\nhello\r\n' + END,
    "null in an extension": CHUNKED + b"5;\x00\r\nhello\r\n" + END,
    "extension without end": CHUNKED + b"5;" + b"a" * 600_000,
    "length among the trailers": CHUNKED + b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    "folded trailer": CHUNKED + b"5\r\nhello\r\n0\r\nX: 1\r\n 2\r\n\r\n",
    "trailer with a null": CHUNKED + b"5\r\nhello\r\n0\r\nX: \x00\r\n\r\n",
    "too many trailers": CHUNKED + b"5\r\nhello\r\n0\r\n" + b"X: 1\r\n" * (MAX_FIELDS + 1) + b"\r\n",
    "answer in the place of trailers": CHUNKED + b"5\r\nhello\r\n0\r\n" + EVIL,
}
"""The head was well, so it may have been passed on: then the answer ends without its end."""


@pytest.mark.parametrize("case", CUT_OFF, ids=lambda case: case.replace(" ", "-"))
async def test_an_answer_that_goes_wrong_is_cut_off(case: str) -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        head = CUT_OFF[case].index(b"\r\n\r\n") + 4
        await caller.send(CUT_OFF[case][:head])
        await asyncio.sleep(0.02)
        await caller.send(CUT_OFF[case][head:])
        await caller.wait_closed()

    async with (
        Backend(script) as backend,
        running_gateway(backend, GATEWAY_RETRY_COUNT=0, GATEWAY_BREAKER_FAILURE_THRESHOLD=100) as gateway,
    ):
        client = await gateway.connect()
        client.send(REQUEST)
        with pytest.raises(TruncatedError):
            await client.answer()
        assert await client.is_closed()
        backend.script = backend.answer(OK)
        assert (await gateway.get()).body == b"ok"
        assert backend.connections == 2


TOO_MUCH: dict[str, tuple[bytes, bytes]] = {
    "a letter behind a length": (LENGTH + b"hello", b"X"),
    "an H behind a length": (LENGTH + b"hello", b"H"),
    "an answer behind a length": (LENGTH + b"hello", EVIL),
    "half an answer behind a length": (LENGTH + b"hello", EVIL[:30]),
    "an answer behind length zero": (fields(b"Content-Length: 0", body=b""), EVIL),
    "an answer behind chunks": (CHUNKED + b"5\r\nhello\r\n" + END, EVIL),
    "half an answer behind chunks": (CHUNKED + b"5\r\nhello\r\n" + END, b"HTTP/1.1 2"),
    "an interim answer behind chunks": (CHUNKED + END, b"HTTP/1.1 100 Continue\r\n\r\n"),
    "an answer behind 204": (b"HTTP/1.1 204 No Content\r\n\r\n", EVIL),
    "an answer behind 204 with a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 59\r\n\r\n", EVIL),
    "chunks behind 204": (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n" + END),
    "an answer behind 304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", EVIL),
    "an answer behind 304 with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 59\r\n\r\n", EVIL),
    "an answer behind close": (fields(b"Connection: close", b"Content-Length: 5"), EVIL),
    "an answer behind HTTP/1.0": (LENGTH.replace(b"/1.1", b"/1.0") + b"hello", EVIL),
}
"""A whole answer, and what the instance says behind it."""


@pytest.mark.parametrize("together", [True, False], ids=["in-one-read", "later"])
@pytest.mark.parametrize("case", TOO_MUCH, ids=lambda case: case.replace(" ", "-"))
async def test_what_comes_behind_an_answer_is_nobodys(case: str, together: bool) -> None:
    answer_bytes, surplus = TOO_MUCH[case]

    async def script(caller: Caller) -> None:
        await caller.request()
        if together:
            await caller.send(answer_bytes + surplus)
        else:
            await caller.send(answer_bytes)
            await asyncio.sleep(0.02)
            await caller.send(surplus)
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_RETRY_COUNT=0) as gateway:
        client = await gateway.connect()
        answer = await client.ask(REQUEST)
        assert answer.status in (200, 204, 304)
        assert answer.body in (b"hello", b"")
        await asyncio.sleep(0.06)
        backend.script = backend.answer(OK)
        second = await client.ask(REQUEST)
        assert (second.status, second.body, second.get("X-Evil")) == (200, b"ok", None)
        assert backend.connections == 2


@pytest.mark.parametrize("head", [b"Content-Length: 59\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_a_body_for_head_is_nobodys(head: bytes) -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_RETRY_COUNT=0) as gateway:
        backend.script = backend.answer(LINE + head + b"\r\n" + EVIL)
        client = await gateway.connect()
        assert (await client.ask(b"HEAD /api/orders/ HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD")).status == 200
        await asyncio.sleep(0.02)
        backend.script = backend.answer(OK)
        assert (await client.ask(REQUEST)).body == b"ok"
        assert backend.connections == 2


EARLY_END = {
    "before the head": b"",
    "in the status line": b"HTTP/1.1 20",
    "in a field": LINE + b"Content-Le",
    "before the empty line": LENGTH[:-2],
    "in the empty line": LENGTH[:-1],
    "behind an interim answer": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "in the head behind an interim answer": b"HTTP/1.1 103 Early Hints\r\n\r\n" + LINE,
}


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("case", EARLY_END, ids=lambda case: case.replace(" ", "-"))
async def test_an_end_before_the_body_is_a_502(case: str, how: str) -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        await caller.send(EARLY_END[case])
        await asyncio.sleep(0.02)
        if how == "reset":
            caller.reset()

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_RETRY_COUNT=0) as gateway:
        client = await gateway.connect()
        assert (await client.ask(REQUEST)).status == 502
        backend.script = backend.answer(OK)
        assert (await client.ask(REQUEST)).body == b"ok"


@pytest.mark.parametrize("reason", [b"O\x00K", b"O\x1bK", b"\x7f"])
async def test_control_characters_of_a_reason_do_not_pass(reason: bytes) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(b"HTTP/1.1 200 " + reason + TAIL)
        answer = await gateway.get()
        assert (answer.start, answer.body) == ("HTTP/1.1 200 OK", b"hello")


async def test_as_many_fields_and_trailers_as_the_limit_says() -> None:
    lines = [b"X-A: 1"] * (MAX_FIELDS - 1)
    trailers = b"".join(line + b"\r\n" for line in lines)
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(
            fields(b"Transfer-Encoding: chunked", *lines, body=b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n")
        )
        client = await gateway.connect(limit=2**20)
        answer = await client.ask(REQUEST)
        assert (answer.body, len(answer.all("X-A")), len(answer.trailers)) == (b"hello", len(lines), len(lines))


async def test_trailers_that_decide_something_do_not_pass() -> None:
    trailers = b"X-Sum: 1\r\nSet-Cookie: a=b\r\nContent-Type: text/html\r\nConnection: x\r\nLocation: /\r\n"
    async with Backend() as backend, running_gateway(backend) as gateway:
        backend.script = backend.answer(CHUNKED + b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n")
        client = await gateway.connect()
        assert (await client.ask(REQUEST)).trailers == [("X-Sum", "1")]


async def test_an_answer_before_the_request_is_complete_ends_both_connections() -> None:
    async def script(caller: Caller) -> None:
        await caller.head()
        await caller.send(LENGTH + b"hello")
        await caller.wait_closed()

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_RETRY_COUNT=0) as gateway:
        client = await gateway.connect()
        client.send(b"POST /api/orders/ HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
        answer = await client.answer()
        assert (answer.status, answer.body, answer.get("Connection")) == (200, b"hello", "close")
        # What follows is the rest of the body, however much it looks like a request.
        client.send(REQUEST)
        assert await client.is_closed()
        backend.script = backend.answer(OK)
        assert (await gateway.get()).body == b"ok"
        assert backend.connections == 2

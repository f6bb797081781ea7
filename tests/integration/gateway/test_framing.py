"""Requests that are malformed or ambiguous (RFC 9112): refused, or passed on as exactly the one request they are.

Whatever a client sends, the instance sees no request that was not sent as one.
"""

import asyncio
import contextlib

import pytest
from tests.integration.gateway.harness import OK, REQUEST, Backend, Caller, TruncatedError, running_gateway

from toska_mesh.resilience import State

HOST = b"Host: shop.example\r\n"
POST = b"POST /api/orders/case HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /api/orders/smuggled HTTP/1.1\r\nHost: shop.example\r\n\r\n"
END = b"0\r\n\r\n"


def get(*fields: bytes) -> bytes:
    return b"GET /api/orders/case HTTP/1.1\r\n" + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


REFUSED: dict[str, bytes] = {
    # both lengths, several lengths (RFC 9112 section 6.3)
    "length and chunked": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n" + END + SMUGGLED,
    "chunked and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n" + END + SMUGGLED,
    "differing lengths": POST + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabc" + SMUGGLED,
    "same length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED,
    "list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc" + SMUGGLED,
    "signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "negative length": POST + b"Content-Length: -3\r\n\r\nabc",
    "hexadecimal length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "length with spaces inside": POST + b"Content-Length: 1 0\r\n\r\n0123456789",
    "empty length": POST + b"Content-Length:\r\n\r\n",
    "overflowing length": POST + b"Content-Length: 18446744073709551619\r\n\r\nabc",
    "length with underscore": POST + b"Content-Length: 1_0\r\n\r\n0123456789",
    # transfer codings (sections 6.1 and 7)
    "chunked twice in one": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + END,
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + END,
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + END,
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + END,
    "coding in quotes": POST + b'Transfer-Encoding: "chunked"\r\n\r\n' + END,
    "vertical tab before chunked": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + END,
    "empty coding and length": POST + b"Transfer-Encoding:\r\nContent-Length: 3\r\n\r\nabc",
    "coding name with space": POST + b"Transfer-Encoding : chunked\r\nContent-Length: 3\r\n\r\n" + END,
    "folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 3\r\n\r\n" + END,
    "null in coding": POST + b"Transfer-Encoding: chunked\x00\r\n\r\n" + END,
    "chunked in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + END + SMUGGLED,
    # chunks (section 7.1)
    "chunk size with prefix": CHUNKED + b"0x3\r\nabc\r\n" + END,
    "chunk size signed": CHUNKED + b"+3\r\nabc\r\n" + END,
    "chunk size negative": CHUNKED + b"-3\r\nabc\r\n" + END,
    "chunk size overflowing": CHUNKED + b"10000000000000003\r\nabc\r\n" + END,
    "chunk size empty": CHUNKED + b"\r\nabc\r\n" + END,
    "chunk size with a space": CHUNKED + b"3 \r\nabc\r\n" + END,
    "chunk size no number": CHUNKED + b"three\r\nabc\r\n" + END,
    "chunk line ended by LF": CHUNKED + b"3\nabc\r\n" + END,
    "chunk data longer than its size": CHUNKED + b"3\r\nabcd\r\n" + END + SMUGGLED,
    "chunk data ended by LF": CHUNKED + b"3\r\nabc\n" + END,
    "chunk data not ended": CHUNKED + b"3\r\nabcX0\r\n\r\n" + SMUGGLED,
    "line feed in a chunk extension": CHUNKED + b"3;a\nb\r\nabc\r\n" + END,
    "line feed in a quoted extension": CHUNKED + b'3;a="\n"\r\nabc\r\n' + END,
    "length among the trailers": CHUNKED + b"3\r\nabc\r\n0\r\nContent-Length: 9\r\n\r\n" + SMUGGLED,
    "coding among the trailers": CHUNKED + b"3\r\nabc\r\n0\r\nTransfer-Encoding : x\r\n\r\n",
    "trailer ended by LF": CHUNKED + b"3\r\nabc\r\n0\r\nX: 1\n\r\n",
    # field lines (section 5)
    "space before a colon": get(b"X-A : 1"),
    "tab before a colon": get(b"X-A\t: 1"),
    "space before the first name": b"GET /api/orders/case HTTP/1.1\r\n Host: a\r\n\r\n",
    "folded field": get(b"X-A: 1", b" 2"),
    "folded by a tab": get(b"X-A: 1", b"\t2"),
    "empty name": get(b": 1"),
    "line without a colon": get(b"X-A"),
    "name with a bad character": get(b"X(A): 1"),
    "name with 8 bits": get(b"X-\xe4: 1"),
    "null in a name": get(b"X\x00A: 1"),
    "null in a value": get(b"X-A: 1\x002"),
    "bare CR in a value": get(b"X-A: 1\rX-B: 2"),
    "bare CR before CRLF": get(b"X-A: 1\r"),
    "bare LF ends a field": b"GET /api/orders/case HTTP/1.1\r\nX-A: 1\nX-B: 2\r\n" + HOST + b"\r\n",
    "bare LF everywhere": REQUEST.replace(b"\r\n", b"\n"),
    "bare CR everywhere": REQUEST.replace(b"\r\n", b"\r"),
    # Host (section 3.2)
    "no host": b"GET /api/orders/case HTTP/1.1\r\n\r\n",
    "two hosts": get(b"Host: other.example"),
    "two equal hosts": get(b"Host: shop.example"),
    "host with a space": b"GET /api/orders/case HTTP/1.1\r\nHost: a b\r\n\r\n",
    "host with a path": b"GET /api/orders/case HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "host with user": b"GET /api/orders/case HTTP/1.1\r\nHost: me@a\r\n\r\n",
    "host list": b"GET /api/orders/case HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "host with a bad port": b"GET /api/orders/case HTTP/1.1\r\nHost: a:80x\r\n\r\n",
    "host with 8 bits": b"GET /api/orders/case HTTP/1.1\r\nHost: \xff\r\n\r\n",
    "two hosts in HTTP/1.0": b"GET /api/orders/case HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    # request line (section 3)
    "HTTP/0.9": b"GET /api/orders/case\r\n\r\n",
    "HTTP/0.9 with a version": b"GET /api/orders/case HTTP/0.9\r\n\r\n",
    "HTTP/1.2": REQUEST.replace(b"/1.1", b"/1.2"),
    "HTTP/2.0": REQUEST.replace(b"/1.1", b"/2.0"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "version in lower case": REQUEST.replace(b"HTTP", b"http"),
    "version with spaces": REQUEST.replace(b"HTTP/1.1", b"HTTP/1.1 "),
    "unknown method": REQUEST.replace(b"GET", b"FROB"),
    "method in lower case": REQUEST.replace(b"GET", b"get"),
    "CONNECT": b"CONNECT shop.example:443 HTTP/1.1\r\n" + HOST + b"\r\n" + SMUGGLED,
    "target with a fragment": REQUEST.replace(b"/orders/", b"/orders/#x"),
    "target with 8 bits": REQUEST.replace(b"/orders/", b"/orders/\xff"),
    "target with a null": REQUEST.replace(b"/orders/", b"/orders/\x00"),
    "target with a space": REQUEST.replace(b"/orders/", b"/orders/a b"),
    "target with a backslash": REQUEST.replace(b"/orders/", b"/orders\\..\\x"),
    "target out of the root": REQUEST.replace(b"/api/orders/", b"/../api/orders/"),
    "target out of the root, encoded": REQUEST.replace(b"/api/orders/", b"/%2e%2E/api/orders/"),
    "asterisk for GET": REQUEST.replace(b"/api/orders/", b"*"),
    "another scheme": REQUEST.replace(b"/api/orders/", b"ftp://a/api/orders/"),
    "TLS to a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "garbage": b"\x00\x01\x02\x03\r\n\r\n",
    # switching protocols with a body: the parser must not lose count
    "chunked with upgrade": POST + b"Connection: upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n" + SMUGGLED,
    "chunked with empty upgrade": POST + b"Connection: upgrade\r\nUpgrade:\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n" + SMUGGLED,
}
"""Answered with one refusal, and closed. The instance sees nothing that it could answer."""

REFUSALS = {400, 405, 431, 501, 505}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-"))
async def test_refused(case: str) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        answer = await client.ask(REFUSED[case])
        assert answer.status in REFUSALS, answer
        assert answer.get("Connection") == "close"
        assert answer.get("Content-Type") == "application/problem+json"
        assert await client.is_closed()
        assert not backend.requests
        assert gateway.breakers == {State.CLOSED}
    assert gateway.recorded == 1


PASSED: dict[str, tuple[bytes, list[tuple[str, bytes]]]] = {
    "leading empty lines": (b"\r\n\r\n" + get(), [("GET /case", b"")]),
    "HTTP/1.0 without host": (b"GET /api/orders/case HTTP/1.0\r\n\r\n", [("GET /case", b"")]),
    "empty host": (b"GET /api/orders/case HTTP/1.1\r\nHost:\r\n\r\n", [("GET /case", b"")]),
    "host with port": (b"GET /api/orders/case HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", [("GET /case", b"")]),
    "absolute form": (
        b"GET http://other.example/api/orders/case HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        [("GET /case", b"")],
    ),
    "value with 8 bits": (get(b"X-A: \xe4"), [("GET /case", b"")]),
    "empty value": (get(b"X-A:"), [("GET /case", b"")]),
    "tab around a value": (get(b"X-A:\t1\t"), [("GET /case", b"")]),
    "length zero": (POST + b"Content-Length: 0\r\n\r\n", [("POST /case", b"")]),
    "length with leading zeros": (POST + b"Content-Length: 003\r\n\r\nabc", [("POST /case", b"abc")]),
    "coding in capitals": (POST + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n3\r\nabc\r\n" + END, [("POST /case", b"abc")]),
    "chunk extension": (CHUNKED + b'3;a=b;c="d"\r\nabc\r\n' + END, [("POST /case", b"abc")]),
    "chunk size with zeros": (CHUNKED + b"0003\r\nabc\r\n000\r\n\r\n", [("POST /case", b"abc")]),
    "GET with a body": (get(b"Content-Length: 3") + b"abc", [("GET /case", b"abc")]),
    "body that looks like a request": (
        POST + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        [("POST /case", SMUGGLED)],
    ),
    "two in one": (get() + get(), [("GET /case", b""), ("GET /case", b"")]),
    "three with bodies": (
        POST + b"Content-Length: 3\r\n\r\nabc" + CHUNKED + b"2\r\nde\r\n" + END + get(),
        [("POST /case", b"abc"), ("POST /case", b"de"), ("GET /case", b"")],
    ),
    "body and upgrade to h2c": (
        POST + b"Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\nContent-Length: 3\r\n"
        b"\r\nabc" + get(),
        [("POST /case", b"abc"), ("GET /case", b"")],
    ),
    "body and upgrade": (
        POST + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc" + get(),
        [("POST /case", b"abc"), ("GET /case", b"")],
    ),
    "upgrade to h2c": (
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAM") + get(),
        [("GET /case", b""), ("GET /case", b"")],
    ),
    "upgrade that nobody wants": (
        get(b"Connection: Upgrade", b"Upgrade: websocket") + get(),
        [("GET /case", b""), ("GET /case", b"")],
    ),
    "upgrade in HTTP/1.0": (
        b"GET /api/orders/case HTTP/1.0\r\nConnection: upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n" + get(),
        [("GET /case", b""), ("GET /case", b"")],
    ),
    "after close nothing": (get(b"Connection: close") + SMUGGLED, [("GET /case", b"")]),
    "close wins over keep-alive": (
        get(b"Connection: close", b"Connection: keep-alive") + SMUGGLED,
        [("GET /case", b"")],
    ),
    "HTTP/1.0 closes": (b"GET /api/orders/case HTTP/1.0\r\n\r\n" + SMUGGLED, [("GET /case", b"")]),
}
"""Passed on, as these requests (start without version, body) and no others."""


@pytest.mark.parametrize("case", PASSED, ids=lambda case: case.replace(" ", "-"))
async def test_passed(case: str) -> None:
    sent, expected = PASSED[case]
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(sent)
        for _ in expected:
            assert (await client.answer()).body == b"ok"
        seen = [(request.start.removesuffix(" HTTP/1.1"), request.body) for request in backend.requests]
        assert seen == expected
        client.writer.write_eof()
        assert await client.is_closed()
        assert len(backend.requests) == len(expected)
        for request in backend.requests:
            assert request.get("Upgrade") is None or case == "upgrade that nobody wants"
            assert request.get("HTTP2-Settings") is None


SPLIT = (
    POST + b"Content-Length: 3\r\nX-A: 1\r\n\r\nabc",
    CHUNKED + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n",
    get(b"Connection: upgrade", b"Upgrade: h2c") + get(),
)


@pytest.mark.parametrize("whole", SPLIT, ids=["length", "chunked", "upgrade"])
async def test_split_at_every_byte(whole: bytes) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect(limit=2**20)
        answers = 2 if b"h2c" in whole else 1
        for position in range(1, len(whole)):
            client.send(whole[:position])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            client.send(whole[position:])
            for _ in range(answers):
                assert (await client.answer()).status == 200, position
        seen = {(request.start, request.body, tuple(request.trailers)) for request in backend.requests}
        assert len(seen) == 1, seen
        assert len(backend.requests) == answers * (len(whole) - 1)


async def test_one_byte_at_a_time() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for byte in SPLIT[1]:
            client.send(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0.001)
        assert (await client.answer()).status == 200
        (request,) = backend.requests
        assert request.body == b"abcde"
        assert request.trailers == [("X-Trailer", "1")]


async def test_trailers_about_framing_do_not_pass() -> None:
    trailers = b"X-Sum: 1\r\nHost: evil\r\nX-Forwarded-For: 1.1.1.1\r\nConnection: x\r\nAuthorization: Bearer x\r\n"
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(CHUNKED + b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n")
        assert backend.requests[0].trailers == [("X-Sum", "1")]


async def test_fields_of_the_connection_end_here() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(
            get(
                b"Connection: keep-alive, X-Hop, content-length, Host, close-not, x-forwarded-for, X-Request-ID",
                b"X-Hop: 1",
                b"Proxy-Connection: keep-alive",
                b"X-Stays: 1",
            )
        )
        (request,) = backend.requests
        assert request.get("X-Hop") is None
        assert request.get("Proxy-Connection") is None
        assert request.get("Connection") is None
        assert request.get("X-Stays") == "1"
        assert request.get("Host") == f"127.0.0.1:{backend.port}"
        assert request.get("X-Forwarded-For") == "127.0.0.1"
        assert request.get("X-Request-ID")


async def test_a_flood_of_malformed_requests_hurts_nobody_else() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        other = await gateway.connect()

        async def attack(data: bytes) -> None:
            client = await gateway.connect()
            client.send(data)
            assert (await client.answer()).status in REFUSALS
            client.reset()

        for _ in range(3):
            async with asyncio.TaskGroup() as attackers:
                for data in REFUSED.values():
                    attackers.create_task(attack(data))
            assert (await other.ask(REQUEST)).status == 200
        assert gateway.breakers == {State.CLOSED}
        assert gateway.in_flight == 0


@pytest.mark.parametrize(
    "stream",
    [b"GET /api/orders/ HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 4096, b"GET /" + b"a" * 4096, b"GET / HTTP/1.1\r\nX: 1"],
    ids=["value", "target", "fields"],
)
async def test_a_head_without_end_is_cut_at_the_limit(stream: bytes) -> None:
    more = b"\r\nX: 1" * 500 if stream.endswith(b"X: 1") else b"a" * 4096
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_HEADER_BYTES=8192) as gateway:
        client = await gateway.connect()
        client.send(stream)
        for _ in range(8):
            client.send(more)
        assert (await client.answer()).status == 431
        assert await client.is_closed()
    assert gateway.recorded == 1


@pytest.mark.parametrize("part", [b"a" * 4096, b"\r\nX-T: " + b"a" * 4096], ids=["one", "many"])
async def test_trailers_without_end_are_cut_at_the_limit(part: bytes) -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_HEADER_BYTES=8192) as gateway:
        client = await gateway.connect()
        client.send(CHUNKED + b"3\r\nabc\r\n0\r\nX-T: a")
        for _ in range(16):
            client.send(part)
            await asyncio.sleep(0.005)
        assert (await client.answer()).status == 431
        assert await client.is_closed()
        assert gateway.breakers == {State.CLOSED}


async def test_a_chunk_extension_without_end_is_cut_at_the_limit() -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_HEADER_BYTES=8192) as gateway:
        client = await gateway.connect()
        client.send(CHUNKED + b"3;")
        for _ in range(8):
            client.send(b"a" * 4096)
            await asyncio.sleep(0.01)
        assert (await client.answer()).status == 431
        assert gateway.breakers == {State.CLOSED}


async def test_requests_in_one_packet_are_answered_in_order() -> None:
    async def script(caller: Caller) -> None:
        while (request := await caller.request()) is not None:
            await asyncio.sleep(0.02 if request.target == "/0" else 0)
            body = request.target.encode()
            await caller.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        paths = [f"/api/orders/{number}" if number % 3 else f"/api/none/{number}" for number in range(100)]
        paths[0] = "/api/orders/0"
        client.send("".join(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n" for path in paths).encode())
        for path in paths:
            answer = await client.answer()
            if path.startswith("/api/orders"):
                assert answer.body.decode() == path.removeprefix("/api/orders")
            else:
                assert answer.status == 404


async def test_good_requests_before_a_malformed_one_are_answered_first() -> None:
    async def script(caller: Caller) -> None:
        while await caller.request() is not None:
            await asyncio.sleep(0.02)
            await caller.send(OK)

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        client.send(get() + get() + b"NONSENSE\r\n\r\n")
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 400]
        assert await client.is_closed()


async def test_an_upload_too_large_takes_its_turn() -> None:
    async def script(caller: Caller) -> None:
        while await caller.request() is not None:
            await asyncio.sleep(0.02)
            await caller.send(OK)

    async with Backend(script) as backend, running_gateway(backend, GATEWAY_MAX_REQUEST_BYTES=10) as gateway:
        client = await gateway.connect()
        client.send(get() + CHUNKED + b"20\r\n" + b"a" * 32 + b"\r\n" + END)
        assert [(await client.answer()).status for _ in range(2)] == [200, 413]
        assert await client.is_closed()


@pytest.mark.parametrize("path", ["/health", "/api/none/"])
async def test_many_pipelined_requests_are_bounded(path: str) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        one = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        client.send(REQUEST + one * 2000)
        answers = []
        with contextlib.suppress(TruncatedError):
            while len(answers) <= 2000:
                answers.append(await client.answer())
        assert 100 <= len(answers) < 2000
        assert answers[-1].get("Connection") == "close"


async def test_a_client_that_does_not_read_is_not_answered_further() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        (connection,) = gateway.proxy.clients
        request = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        for _ in range(200):
            client.send(request * 50)
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)
        assert connection.transport.get_write_buffer_size() < 256 * 1024
        client.reset()

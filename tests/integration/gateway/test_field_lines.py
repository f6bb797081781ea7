"""Field lines of requests and their number (RFC 9112 section 5), Host, Connection (RFC 9110 section 7.6.1)."""

import pytest
from tests.integration.gateway.harness import REQUEST, Backend, running_gateway
from tests.integration.gateway.raw import (
    CHUNKED,
    GET_LINE,
    SMUGGLED,
    Case,
    Pace,
    get,
    names,
    passed,
    play,
    refused,
    send,
)

from toska_mesh.resilience import State


def host(*values: bytes) -> bytes:
    """A request with these Host fields, to the letter behind the colon."""
    return GET_LINE + b"".join(b"Host:" + value + b"\r\n" for value in values) + b"\r\n"


FIELDS: dict[str, Case] = {
    # names are tokens, and nothing stands between them and the colon (section 5.1)
    "space before a colon": refused(get(b"X-A : 1") + SMUGGLED),
    "tab before a colon": refused(get(b"X-A\t: 1") + SMUGGLED),
    "null before a colon": refused(get(b"X-A\x00: 1")),
    "carriage return before a colon": refused(get(b"X-A\r: 1")),
    "vertical tab before a colon": refused(get(b"X-A\x0b: 1")),
    "space in a name": refused(get(b"X A: 1")),
    "space before the first name": refused(GET_LINE + b" Host: a\r\n\r\n"),
    "tab before the first name": refused(GET_LINE + b"\tHost: a\r\n\r\n"),
    "empty name": refused(get(b": 1")),
    "name of white space": refused(get(b" : 1")),
    "line without a colon": refused(get(b"X-A")),
    "line of one letter": refused(get(b"X")),
    "first line again": refused(get(b"GET /api/orders/case HTTP/1.1")),
    "parentheses in a name": refused(get(b"X(A): 1")),
    "slash in a name": refused(get(b"X/A: 1")),
    "at in a name": refused(get(b"X@A: 1")),
    "quotes around a name": refused(get(b'"X-A": 1')),
    "comma in a name": refused(get(b"X,A: 1")),
    "equals in a name": refused(get(b"X=A: 1")),
    "braces in a name": refused(get(b"{X}: 1")),
    "brackets in a name": refused(get(b"[X]: 1")),
    "backslash in a name": refused(get(b"X\\A: 1")),
    "8 bits in a name": refused(get(b"X-\xe4: 1")),
    "null in a name": refused(get(b"X\x00A: 1")),
    "control character in a name": refused(get(b"X\x1bA: 1")),
    "delete in a name": refused(get(b"X\x7fA: 1")),
    "pseudo header of HTTP/2": refused(get(b":authority: evil.example")),
    # values have no control characters but tabs (section 5.5 of RFC 9110)
    "null in a value": refused(get(b"X-A: 1\x002") + SMUGGLED),
    "null for a value": refused(get(b"X-A:\x00")),
    "escape in a value": refused(get(b"X-A: \x1b[2J")),
    "backspace in a value": refused(get(b"X-A: 1\x08")),
    "delete in a value": refused(get(b"X-A: 1\x7f")),
    "vertical tab in a value": refused(get(b"X-A: 1\x0b2")),
    # line ends (section 2.2): a bare CR must not end a line, and a bare LF does not here
    "bare CR in a value": refused(get(b"X-A: 1\rX-B: 2")),
    "bare CR before CRLF": refused(get(b"X-A: 1\r")),
    "bare CR before a request": refused(get(b"X-A: 1\r\r" + SMUGGLED)),
    "bare LF ends a field": refused(GET_LINE + b"X-A: 1\nX-B: 2\r\n" + b"Host: a\r\n\r\n"),
    "bare LF before a request": refused(get(b"X-A: 1\n\n" + SMUGGLED)),
    "LF CR ends a field": refused(get(b"X-A: 1\n\rX-B: 2")),
    # no line continues another (section 5.2: a server rejects it or replaces it)
    "folded": refused(get(b"X-A: 1", b" 2")),
    "folded by a tab": refused(get(b"X-A: 1", b"\t2")),
    "folded by nothing but space": refused(get(b"X-A: 1", b"  ")),
    "folded after an empty value": refused(get(b"X-A:", b" 2")),
    "folded first line": refused(b"GET /api/orders/case\r\n HTTP/1.1\r\nHost: a\r\n\r\n"),
    "folded host": refused(GET_LINE + b"Host:\r\n a\r\n\r\n"),
    "folded field that looks like one of framing": refused(get(b"X-A: 1", b" Content-Length: 50") + SMUGGLED),
    "folded over a field of framing": refused(get(b"Content-Length: 3", b" 4") + b"abc"),
    # what is well
    "value with 8 bits": passed(get(b"X-A: \xe4")),
    "empty value": passed(get(b"X-A:")),
    "value of white space": passed(get(b"X-A: \t ")),
    "tab around a value": passed(get(b"X-A:\t1\t")),
    "tab in a value": passed(get(b"X-A: 1\t2")),
    "colons in a value": passed(get(b"X-A::::")),
    "every sign that a name may have": passed(get(b"!#$%&'*+-.^_`|~0aZ: 1")),
    "same field often": passed(get(*[b"X-A: 1"] * 20)),
    "name of one letter": passed(get(b"X: 1")),
    "very long name": passed(get(b"X" * 2000 + b": 1"), is_long=True),
}

HOSTS: dict[str, Case] = {
    "none": refused(host()),
    "two": refused(host(b" shop.example", b" other.example")),
    "two that are equal": refused(host(b" shop.example", b" shop.example")),
    "two in HTTP/1.0": refused(host(b" a", b" b").replace(b"HTTP/1.1", b"HTTP/1.0")),
    "one and an empty one": refused(host(b" shop.example", b"")),
    "two spellings": refused(GET_LINE + b"Host: a\r\nhOST: b\r\n\r\n"),
    "space before the colon": refused(GET_LINE + b"Host : a\r\n\r\n"),
    "only with a leading space": refused(GET_LINE + b"X: 1\r\n Host: a\r\n\r\n"),
    "list": refused(host(b" a, b")),
    "list without a space": refused(host(b" a,b")),
    "space inside": refused(host(b" a b")),
    "tab inside": refused(host(b" a\tb")),
    "path": refused(host(b" a/b")),
    "URL": refused(host(b" http://a/")),
    "query": refused(host(b" a?b")),
    "fragment": refused(host(b" a#b")),
    "user": refused(host(b" me@a")),
    "user and password": refused(host(b" me:secret@a")),
    "backslash": refused(host(b" a\\b")),
    "quotes": refused(host(b' "a"')),
    "angle brackets": refused(host(b" <script>")),
    "8 bits": refused(host(b" \xff")),
    "null": refused(host(b" a\x00")),
    "null, encoded": refused(host(b" a%00")),
    "slash, encoded": refused(host(b" a%2fb")),
    "percent alone": refused(host(b" a%")),
    "port of letters": refused(host(b" a:80x")),
    "port with a sign": refused(host(b" a:+80")),
    "port below zero": refused(host(b" a:-1")),
    "port of many digits": refused(host(b" a:800000")),
    "two ports": refused(host(b" a:80:81")),
    "IPv6 without brackets": refused(host(b" ::1")),
    "IPv6 not closed": refused(host(b" [::1")),
    "IPv6 with more behind": refused(host(b" [::1]a")),
    "IPv6 with a path inside": refused(host(b" [::1/x]")),
    "IPv6 of letters": refused(host(b" [shop]")),
    "bad in HTTP/1.0": refused(host(b" a/b").replace(b"HTTP/1.1", b"HTTP/1.0")),
    "empty": passed(host(b"")),
    "none in HTTP/1.0": passed(host().replace(b"HTTP/1.1", b"HTTP/1.0"), closes=True),
    "name and port": passed(host(b" shop.example:8080")),
    "port empty": passed(host(b" shop.example:")),
    "white space around": passed(host(b"\t shop.example")),
    "last dot": passed(host(b" shop.example.")),
    "underscore": passed(host(b" my_shop.example")),
    "IPv4": passed(host(b" 127.0.0.1:1")),
    "IPv6": passed(host(b" [2001:db8::1]:80")),
    "IPv6 that holds IPv4": passed(host(b" [::ffff:127.0.0.1]")),
    "non-ASCII name, encoded": passed(host(b" b%C3%BCcher.example")),
    "in capitals": passed(GET_LINE + b"HOST: SHOP.EXAMPLE\r\n\r\n"),
}


@pytest.mark.parametrize(("case", "pace"), names(FIELDS))
async def test_fields(case: Case, pace: Pace) -> None:
    await play(case, pace)


@pytest.mark.parametrize(("case", "pace"), names(HOSTS))
async def test_host(case: Case, pace: Pace) -> None:
    await play(case, pace)


# -- what Connection may take away, and what not


@pytest.mark.parametrize(
    "name",
    ["X-Hop", "x-hOP", "Cookie", "Accept-Encoding", "User-Agent", "X-Real-IP"],
)
async def test_what_connection_names_ends_here(name: str) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(get(f"Connection: keep-alive, {name}".encode(), name.lower().encode() + b": 1", b"X-Stays: 1"))
        (request,) = backend.requests
        assert request.get(name) is None
        assert request.get("Connection") is None
        assert request.get("X-Stays") == "1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Authorization", "Bearer x"),
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "GET"),
        ("Content-Length", "3"),
    ],
)
async def test_what_the_gateway_has_judged_cannot_be_named_away(name: str, value: str) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        fields = [f"Connection: {name}, {name.lower()}".encode(), f"{name}: {value}".encode()]
        await client.ask(get(*fields) + (b"abc" if name == "Content-Length" else b""))
        (request,) = backend.requests
        assert request.get(name) == value


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "Via",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "Forwarded",
        "X-Request-ID",
        "X-Correlation-ID",
        "Transfer-Encoding",
        "traceparent",
    ],
)
async def test_what_the_gateway_writes_cannot_be_named_away(name: str) -> None:
    trace = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        fields = (f"Connection: {name}".encode(), trace, b"Transfer-Encoding: chunked")
        await client.ask(get(*fields) + b"3\r\nabc\r\n0\r\n\r\n")
        (request,) = backend.requests
        assert request.get(name)
        assert request.body == b"abc"


@pytest.mark.parametrize("name", ["Authorization", "Origin", "Access-Control-Request-Method", "Max-Forwards"])
async def test_what_the_gateway_decides_on_comes_once(name: str) -> None:
    """Another field beside the one that was judged would reach the instance unseen (RFC 9110 section 5.3)."""
    twice = refused(get(f"{name}: 1".encode(), f"{name.upper()}: 2".encode()) + SMUGGLED, 400)
    (answer,) = await play(twice, "whole")
    assert b'"code":"bad-request"' in answer.body
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for _ in range(2):
            assert (await client.ask(get(f"{name}: 1".encode()))).status != 400
        assert (await client.ask(twice.sent)).status == 400
        assert len(backend.requests) == 2


async def test_hop_by_hop_fields_end_here_without_being_named() -> None:
    fields = {
        b"Keep-Alive": b"timeout=5",
        b"Proxy-Connection": b"keep-alive",
        b"Proxy-Authorization": b"Basic x",
        b"Proxy-Authenticate": b"Basic",
        b"TE": b"gzip",
        b"Trailer": b"X-Sum",
        b"Upgrade": b"websocket",
        b"HTTP2-Settings": b"AAM",
    }
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(get(*[name + b": " + value for name, value in fields.items()]))
        (request,) = backend.requests
        for name in fields.keys() - {b"Trailer"}:
            assert request.get(name.decode()) is None, name


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


# -- names that servers cannot tell apart


LOOKALIKES = (
    b"Content_Length: 50",
    b"Transfer_Encoding: chunked",
    b"TRANSFER_ENCODING: chunked",
    b"X_Forwarded_For: 1.2.3.4",
    b"X-Forwarded_Proto: https",
    b"X_Forwarded_Host: evil.example",
    b"X_Request_ID: forged",
    b"Proxy_Authorization: Basic x",
)


async def test_names_with_underscores_that_mean_something_end_here() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        assert (await client.ask(get(*LOOKALIKES, b"X_Own: 1") + get())).status == 200
        assert (await client.answer()).status == 200
        first, _ = backend.requests
        assert not [name for name, _ in first.headers if "_" in name and name != "X_Own"]
        assert first.get("X_Own") == "1"
        assert first.get("X-Forwarded-For") == "127.0.0.1"


async def test_lookalikes_end_here_among_the_trailers_too() -> None:
    trailers = b"".join(field + b"\r\n" for field in LOOKALIKES)
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(CHUNKED + b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n" + trailers + b"\r\n")
        assert backend.requests[0].trailers == [("X-Sum", "1")]


# -- how many (RFC 6585 section 5)


def many(count: int) -> list[bytes]:
    return [b"X-%d: 1" % number for number in range(count)]


@pytest.mark.parametrize("pace", ["whole", "byte by byte"])
async def test_as_many_fields_as_the_limit_says(pace: Pace) -> None:
    # One more for Host.
    await play(passed(get(*many(19))), pace, GATEWAY_MAX_HEADERS=20)
    (answer,) = await play(refused(get(*many(20)) + SMUGGLED, 431), pace, GATEWAY_MAX_HEADERS=20)
    assert b"more than 20 fields" in answer.body
    assert b'"code":"head-too-large"' in answer.body


async def test_the_limit_counts_fields_that_end_here_too() -> None:
    await play(refused(get(*[b"Connection: x"] * 100), 431), "whole")
    await play(passed(get(*[b"Connection: x"] * 99)), "whole")


async def test_fields_beyond_number_and_size() -> None:
    # No answer is due before the head ends, but it must not be kept without end either.
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_HEADER_BYTES=8192) as gateway:
        client = await gateway.connect()
        await send(client, GET_LINE, "whole")
        for _ in range(300):
            client.send(b"a:\r\n" * 10)
        assert (await client.answer()).status == 431
        assert await client.is_closed()
        assert not any(backend.received)


@pytest.mark.parametrize("pace", ["whole", "byte by byte"])
async def test_as_many_trailers_as_the_limit_says(pace: Pace) -> None:
    def with_trailers(count: int) -> bytes:
        return CHUNKED + b"3\r\nabc\r\n0\r\n" + b"".join(field + b"\r\n" for field in many(count)) + b"\r\n"

    await play(passed(with_trailers(20), ("POST /case", b"abc")), pace, GATEWAY_MAX_HEADERS=20)
    (answer,) = await play(refused(with_trailers(21) + SMUGGLED, 431), pace, GATEWAY_MAX_HEADERS=20)
    assert b"more than 20 trailer fields" in answer.body


async def test_trailers_that_end_here_count_too() -> None:
    case = refused(CHUNKED + b"0\r\n" + b"Connection: x\r\n" * 101 + b"\r\n" + SMUGGLED, 431)
    await play(case, "whole")


async def test_large_trailers_in_one_read_are_refused() -> None:
    trailers = b"".join(b"X-%d: " % number + b"a" * 1000 + b"\r\n" for number in range(20))
    case = refused(CHUNKED + b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n" + SMUGGLED, 431)
    await play(case, "whole", GATEWAY_MAX_HEADER_BYTES=8192)


async def test_a_refusal_for_the_number_of_fields_takes_its_turn() -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_MAX_HEADERS=10) as gateway:
        client = await gateway.connect()
        client.send(REQUEST + get(*many(20)) + SMUGGLED)
        assert [(await client.answer()).status for _ in range(2)] == [200, 431]
        assert await client.is_closed()
        assert len(backend.requests) == 1
        assert gateway.breakers == {State.CLOSED}

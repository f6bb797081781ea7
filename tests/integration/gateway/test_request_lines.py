"""First lines of requests (RFC 9112 sections 2 and 3): methods, targets, versions, and what is no HTTP/1.1 at all."""

import asyncio

import pytest
from tests.integration.gateway.harness import REQUEST, Backend, running_gateway
from tests.integration.gateway.raw import (
    HOST,
    SMUGGLED,
    Case,
    Pace,
    get,
    line,
    mixed,
    names,
    passed,
    play,
    refused,
    target,
)

GET = b"GET /api/orders/case"
CASE = ("GET /case", b"")

VERSIONS: dict[str, Case] = {
    # HTTP/0.9 has neither version nor fields; a gateway that takes it lets any text protocol in
    "HTTP/0.9": refused(GET + b"\r\n\r\n", 400, 505),
    "HTTP/0.9 with a version": refused(GET + b" HTTP/0.9\r\n\r\n", 505),
    "HTTP/0.9 with fields": refused(GET + b"\r\n" + HOST + b"\r\n", 400, 505),
    "HTTP/1.2": refused(line(GET + b" HTTP/1.2"), 400, 505),
    "HTTP/1.10": refused(line(GET + b" HTTP/1.10")),
    "HTTP/1": refused(line(GET + b" HTTP/1")),
    "HTTP/01.1": refused(line(GET + b" HTTP/01.1")),
    "HTTP/1.01": refused(line(GET + b" HTTP/1.01")),
    "HTTP/2.0": refused(line(GET + b" HTTP/2.0"), 505),
    "HTTP/3.0": refused(line(GET + b" HTTP/3.0"), 400, 505),
    "HTTP/9.9": refused(line(GET + b" HTTP/9.9"), 400, 505),
    "HTTP/-1.1": refused(line(GET + b" HTTP/-1.1")),
    "lower case": refused(line(GET + b" http/1.1")),
    "without a number": refused(line(GET + b" HTTP/")),
    "letters for a number": refused(line(GET + b" HTTP/x.y")),
    "a comma for the point": refused(line(GET + b" HTTP/1,1")),
    "space in the version": refused(line(GET + b" HTTP/ 1.1")),
    "null in the version": refused(line(GET + b" HTTP/1.1\x00")),
    "space behind the version": refused(line(GET + b" HTTP/1.1 ")),
    "tab behind the version": refused(line(GET + b" HTTP/1.1\t")),
    "two versions": refused(line(GET + b" HTTP/1.1 HTTP/1.1")),
    # protocols that the parser takes for kin
    "RTSP/1.0": refused(line(GET + b" RTSP/1.0") + SMUGGLED, 505),
    "RTSP/1.1": refused(line(GET + b" RTSP/1.1") + SMUGGLED, 505),
    "RTSP/1.0 with a method of its own": refused(line(b"DESCRIBE /api/orders/case RTSP/1.0"), 505),
    "RTSP/1.0 without fields": refused(GET + b" RTSP/1.0\r\n\r\n", 505),
    "RTSP/2.0": refused(line(GET + b" RTSP/2.0"), 505),
    "ICE/1.0": refused(line(b"SOURCE /api/orders/case ICE/1.0"), 505),
    "ICE/1.1": refused(line(b"SOURCE /api/orders/case ICE/1.1"), 505),
    "ICE for GET": refused(line(GET + b" ICE/1.0"), 400, 505),
    "RTSP behind a good request": mixed(get() + line(GET + b" RTSP/1.0") + SMUGGLED, 200, 505, reaches=(CASE,)),
    "RTSP, and the line it should be in a field": refused(
        line(GET + b" RTSP/1.1\r\nX-Line: " + GET + b" HTTP/1.1"), 505
    ),
    "SIP/2.0": refused(line(b"OPTIONS sip:a@b SIP/2.0")),
    "GIOP/1.0": refused(line(GET + b" GIOP/1.0")),
    "HTTPS/1.1": refused(line(GET + b" HTTPS/1.1")),
    # HTTP/2 without being asked (RFC 9113 section 3.4)
    "HTTP/2 preface": refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", 400, 505),
    "HTTP/2 preface, and a request": refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED, 400, 505),
    "HTTP/2 preface behind a request": mixed(get() + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 200, 400, reaches=(CASE,)),
    "PRI in HTTP/1.1": refused(line(b"PRI * HTTP/1.1")),
    "PRI for a path": refused(line(b"PRI /api/orders/case HTTP/1.1"), 400, 505),
    # other first bytes
    "TLS to a plain port": refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64)),
    "SSH": refused(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "SMTP": refused(b"EHLO shop.example\r\n"),
    "PROXY protocol": refused(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + get()),
    "PROXY protocol 2": refused(b"\r\n\r\n\x00\r\nQUIT\n" + bytes(16) + get()),
    "an answer": refused(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + SMUGGLED),
    "null bytes": refused(bytes(64) + get()),
    "byte order mark": refused(b"\xef\xbb\xbf" + get()),
    "space before the method": refused(b" " + get()),
    "tab before the method": refused(b"\t" + get()),
    "a field line first": refused(HOST + get()),
    # a server should ignore at least one empty line (section 2.2)
    "HTTP/1.0": passed(GET + b" HTTP/1.0\r\n\r\n" + SMUGGLED, CASE, closes=True),
    "empty line first": passed(b"\r\n" + get(), CASE),
    "empty lines first": passed(b"\r\n" * 20 + get(), CASE),
    "empty lines between": passed(get() + b"\r\n\r\n" + get(), CASE, CASE),
    "empty lines without end": refused(b"\r\n" * 40000, 431, is_long=True),
    # exactly one space (section 3); more would be for the lenient
    "two spaces before the target": refused(line(GET.replace(b" ", b"  ") + b" HTTP/1.1")),
    "two spaces before the version": refused(line(GET + b"  HTTP/1.1")),
    "tab before the target": refused(line(GET.replace(b" ", b"\t") + b" HTTP/1.1")),
    "tab before the version": refused(line(GET + b"\tHTTP/1.1")),
    "line feed before the version": refused(line(GET + b"\nHTTP/1.1")),
    "no space before the version": refused(line(GET + b"HTTP/1.1"), 505),
    "line ended by LF": refused(GET + b" HTTP/1.1\n" + HOST + b"\r\n"),
    "line ended by CR": refused(GET + b" HTTP/1.1\r" + HOST + b"\r\n"),
    "line ended by CR CR LF": refused(GET + b" HTTP/1.1\r\r\n" + HOST + b"\r\n"),
    "every line ended by LF": refused(get().replace(b"\r\n", b"\n")),
    "every line ended by CR": refused(get().replace(b"\r\n", b"\r")),
    "every line ended by LF CR": refused(get().replace(b"\r\n", b"\n\r")),
    "head ended by LF": refused(get()[:-2] + b"\n" + SMUGGLED),
    "head ended by CR CR LF": refused(get()[:-2] + b"\r\r\n" + SMUGGLED),
    "head ended by LF LF": refused(get()[:-4] + b"\n\n" + SMUGGLED),
}

METHODS: dict[str, Case] = {
    "unknown": refused(line(b"FROB /api/orders/case HTTP/1.1"), 400, 501),
    "lower case": refused(line(b"get /api/orders/case HTTP/1.1"), 400, 501),
    "mixed case": refused(line(b"Get /api/orders/case HTTP/1.1"), 400, 501),
    "very long": refused(line(b"G" * 5000 + b" /api/orders/case HTTP/1.1"), 400, 501, is_long=True),
    "too long by a letter": refused(line(b"GETT /api/orders/case HTTP/1.1"), 400, 501),
    "too short by a letter": refused(line(b"GE /api/orders/case HTTP/1.1"), 400, 501),
    "empty": refused(line(b" /api/orders/case HTTP/1.1")),
    "missing": refused(line(b"/api/orders/case HTTP/1.1")),
    "null inside": refused(line(b"GE\x00T /api/orders/case HTTP/1.1")),
    "null behind": refused(line(b"GET\x00 /api/orders/case HTTP/1.1")),
    "carriage return inside": refused(line(b"GE\rT /api/orders/case HTTP/1.1")),
    "line feed inside": refused(line(b"GE\nT /api/orders/case HTTP/1.1")),
    "control character": refused(line(b"\x01GET /api/orders/case HTTP/1.1")),
    "8 bits": refused(line(b"G\xc8T /api/orders/case HTTP/1.1")),
    "colon": refused(line(b"GET: /api/orders/case HTTP/1.1")),
    "quotes": refused(line(b'"GET" /api/orders/case HTTP/1.1')),
    "CONNECT": refused(b"CONNECT shop.example:443 HTTP/1.1\r\n" + HOST + b"\r\n" + SMUGGLED, 405),
    "CONNECT to a path": refused(line(b"CONNECT /api/orders/case HTTP/1.1") + SMUGGLED, 400, 405),
    "CONNECT with a length": refused(
        b"CONNECT shop.example:443 HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc" + SMUGGLED, 400, 405
    ),
    "CONNECT in HTTP/1.0": refused(b"CONNECT shop.example:443 HTTP/1.0\r\n\r\n" + SMUGGLED, 405),
    "of RTSP in HTTP": refused(line(b"DESCRIBE /api/orders/case HTTP/1.1"), 400, 501),
    "PATCH": passed(line(b"PATCH /api/orders/case HTTP/1.1"), ("PATCH /case", b"")),
    "PROPFIND": passed(line(b"PROPFIND /api/orders/case HTTP/1.1"), ("PROPFIND /case", b"")),
    "TRACE": passed(line(b"TRACE /api/orders/case HTTP/1.1"), ("TRACE /case", b"")),
    "M-SEARCH": passed(line(b"M-SEARCH /api/orders/case HTTP/1.1"), ("M-SEARCH /case", b"")),
}

TARGETS: dict[str, Case] = {
    # forms (section 3.2)
    "asterisk for GET": refused(target(b"*")),
    "asterisk and more": refused(target(b"*x")),
    "authority for GET": refused(target(b"shop.example:80")),
    "empty": refused(line(b"GET  HTTP/1.1")),
    "relative": refused(target(b"api/orders/case")),
    "only a query": refused(target(b"?x=1")),
    "another scheme": refused(target(b"ftp://shop.example/api/orders/case")),
    "no authority": refused(target(b"http:///api/orders/case")),
    "no slashes": refused(target(b"http:/api/orders/case")),
    "scheme alone": refused(target(b"http://")),
    "user in the authority": refused(target(b"http://me@shop.example/api/orders/case")),
    "user that looks like the host": refused(target(b"http://shop.example@evil.example/api/orders/case")),
    "bad port in the authority": refused(target(b"http://shop.example:80x/api/orders/case")),
    "port of many digits": refused(target(b"http://shop.example:808080808080/api/orders/case")),
    "list in the authority": refused(target(b"http://a,b/api/orders/case")),
    "encoded slash in the authority": refused(target(b"http://shop.example%2f/api/orders/case")),
    "backslash for a slash": refused(target(b"http:\\\\shop.example/api/orders/case")),
    "absolute form without Host": refused(b"GET http://shop.example/api/orders/case HTTP/1.1\r\n\r\n"),
    "absolute form with two Hosts": refused(
        b"GET http://shop.example/api/orders/case HTTP/1.1\r\n" + HOST + HOST + b"\r\n"
    ),
    "absolute form with a bad Host": refused(b"GET http://shop.example/api/orders/case HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "absolute form": passed(target(b"http://shop.example/api/orders/case")),
    "absolute form, https": passed(target(b"https://shop.example/api/orders/case")),
    "absolute form, scheme in capitals": passed(target(b"HTTP://shop.example/api/orders/case")),
    "absolute form of another host": passed(
        target(b"http://other.example:81/api/orders/case?x=http://y/"), ("GET /case?x=http://y/", b"")
    ),
    "absolute form with IPv6": passed(target(b"http://[::1]:80/api/orders/case")),
    # characters
    "fragment": refused(target(b"/api/orders/case#x")),
    "fragment in the query": refused(target(b"/api/orders/case?a=b#x")),
    "8 bits": refused(target(b"/api/orders/\xff")),
    "null": refused(target(b"/api/orders/\x00")),
    "escape": refused(target(b"/api/orders/\x1b")),
    "delete": refused(target(b"/api/orders/\x7f")),
    "space": refused(target(b"/api/orders/a b")),
    "tab": refused(target(b"/api/orders/a\tb")),
    "form feed": refused(target(b"/api/orders/a\x0cb")),
    "carriage return": refused(target(b"/api/orders/a\rb")),
    "line feed": refused(target(b"/api/orders/a\nb")),
    "a line end and a field": refused(target(b"/api/orders/case HTTP/1.1\r\n X: 1\r\nGET /")),
    "backslash": refused(target(b"/api/orders\\..\\x")),
    "backslash first": refused(target(b"\\api\\orders\\case")),
    "null, encoded": refused(target(b"/api/orders/case%00.txt")),
    "null, encoded, in the service": refused(target(b"/api/orders%00/case")),
    # dot segments are resolved before anything is chosen (RFC 3986 section 5.2.4)
    "out of the root": refused(target(b"/../api/orders/case")),
    "out of the root, encoded": refused(target(b"/%2e%2E/api/orders/case")),
    "out of the root, half encoded": refused(target(b"/.%2e/api/orders/case")),
    "out of the root, deep": refused(target(b"/api/orders/../../../x")),
    "out of the prefix": Case(target(b"/api/../orders/case"), (frozenset({404}),), closes=False),
    "into no service": Case(target(b"/api/orders/../case"), (frozenset({404}),), closes=False),
    "into the prefix": passed(target(b"/x/../api/orders/case")),
    "within": passed(target(b"/api/orders/a/./../case")),
    "within, encoded": passed(target(b"/api/orders/a/%2e/%2E%2e/case")),
    "dots at the end": passed(target(b"/api/orders/a/.."), ("GET /", b"")),
    "dots in the query": passed(target(b"/api/orders/case?../%2e%2e/"), ("GET /case?../%2e%2e/", b"")),
    # what only looks like it passes as it came: percent-encoding means something to the instance
    "encoded slash": passed(target(b"/api/orders/a%2fb"), ("GET /a%2fb", b"")),
    "dots and an encoded slash": passed(target(b"/api/orders/..%2fb"), ("GET /..%2fb", b"")),
    "encoded twice": passed(target(b"/api/orders/%252e%252e/b"), ("GET /%252e%252e/b", b"")),
    "null, encoded twice": passed(target(b"/api/orders/%2500"), ("GET /%2500", b"")),
    "null, encoded, in the query": passed(target(b"/api/orders/case?a=%00"), ("GET /case?a=%00", b"")),
    "CRLF, encoded": passed(target(b"/api/orders/a%0d%0aX:%201"), ("GET /a%0d%0aX:%201", b"")),
    "encoded backslash": passed(target(b"/api/orders/..%5cb"), ("GET /..%5cb", b"")),
    "percent alone": passed(target(b"/api/orders/%"), ("GET /%", b"")),
    "percent and letters": passed(target(b"/api/orders/%zz"), ("GET /%zz", b"")),
    "overlong dot": passed(target(b"/api/orders/%c0%ae%c0%ae/b"), ("GET /%c0%ae%c0%ae/b", b"")),
    "three dots": passed(target(b"/api/orders/.../b"), ("GET /.../b", b"")),
    "dots and a parameter": passed(target(b"/api/orders/..;/b"), ("GET /..;/b", b"")),
    "two slashes": passed(target(b"/api/orders//other.example/b"), ("GET //other.example/b", b"")),
    "every visible character": passed(
        target(b"/api/orders/!\"$%&'()*+,-.0:;<=>@A[]^_`a{|}~?" + bytes(range(0x24, 0x7F))),
        ("GET /!\"$%&'()*+,-.0:;<=>@A[]^_`a{|}~?" + bytes(range(0x24, 0x7F)).decode(), b""),
    ),
}


@pytest.mark.parametrize(("case", "pace"), names(VERSIONS))
async def test_versions_and_line_ends(case: Case, pace: Pace) -> None:
    await play(case, pace)


@pytest.mark.parametrize(("case", "pace"), names(METHODS))
async def test_methods(case: Case, pace: Pace) -> None:
    await play(case, pace)


@pytest.mark.parametrize(("case", "pace"), names(TARGETS))
async def test_targets(case: Case, pace: Pace) -> None:
    await play(case, pace)


async def test_asterisk_for_options_is_about_the_gateway() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        assert (await client.ask(target(b"*", b"OPTIONS"))).status in (200, 204, 404)
        assert (await client.ask(REQUEST)).status == 200
        assert len(backend.requests) == 1


async def test_the_authority_of_the_target_replaces_host() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        await client.ask(target(b"http://other.example:81/api/orders/case"))
        (request,) = backend.requests
        assert request.get("Host") == f"127.0.0.1:{backend.port}"
        assert request.get("X-Forwarded-Host") == "other.example:81"
        assert 'host="other.example:81"' in (request.get("Forwarded") or "")


@pytest.mark.parametrize("position", range(1, 34))
async def test_another_protocol_is_found_wherever_the_first_line_is_split(position: int) -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        request = line(GET + b" RTSP/1.1")
        client.send(request[:position])
        await asyncio.sleep(0.002)
        assert (await client.ask(request[position:])).status == 505
        assert await client.is_closed()
        assert not any(backend.received)


@pytest.mark.parametrize("number", [c for c in range(0x21, 0x7F) if c not in b"#\\"])
async def test_every_visible_character_of_a_target_means_the_same_behind_a_known_block(number: int) -> None:
    path = b"/api/orders/a" + bytes([number]) + b"b"
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for _ in range(2):
            assert (await client.ask(target(path))).status == 200
        first, again = backend.requests
        assert first.target == again.target == path.removeprefix(b"/api/orders").decode()

"""The ordinary request, and what the instance is told about it."""

from tests.integration.gateway.harness import OK, REQUEST, Backend, Caller, running_gateway


async def test_request_and_answer_pass() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        answer = await client.ask(REQUEST)
        assert (answer.status, answer.body, answer.get("Via")) == (200, b"ok", "1.1 toska")
        again = await client.ask(REQUEST)
        assert again.status == 200
    assert [request.start for request in backend.requests] == ["GET / HTTP/1.1"] * 2
    assert backend.connections == 1
    assert gateway.recorded == 2


async def test_what_the_instance_is_told() -> None:
    async with Backend() as backend, running_gateway(backend, GATEWAY_TRUSTED_PROXIES="10.0.0.0/8") as gateway:
        await gateway.get(
            "/api/orders/a%2Fb?x=1&y=%20",
            "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Proto: https\r\n"
            "X-Forwarded-Host: evil\r\nTE: trailers, deflate\r\nX-Own: one\r\nKeep-Alive: 5\r\n",
        )
    (request,) = backend.requests
    assert request.start == "GET /a%2Fb?x=1&y=%20 HTTP/1.1"
    assert request.get("Host") == f"127.0.0.1:{backend.port}"
    assert request.get("X-Forwarded-For") == "127.0.0.1"
    assert request.get("X-Forwarded-Proto") == "http"
    assert request.get("X-Forwarded-Host") == "shop.example"
    assert request.get("Forwarded") == 'for=127.0.0.1;host="shop.example";proto=http'
    assert request.get("TE") == "trailers"
    assert request.get("Connection") == "TE"
    assert request.get("X-Own") == "one"
    assert request.get("Keep-Alive") is None
    assert request.get("X-Request-ID") == request.get("X-Correlation-ID")


async def test_a_trusted_proxy_is_continued() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        await gateway.get(headers="X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop\r\n")
    (request,) = backend.requests
    assert request.get("X-Forwarded-For") == "6.6.6.6, 127.0.0.1"
    assert request.get("X-Forwarded-Proto") == "https"
    assert request.get("X-Forwarded-Host") == "shop"


async def test_service_names_are_found_in_any_case_and_encoding() -> None:
    async with Backend() as backend, running_gateway(backend) as gateway:
        for path in ("/api/orders/", "/api/ORDERS/", "/api/OrDers", "/api/%6Frders/", "/x/../api/orders/"):
            assert (await gateway.get(path)).status == 200, path
        for path in ("/api/order/", "/api/orders%2f", "/api//orders", "/API/orders/", "/", "/api"):
            answer = await gateway.get(path)
            assert answer.status == 404, path
            assert answer.get("Content-Type") == "application/problem+json"


async def test_ipv6_instance() -> None:
    async with Backend(host="::1") as backend, running_gateway(backend) as gateway:
        assert (await gateway.get()).body == b"ok"
    assert backend.requests[0].get("Host") == f"[::1]:{backend.port}"


async def test_head_204_and_304_have_no_body() -> None:
    answers = {
        "/head": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        "/bare-head": b"HTTP/1.1 200 OK\r\n\r\n",
        "/chunked-head": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "/204": b"HTTP/1.1 204 No Content\r\n\r\n",
        "/304": b'HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: "1"\r\n\r\n',
        "/get": OK,
    }

    async def script(caller: Caller) -> None:
        while (request := await caller.request()) is not None:
            await caller.send(answers[request.target])

    async with Backend(script) as backend, running_gateway(backend) as gateway:
        client = await gateway.connect()
        for method, path in (
            ("HEAD", "/head"), ("GET", "/get"), ("HEAD", "/bare-head"), ("GET", "/get"), ("HEAD", "/chunked-head"),
            ("GET", "/get"), ("GET", "/204"), ("GET", "/get"), ("GET", "/304"), ("GET", "/get"),
        ):  # fmt: skip
            answer = await client.ask(f"{method} /api/orders{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), method)
            assert answer.body == (b"ok" if path == "/get" else b""), path
            if path in ("/head", "/304"):
                assert answer.get("Content-Length") == "1000"
        assert backend.connections == 1

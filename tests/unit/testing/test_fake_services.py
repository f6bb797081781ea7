"""Services and instances of a fake mesh, asked past the mesh: what answers, and what each fault looks like."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from toska_mesh.testing import FakeInstance, FakeMesh, FakeRequest, FakeResponse

pytestmark = pytest.mark.virtual_clock


def hello(request: FakeRequest) -> str:
    return f"hello from {request.instance}"


@pytest.fixture
async def session(fake_mesh: FakeMesh) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)
    async with fake_mesh.session(timeout=timeout) as session:
        yield session


@pytest.fixture
def get(session: aiohttp.ClientSession) -> Callable[..., Awaitable[tuple[int, str]]]:
    async def get(instance: FakeInstance, path: str = "/") -> tuple[int, str]:
        async with session.get(instance.url + path) as answer:
            return answer.status, await answer.text()

    return get


Get = Callable[..., Awaitable[tuple[int, str]]]


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        pytest.param(None, (204, "", "application/octet-stream"), id="nothing"),
        pytest.param(418, (418, "", "application/octet-stream"), id="a status"),
        pytest.param("word", (200, "word", "text/plain"), id="a text"),
        pytest.param(b"\x00", (200, "\x00", "application/octet-stream"), id="bytes"),
        pytest.param({"id": 1}, (200, '{"id":1}', "application/json"), id="something for JSON"),
        pytest.param((404, {"id": 1}), (404, '{"id":1}', "application/json"), id="a status and something for JSON"),
        pytest.param((202, None), (202, "", "application/octet-stream"), id="a status and nothing"),
        pytest.param(True, (200, "true", "application/json"), id="a truth is no status"),
        pytest.param(FakeResponse(201, b"x", {"Content-Type": "a/b"}), (201, "x", "a/b"), id="a response"),
    ],
)
async def test_what_a_function_gives_becomes_an_answer(
    fake_mesh: FakeMesh, session: aiohttp.ClientSession, given: Any, answer: tuple[int, str, str]
) -> None:
    (stock,) = fake_mesh.add_service("stock", lambda request: given)
    async with session.get(stock.url) as got:
        assert (got.status, await got.text(), got.content_type) == answer


async def test_a_function_sees_the_request(fake_mesh: FakeMesh, session: aiohttp.ClientSession) -> None:
    seen: list[FakeRequest] = []

    async def keep(request: FakeRequest) -> None:
        seen.append(request)

    stock = fake_mesh.add_service("stock", keep, instances=2)
    async with session.post(f"{stock[1].url}/a%20b?x=1&y=2", json={"n": 1}, headers={"X-Word": "Yes"}):
        pass
    (request,) = seen
    assert (request.method, request.path, request.query) == ("POST", "/a b", {"x": "1", "y": "2"})
    assert (request.headers["x-word"], request.json(), request.instance) == ("Yes", {"n": 1}, "stock-2")
    assert [one.requests for one in stock] == [0, 1]
    assert stock.requests == 1


async def test_an_asgi_app_is_started_and_stopped_and_streams(
    fake_mesh: FakeMesh, session: aiohttp.ClientSession
) -> None:
    said: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for word in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{word}"
                said.append(word)
                scope["state"]["word"] = "kept"
                await send({"type": f"lifespan.{word}.complete"})
            return
        body = b""
        while (part := await receive())["more_body"]:
            body += part["body"]
        body += part["body"]
        assert scope["state"]["word"] == "kept"
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x-path", scope["raw_path"])]})
        await send({"type": "http.response.body", "body": body[:2], "more_body": True})
        await asyncio.sleep(5)
        await send({"type": "http.response.body", "body": body[2:]})

    (stock,) = fake_mesh.add_service("stock", app)
    async with session.post(f"{stock.url}/a%2Fb?c=d", data=b"12345" * 100_000) as answer:
        assert (answer.status, answer.headers["x-path"]) == (201, "/a%2Fb")
        assert await answer.content.readany() == b"12"
        assert fake_mesh.clock.now == 0
        assert await answer.read() == (b"12345" * 100_000)[2:]
        assert fake_mesh.clock.now == 5
    assert said == ["startup"]
    await fake_mesh.__aexit__(None, None, None)
    assert said == ["startup", "shutdown"]


async def test_an_asgi_app_hears_that_its_client_has_left(fake_mesh: FakeMesh, session: aiohttp.ClientSession) -> None:
    heard: list[tuple[float, str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise ValueError("not supported")
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                heard.append((fake_mesh.clock.now, message["type"]))
                return

    (stock,) = fake_mesh.add_service("stock", app)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await session.get(stock.url)
    await fake_mesh.clock.advance(1)
    assert heard == [(3, "http.disconnect")]


async def test_an_asgi_app_that_does_not_start_fails_the_test(
    fake_mesh: FakeMesh, session: aiohttp.ClientSession, get: Get
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    (stock,) = fake_mesh.add_service("stock", app)
    with pytest.raises(aiohttp.ClientConnectorError):
        await get(stock)
    await session.close()
    with pytest.raises(ExceptionGroup) as failures:
        await fake_mesh.__aexit__(None, None, None)
    assert any("no database" in str(error) for error in failures.value.exceptions)


async def test_an_aiohttp_application_answers_with_its_routes_and_middlewares(
    fake_mesh: FakeMesh, session: aiohttp.ClientSession
) -> None:
    started: list[str] = []

    async def item(request: web.Request) -> web.Response:
        return web.json_response({"id": request.match_info["id"]})

    @web.middleware
    async def add_word(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        response.headers["X-Word"] = "added"
        return response

    async def on_startup(app: web.Application) -> None:
        started.append("once")

    app = web.Application(middlewares=[add_word])
    app.router.add_get("/items/{id}", item)
    app.on_startup.append(on_startup)
    stock = fake_mesh.add_service("stock", app, instances=2)
    for instance in stock:
        async with session.get(f"{instance.url}/items/7") as answer:
            assert await answer.json() == {"id": "7"}
            assert answer.headers["X-Word"] == "added"
        async with session.get(f"{instance.url}/nothing") as answer:
            assert answer.status == 404
    assert started == ["once"]


async def test_each_instance_may_have_an_app_of_its_own(fake_mesh: FakeMesh, get: Get) -> None:
    stock = fake_mesh.add_service("stock", [lambda request: "old", lambda request: "new"])
    assert [(await get(one))[1] for one in stock] == ["old", "new"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("stock", 7), "7 is no service: give a function of one request", id="no app"),
        pytest.param(("stock", lambda: None), "is no service", id="a function of nothing"),
    ],
)
async def test_what_is_no_app_is_refused(fake_mesh: FakeMesh, arguments: tuple[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        fake_mesh.add_service(*arguments)


async def test_a_service_that_makes_no_sense_is_refused(fake_mesh: FakeMesh) -> None:
    fake_mesh.add_service("stock", hello)
    with pytest.raises(ValueError, match="has a service 'stock' already"):
        fake_mesh.add_service("stock", hello)
    with pytest.raises(ValueError, match="name"):
        fake_mesh.add_service("st ock", hello)
    with pytest.raises(ValueError, match="instances=0 is below 1"):
        fake_mesh.add_service("orders", hello, instances=0)
    with pytest.raises(ValueError, match="2 apps for 3 instances"):
        fake_mesh.add_service("orders", [hello, hello], instances=3)


@pytest.mark.parametrize(
    ("described", "words"),
    [
        pytest.param({"strategy": "Fooo"}, "strategy='Fooo' is not one of RoundRobin, ", id="strategy"),
        pytest.param({"metadata": {"lb_strategy": "Fooo"}}, "lb_strategy='Fooo' is not one of", id="its metadata"),
        pytest.param({"weights": [0]}, "the weight 0 is not between 1 and ", id="weight"),
        pytest.param({"weights": [1, 2]}, "2 weights for 1 instances", id="weights"),
        pytest.param({"interval_seconds": 86_401}, "86401 is above 86400", id="interval"),
        pytest.param({"metadata": {"a.b": "c"}}, "metadata key 'a.b' is not", id="key"),
        pytest.param({"metadata": {"zone": 1}}, "'zone': 1 is not a pair of texts", id="no text"),
        pytest.param({"metadata": {"scheme": "ftp"}}, "metadata scheme 'ftp' is not one of", id="scheme"),
        pytest.param({"metadata": {"zone": "x" * 600}}, "metadata value of 'zone' has 600 bytes", id="size"),
    ],
)
async def test_what_no_service_could_register_is_refused(
    fake_mesh: FakeMesh, described: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        fake_mesh.add_service("orders", hello, **described)
    assert fake_mesh.registry.instances("orders") == ()
    fake_mesh.add_service("orders", hello, strategy="p2c", weights=[3])


# Faults, as a client sees them


async def test_what_is_down_refuses_and_breaks_what_is_open(
    fake_mesh: FakeMesh, session: aiohttp.ClientSession, get: Get
) -> None:
    async def slowly(request: FakeRequest) -> str:
        await asyncio.sleep(10)
        return "never seen"

    (stock,) = fake_mesh.add_service("stock", slowly)
    fake_mesh.schedule(3, stock.down)
    with pytest.raises(aiohttp.ClientOSError):
        await get(stock)
    assert fake_mesh.clock.now == 3
    with pytest.raises(aiohttp.ClientConnectorError, match="refused"):
        await get(stock)
    assert (fake_mesh.clock.now, stock.requests, stock.is_up) == (3, 1, False)


async def test_what_vanished_does_not_even_refuse(fake_mesh: FakeMesh, get: Get) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    stock.vanish()
    with pytest.raises(aiohttp.ConnectionTimeoutError):
        await get(stock)
    assert (fake_mesh.clock.now, stock.requests) == (5, 0)


async def test_what_hangs_answers_when_it_is_revived(fake_mesh: FakeMesh, get: Get) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    stock.hang()
    with pytest.raises(aiohttp.SocketTimeoutError):
        await get(stock)
    assert fake_mesh.clock.now == 60
    fake_mesh.schedule(70, stock.revive)
    assert await get(stock) == (200, "hello from stock-1")
    assert fake_mesh.clock.now == 70


async def test_what_is_slow_takes_longer(fake_mesh: FakeMesh, get: Get) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    stock.slow(2.5)
    assert await get(stock) == (200, "hello from stock-1")
    assert fake_mesh.clock.now == 2.5
    stock.revive()
    await get(stock)
    assert fake_mesh.clock.now == 2.5


async def test_a_status_is_answered_without_asking_the_app(fake_mesh: FakeMesh, get: Get) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    stock.answers(503)
    assert await get(stock) == (503, "")
    with pytest.raises(ValueError, match="99 is no status"):
        stock.answers(99)


async def test_a_reset_breaks_the_request_that_it_took(fake_mesh: FakeMesh, session: aiohttp.ClientSession) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    stock.resets()
    with pytest.raises(aiohttp.ClientOSError):
        await session.post(stock.url)
    assert (stock.requests, stock.in_flight) == (1, 0)
    assert fake_mesh.events[-1].text == "POST / -> no answer, 0 s"


async def test_a_later_fault_takes_the_place_of_the_one_before(fake_mesh: FakeMesh, get: Get) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    stock.slow(5)
    stock.answers(500)
    assert await get(stock) == (500, "")
    stock.hang()
    stock.answers(501)
    assert await get(stock) == (501, "")
    stock.down()
    stock.slow(1)
    assert await get(stock) == (200, "hello from stock-1")
    assert fake_mesh.clock.now == 1


async def test_flapping_goes_down_and_up(fake_mesh: FakeMesh, get: Get) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    stock.flapping(up=3, down=2)
    seen = []
    for _ in range(10):
        await fake_mesh.clock.advance(0.5)
        seen.append(stock.is_up)
        await fake_mesh.clock.advance(0.5)
    assert seen == [False, False, True, True, True, False, False, True, True, True]
    stock.revive()
    await fake_mesh.clock.advance(60)
    assert stock.is_up
    with pytest.raises(ValueError, match="above 0"):
        stock.flapping(up=0, down=1)


# Scripts and what is told of them


async def test_what_is_scheduled_happens_at_its_time(fake_mesh: FakeMesh) -> None:
    at: list[float] = []

    async def later() -> None:
        await asyncio.sleep(1)
        at.append(fake_mesh.clock.now)

    fake_mesh.schedule(5, lambda: at.append(fake_mesh.clock.now))
    fake_mesh.schedule(2, later)
    await fake_mesh.clock.until(10)
    assert at == [3, 5]
    with pytest.raises(ValueError, match="9 s is over: the clock is at 10 s"):
        fake_mesh.schedule(9, later)


async def test_a_script_that_fails_fails_the_test(fake_mesh: FakeMesh) -> None:
    def mistaken() -> None:
        raise KeyError("stokc")

    fake_mesh.schedule(1, mistaken)
    await fake_mesh.clock.advance(2)
    with pytest.raises(ExceptionGroup, match="beside the test") as failures:
        await fake_mesh.__aexit__(None, None, None)
    assert isinstance(failures.value.exceptions[0], KeyError)


async def test_the_history_tells_what_happened_when(fake_mesh: FakeMesh, get: Get) -> None:
    (stock,) = fake_mesh.add_service("stock", hello)
    await get(stock, "/items?x=1")
    fake_mesh.schedule(2, stock.down)
    await fake_mesh.clock.advance(3)
    assert [(one.at, one.kind, one.subject, one.text) for one in fake_mesh.events] == [
        (0, "registered", "stock-1", "as stock at 10.1.1.1:8080"),
        (0, "request", "stock-1", "GET /items?x=1 -> 200, 0 s"),
        (2, "down", "stock-1", ""),
    ]
    assert fake_mesh.events.of("down", "stock-1") == (fake_mesh.events[2],)
    assert fake_mesh.events.of("down", "stock-2") == ()
    assert fake_mesh.history().splitlines()[-1] == "    2.000 s  down         stock-1"
    assert len(fake_mesh.history().splitlines()) == 3
    assert fake_mesh.history(last=1).splitlines() == [
        "... 2 events before that: fake_mesh.history() gives all of them",
        "    2.000 s  down         stock-1",
    ]

"""The ASGI edge around apps of many kinds, without a server."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from toska_mesh.sdk.asgi import ASGIApp, MeshASGI, Message
from toska_mesh.sdk.checks import Checks
from toska_mesh.sdk.context import RequestContext, current
from toska_mesh.sdk.endpoints import Edge


def make_edge() -> Edge:
    return Edge("orders", "orders-1", "/health", Checks(), metrics_registry=None)


class Call:
    """One request to an app, and what came back."""

    def __init__(self, app: ASGIApp, path: str = "/", kind: str = "http", **scope: Any) -> None:
        self.app = app
        self.sent: list[Message] = []
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.scope = {
            "type": kind,
            "asgi": {"version": "3.0"},
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"orders")],
            "http_version": "1.1",
            "scheme": "http",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            **scope,
        }
        if kind == "http":
            self.inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    async def run(self) -> "Call":
        async def send(message: Message) -> None:
            self.sent.append(message)

        await self.app(self.scope, self.inbox.get, send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """An app without a router: answers whatever comes."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"keep-alive")]})
    await send({"type": "http.response.body", "body": b"app"})


def answering(text: str) -> Any:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(text)

    return answer


def fastapi_with_health() -> FastAPI:
    async def answer() -> str:
        return "the app's"

    app = FastAPI()
    router = APIRouter(prefix="/health")
    router.add_api_route("/ready", answer)
    app.include_router(router)
    app.add_api_route("/health", answer)
    return app


def behind_middleware() -> Starlette:
    async def passing(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    routes = [Route("/health", answering("the app's"))]
    return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=passing)])


@pytest.mark.parametrize(
    ("app", "path", "is_theirs"),
    [
        pytest.param(plain, "/health", False, id="an app without a router"),
        pytest.param(Starlette(), "/health", False, id="a router without the route"),
        pytest.param(Starlette(routes=[Route("/health", answering("the app's"))]), "/health", True, id="its own route"),
        pytest.param(Starlette(routes=[Route("/{any:path}", answering("x"))]), "/health/ready", False, id="any path"),
        pytest.param(Starlette(routes=[Route("/{any}", answering("x"))]), "/health", False, id="any word"),
        pytest.param(Starlette(routes=[Mount("/", plain)]), "/metrics", False, id="an app mounted at the root"),
        pytest.param(
            Starlette(routes=[Route("/metrics", answering("the app's")), Mount("/", plain)]),
            "/metrics",
            True,
            id="its own route before a catch-all",
        ),
        pytest.param(Starlette(routes=[Mount("/metrics", plain)]), "/metrics", False, id="mounted, without its slash"),
        pytest.param(behind_middleware(), "/health", True, id="behind a middleware"),
        pytest.param(fastapi_with_health(), "/health", True, id="fastapi"),
        pytest.param(fastapi_with_health(), "/health/ready", True, id="fastapi, in a router of its own"),
        pytest.param(fastapi_with_health(), "/health/live", False, id="fastapi, not this one"),
        pytest.param(
            Starlette(routes=[Route("/health", answering("x"), methods=["POST"])]), "/health", False, id="post"
        ),
    ],
)
async def test_a_route_of_the_apps_own_wins_and_a_catch_all_does_not(app: Any, path: str, is_theirs: bool) -> None:
    call = await Call(MeshASGI(app, make_edge()), path).run()
    assert call.status == 200
    assert (b'"orders"' not in call.body) is is_theirs, call.body


async def test_head_gets_the_length_without_the_body() -> None:
    call = await Call(MeshASGI(plain, make_edge()), "/health", method="HEAD").run()
    assert int(call.headers[b"content-length"]) > 0
    assert call.body == b""


async def test_our_own_answers_are_not_counted_as_requests() -> None:
    edge = make_edge()
    await Call(MeshASGI(plain, edge), "/health").run()
    assert b"duration_seconds_count" not in (await edge.answer("/metrics", "")).body


async def test_a_streamed_answer_is_in_flight_to_its_last_byte() -> None:
    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(1)
            yield b"x"

    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(blocks())

    edge = make_edge()
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Call(MeshASGI(Starlette(routes=[Route("/", stream)]), edge)).run())
        await asyncio.sleep(0.5)
        assert edge.in_flight.count == 1
        await edge.in_flight.idle()
    assert loop.time() == 3


async def test_a_websocket_is_in_flight_while_it_is_open() -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    edge = make_edge()
    call = Call(MeshASGI(Starlette(routes=[WebSocketRoute("/", echo)]), edge), kind="websocket")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(call.run())
        call.inbox.put_nowait({"type": "websocket.connect"})
        await asyncio.sleep(1)
        assert edge.in_flight.count == 1
        call.inbox.put_nowait({"type": "websocket.receive", "text": "hello"})
    assert edge.in_flight.count == 0
    assert [message["type"] for message in call.sent] == ["websocket.accept", "websocket.send", "websocket.close"]


async def test_an_exception_goes_through_to_the_server_and_is_counted_as_500() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a bug")

    edge = make_edge()
    with pytest.raises(ValueError, match="a bug"):
        await Call(MeshASGI(broken, edge)).run()
    assert edge.in_flight.count == 0
    assert b'http_response_status_code="500"' in (await edge.answer("/metrics", "")).body


async def test_the_request_has_its_context_and_only_it() -> None:
    seen: list[RequestContext | None] = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current())

    await Call(MeshASGI(look, make_edge()), headers=[(b"x-request-id", b"r-1")]).run()
    assert seen[0] is not None
    assert seen[0].request_id == "r-1"
    assert current() is None


@pytest.mark.parametrize(("version", "closes"), [("1.1", True), ("1.0", True), ("2", False)])
async def test_while_draining_the_client_is_asked_to_use_another_connection(version: str, closes: bool) -> None:
    edge = make_edge()
    app = MeshASGI(plain, edge)
    assert (await Call(app, http_version=version).run()).headers[b"connection"] == b"keep-alive"
    edge.is_draining = True
    call = await Call(app, http_version=version).run()
    assert [value for name, value in call.sent[0]["headers"] if name == b"connection"] == [
        b"close" if closes else b"keep-alive"
    ]


async def test_the_state_of_the_apps_lifespan_reaches_its_requests_as_a_copy() -> None:
    async def look(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["mine"] = True

    app = MeshASGI(look, make_edge())
    app.state = {"pool": object()}
    call = await Call(app).run()
    assert call.scope["state"].keys() == {"pool", "mine"}
    assert app.state.keys() == {"pool"}


async def test_health_says_what_the_checks_say() -> None:
    edge = make_edge()

    async def down() -> bool:
        return False

    edge.checks.add("database", down)
    call = await Call(MeshASGI(plain, edge), "/health/ready").run()
    assert call.status == 503
    assert json.loads(call.body)["checks"][0]["name"] == "database"

"""Joining under a server of somebody else's: what the middleware makes of the lifespan."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from toska_mesh.sdk.asgi import ASGIApp, Message
from toska_mesh.sdk.joined import Joined
from toska_mesh.sdk.middleware import MeshMiddleware
from toska_mesh.sdk.options import ServiceOptions


class NotedJoined(Joined):
    """Stays until it is told to leave, and notes when."""

    def __init__(self, order: list[str]) -> None:
        super().__init__(ServiceOptions(name="orders", port=0), metrics_registry=None)
        self.order = order

    def prepare(self) -> None:
        self.order.append("prepare")

    async def run(self) -> None:
        self.order.append("join")
        await self.stay.asked_to_leave()
        self.order.append("left")
        self._is_over.set()


class Server:
    """Drives a lifespan as servers do."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.outbox: asyncio.Queue[Message] = asyncio.Queue()
        self.state: dict[str, Any] = {}

    async def run(self) -> None:
        await self.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}, self.inbox.get, self.say)

    async def say(self, message: Message) -> None:
        self.outbox.put_nowait(message)

    async def ask(self, what: str) -> str:
        self.inbox.put_nowait({"type": f"lifespan.{what}"})
        return str((await self.outbox.get())["type"])


def living(order: list[str]) -> Any:
    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[dict[str, int]]:
        order.append("app started")
        yield {"pool": 7}
        order.append("app stopped")

    return life


async def without_lifespan(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"


async def reading_without_answer(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise TypeError("what is this")


async def returning(scope: Any, receive: Any, send: Any) -> None:
    return


async def test_the_mesh_is_joined_after_the_app_has_started_and_left_before_it_stops() -> None:
    order: list[str] = []
    app = MeshMiddleware(Starlette(lifespan=living(order)), joined=NotedJoined(order))
    server = Server(app)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        assert await server.ask("startup") == "lifespan.startup.complete"
        await asyncio.sleep(0)
        assert order == ["prepare", "app started", "join"]
        assert await server.ask("shutdown") == "lifespan.shutdown.complete"
    assert order == ["prepare", "app started", "join", "left", "app stopped"]
    assert server.state == {"pool": 7}


async def test_among_the_apps_own_middlewares_it_sees_the_lifespan_too() -> None:
    order: list[str] = []
    app = FastAPI(lifespan=living(order))
    app.add_middleware(MeshMiddleware, joined=NotedJoined(order))
    server = Server(app)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        assert await server.ask("startup") == "lifespan.startup.complete"
        assert await server.ask("shutdown") == "lifespan.shutdown.complete"
    assert order == ["prepare", "app started", "join", "left", "app stopped"]


@pytest.mark.parametrize("app", [without_lifespan, reading_without_answer, returning])
async def test_an_app_without_a_lifespan_joins_all_the_same(app: ASGIApp) -> None:
    order: list[str] = []
    server = Server(MeshMiddleware(app, joined=NotedJoined(order)))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        assert await server.ask("startup") == "lifespan.startup.complete"
        await asyncio.sleep(0)
        assert await server.ask("shutdown") == "lifespan.shutdown.complete"
    assert order == ["prepare", "join", "left"]


async def test_an_app_that_does_not_start_does_not_join() -> None:
    order: list[str] = []

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    server = Server(MeshMiddleware(Starlette(lifespan=life), joined=NotedJoined(order)))

    async def run() -> None:
        with pytest.raises(ConnectionError, match="no database"):
            await server.run()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run())
        assert await server.ask("startup") == "lifespan.startup.failed"
    assert order == ["prepare"]


async def test_a_server_that_runs_no_lifespan_is_told_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    joined = MeshMiddleware(app, joined=NotedJoined([]))
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    for _ in range(2):
        await joined(dict(scope), asyncio.Queue[Message]().get, asyncio.Queue[Message]().put)
    assert [vars(record)["event"] for record in caplog.records] == ["not_joined"]


async def test_a_cancelled_lifespan_leaves_nothing_behind() -> None:
    order: list[str] = []
    server = Server(MeshMiddleware(Starlette(lifespan=living(order)), joined=NotedJoined(order)))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(server.run())
        await server.ask("startup")
        running.cancel()
    assert running.cancelled()

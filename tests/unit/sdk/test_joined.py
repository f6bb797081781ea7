"""A stay under a server of somebody else's that never gets as far as an open port, as in an app's own tests."""

import asyncio

import pytest
from fastapi import FastAPI
from tests.unit.sdk.test_middleware import Server

from toska_mesh.sdk import ports
from toska_mesh.sdk.interception import Interception
from toska_mesh.sdk.joined import Joined
from toska_mesh.sdk.middleware import MeshMiddleware
from toska_mesh.sdk.options import ServiceOptions

DRAIN_SECONDS = 30.0


@pytest.fixture(autouse=True)
def _nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "listening_ports", frozenset[int])


def app(*, port: int, register: bool = True) -> MeshMiddleware:
    api = FastAPI()
    api.get("/hello")(lambda: "hello")
    options = ServiceOptions(name="orders", port=port, register=register, drain_seconds=DRAIN_SECONDS)
    return MeshMiddleware(api, joined=Joined(options, metrics_registry=None))


@pytest.mark.parametrize("port", [0, 8080], ids=["any port", "a port that was named"])
async def test_a_server_that_never_opened_a_port_ends_without_any_wait(port: int) -> None:
    server = Server(app(port=port))
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        assert await server.ask("startup") == "lifespan.startup.complete"
        await asyncio.sleep(DRAIN_SECONDS / 2)
        asked_at = loop.time()
        assert await server.ask("shutdown") == "lifespan.shutdown.complete"
    assert loop.time() == asked_at


async def test_a_server_that_stops_before_the_port_says_so_where_people_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "toska")
    await live(Server(app(port=0)))
    assert "not_joined" in [word for record in caplog.records for word in record.getMessage().split()]


async def test_signals_are_nothing_to_one_that_is_not_to_be_registered(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interception, "begin", lambda self: False)
    await live(Server(app(port=0, register=False)))
    assert not caplog.records


async def live(server: Server) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        await server.ask("startup")
        await asyncio.sleep(0.1)
        await server.ask("shutdown")

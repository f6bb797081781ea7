"""Starting and stopping an ASGI app, with and without a lifespan of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from toska_mesh.sdk.lifespan import AppStartError, lifespan


async def test_the_app_is_started_for_the_length_of_the_block() -> None:
    order: list[str] = []

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        order.append("started")
        yield {"pool": 7}
        order.append("stopped")

    async with lifespan(FastAPI(lifespan=life)) as state:
        assert order == ["started"]
        assert state == {"pool": 7}
    assert order == ["started", "stopped"]


@pytest.mark.parametrize("consumes", [False, True], ids=["at the sight of it", "after reading a message"])
async def test_an_app_without_lifespan_is_served_all_the_same(consumes: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if consumes:
            await receive()
        assert scope["type"] == "http"

    async with lifespan(app) as state:
        assert state == {}


async def test_an_app_that_returns_from_its_lifespan_at_once_is_served() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    async with lifespan(app):
        pass


async def test_an_app_that_cannot_start_says_why() -> None:
    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    with pytest.raises(AppStartError, match="did not start: ConnectionError: no database") as caught:
        async with lifespan(Starlette(lifespan=life)):
            pytest.fail("it did not start")
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_a_failure_while_stopping_is_not_hidden() -> None:
    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        yield
        raise ConnectionError("could not flush")

    with pytest.raises(ConnectionError, match="could not flush"):
        async with lifespan(Starlette(lifespan=life)):
            pass


async def test_an_error_in_the_block_ends_the_app_and_goes_on() -> None:
    with pytest.raises(ValueError, match="ours"):
        async with lifespan(FastAPI()):
            raise ValueError("ours")


async def test_a_cancelled_start_leaves_nothing_behind() -> None:
    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        await asyncio.sleep(3600)
        yield

    async def serve() -> None:
        async with lifespan(Starlette(lifespan=life)):
            pass

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(serve())
        await asyncio.sleep(1)
        task.cancel()
    assert task.cancelled()

"""Tasks that serve a body end with it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Never

import pytest

from toska_mesh.aio import background_tasks


async def _forever(ended: list[str]) -> Never:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("ended")
    raise AssertionError


async def test_tasks_end_with_the_body() -> None:
    ended: list[str] = []
    async with background_tasks() as tasks:
        tasks.create_task(_forever(ended), name="forever")
        await asyncio.sleep(1)
    assert ended == ["ended"]


async def _serve(work: Callable[[], Coroutine[Any, Any, None]], body: Callable[[], Awaitable[None]]) -> None:
    async with background_tasks() as tasks:
        tasks.create_task(work(), name="work")
        await body()


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    ended: list[str] = []

    async def fail() -> None:
        await asyncio.sleep(1)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        await _serve(lambda: _forever(ended), fail)
    assert ended == ["ended"]
    assert not isinstance(caught.value, BaseExceptionGroup)


async def test_a_task_that_fails_ends_the_body() -> None:
    async def fail() -> None:
        await asyncio.sleep(1)
        raise LookupError("its own")

    with pytest.raises(ExceptionGroup) as caught:
        await _serve(fail, lambda: asyncio.sleep(10))
    assert asyncio.get_running_loop().time() == 1.0
    assert [str(error) for error in caught.value.exceptions] == ["its own"]


async def test_being_cancelled_passes_through() -> None:
    ended: list[str] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await _serve(lambda: _forever(ended), lambda: asyncio.sleep(10))
    assert ended == ["ended"]

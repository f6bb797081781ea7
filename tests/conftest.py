"""What holds for every test: no task is left behind."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import settings

from tests.support.tasks import describe

settings.register_profile("mesh", deadline=None)  # a busy machine is no failure of the code
# For `make test-unit`, which people wait for; `make test` tries every property with hypothesis' own number of examples.
settings.register_profile("quick", settings.get_profile("mesh"), max_examples=15)
settings.load_profile("mesh")

_LAST_STEPS = 20
"""Steps of the loop in which a cancelled task may still end; no time passes in them."""


_GRPC_TRIES = 100
"""gRPC hears of the end of a call from a thread of its own, so its tasks end a moment later."""


@pytest.fixture(autouse=True)
async def _no_task_left_behind() -> AsyncIterator[None]:
    """Fails the test whose tasks outlive it.

    Set up first, so torn down last: what a fixture of the test owns is gone by now.
    """
    yield
    for _ in range(_LAST_STEPS):
        if not _others():
            return
        await asyncio.sleep(0)
    for _ in range(_GRPC_TRIES):
        if not all(map(_is_of_grpc, _others())):
            break
        await asyncio.sleep(0.02)
        if not _others():
            return
    if left := _others():
        pytest.fail("tasks left behind: " + "; ".join(map(describe, left)), pytrace=False)


def _others() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def _is_of_grpc(task: asyncio.Task[object]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "").startswith("_AioCall.")

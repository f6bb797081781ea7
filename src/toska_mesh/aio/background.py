"""A task group whose tasks end with its body."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Never


class _Finished(Exception):  # noqa: N818 - never seen outside
    pass


@asynccontextmanager
async def background_tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """For tasks that serve the body: at its end they are cancelled, as nobody reads what they make after that.

    The failure of one of them ends the body, as in any task group.
    """

    async def end() -> Never:
        raise _Finished

    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
            tasks.create_task(end(), name="end")
    except* _Finished:
        pass

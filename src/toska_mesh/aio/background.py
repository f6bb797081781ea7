"""A task group whose tasks end with its body."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class _Finished(Exception):  # noqa: N818 - never seen outside
    pass


@asynccontextmanager
async def background_tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """For tasks that serve the body: at its end they are cancelled, as nobody reads what they make after that.

    What the body raises comes out as it is, in no group. The failure of one of the tasks ends the body.
    """
    failure: Exception | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            try:
                yield tasks
            except Exception as error:
                failure = error
            raise _Finished
    except* _Finished:
        pass
    if failure is not None:
        raise failure

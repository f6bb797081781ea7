"""Words for tasks in the messages of failing tests."""

import asyncio


def describe(task: asyncio.Task[object]) -> str:
    """Name, coroutine and the line where it waits."""
    frames = task.get_stack(limit=1)
    where = f" at {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else ""
    coroutine = getattr(task.get_coro(), "__qualname__", repr(task.get_coro()))
    return f"{task.get_name()} ({coroutine}){where}"

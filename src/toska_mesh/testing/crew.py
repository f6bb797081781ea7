"""The tasks that run beside a test in its fake mesh. They end with it, and what fails in one of them fails the test."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from toska_mesh.testing.history import Events


class Crew:
    """An async context manager: at its end every task is cancelled, and failures are raised as one group."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._tasks = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()
        self._failures: list[Exception] = []

    def start(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[None]:
        task = self._tasks.create_task(self._watched(work, name), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _watched(self, work: Coroutine[Any, Any, object], name: str) -> None:
        # A task group would end all others and, in a fixture, have nobody to tell.
        try:
            await work
        except Exception as exc:
            self._events.add("failed", name, repr(exc))
            self._failures.append(exc)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in list(self._running):
            task.cancel()
        await self._tasks.__aexit__(kind, exc, trace)
        if self._failures:
            raise ExceptionGroup("what ran beside the test in its fake mesh failed", self._failures)

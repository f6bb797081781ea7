"""Tasks of one request or one probe, kept from ending the process.

In a task group the failure of one task ends all; for long-running parts that is right. A dial or a probe is one of
thousands: a bug that it meets must cost its own request and nothing else.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from toska_mesh.telemetry import event_log

log = event_log("guard")


class ContainedTasks:
    """Starts tasks in a group that they cannot bring down."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks

    def create_task(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        task = self._tasks.create_task(_contain(work, name), name=name)
        # One that is cancelled before its first step would leave its work behind, begun by nobody.
        task.add_done_callback(lambda _: work.close())


async def _contain(work: Coroutine[Any, Any, None], name: str) -> None:
    try:
        await work
    except Exception:
        log.exception("task_failed", task=name)

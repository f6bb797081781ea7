"""Group commit: many commands, one transaction. The commands' answers wait for it.

While one batch is being written in a thread, the rows of all commands that follow collect in the next; so the number of
commits per second is the disk's and the number of commands per commit follows the load. State owned by one event loop.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping

from toska_mesh.errors import MeshError
from toska_mesh.registryd.changes import RowKey
from toska_mesh.telemetry import event_log

log = event_log("registry.store")

Rows = Mapping[RowKey, bytes | None]
Apply = Callable[[Rows, int], None]
Submit = Callable[[Callable[[], None]], "asyncio.Future[None]"]
"""Runs a function elsewhere; the future ends with it."""

_RETRY_SECONDS = 1.0


class NotDurableError(MeshError):
    """The change is in memory, but the disk refused it. It is written as soon as the disk takes it."""


class GroupWriter:
    """`on_health` hears None when the disk works again, and what is wrong when it does not."""

    def __init__(
        self, apply: Apply, submit: Submit, on_health: Callable[[str | None], None], on_batch: Callable[[int], None]
    ) -> None:
        self._apply = apply
        self._submit = submit
        self._on_health = on_health
        self._on_batch = on_batch
        self._rows: dict[RowKey, bytes | None] = {}
        self._index = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._is_writing = False
        self._retry: asyncio.TimerHandle | None = None
        self._failure: str | None = None

    def add(self, rows: Rows, index: int) -> None:
        """Take the rows of one command. It belongs to the next batch whole, never to two."""
        self._rows.update(rows)
        self._index = index
        if not self._is_writing and self._retry is None:
            # Not at once: the commands of this turn of the loop share the batch.
            asyncio.get_running_loop().call_soon(self._write)
            self._is_writing = True

    async def durable(self) -> None:
        """Until everything added so far is on disk. Raises NotDurableError when the disk refuses."""
        if not self._rows and not self._is_writing:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        await done

    @property
    def is_idle(self) -> bool:
        return not self._rows and not self._is_writing

    def _write(self) -> None:
        self._retry = None
        self._is_writing = True
        rows, self._rows = self._rows, {}
        waiting, self._waiting = self._waiting, []
        index = self._index
        future = self._submit(lambda: self._apply(rows, index))
        future.add_done_callback(lambda done: self._settle(done, rows, waiting))

    def _settle(self, done: "asyncio.Future[None]", rows: Rows, waiting: list["asyncio.Future[None]"]) -> None:
        self._is_writing = False
        failure = done.exception()
        if failure is None:
            self._report(None)
            self._on_batch(len(rows))
            if self._rows:
                self._write()
            else:  # who came meanwhile with nothing to write waited only for this batch
                waiting, self._waiting = [*waiting, *self._waiting], []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)
            return
        if not isinstance(failure, sqlite3.Error):
            raise failure  # a bug of ours: to the loop's handler
        self._rows = {**rows, **self._rows}  # newer rows win
        self._report(str(failure))
        refused = NotDurableError(f"the registry's disk refuses to write: {failure}")
        for waiter in [*waiting, *self._waiting]:
            if not waiter.done():
                waiter.set_exception(refused)
        self._waiting = []
        self._retry = asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._write)

    def _report(self, failure: str | None) -> None:
        if failure == self._failure:
            return
        self._failure = failure
        if failure is None:
            log.info("store_writable_again")
        else:
            log.error("store_refuses_to_write", error=failure)
        self._on_health(failure)

    async def close(self, seconds: float) -> bool:
        """Wait for what is pending, at most so long. False when something could not be written."""
        try:
            async with asyncio.timeout(seconds):
                await self.durable()
        except (TimeoutError, NotDurableError):
            pass
        if self._retry is not None:
            self._retry.cancel()
        return self.is_idle

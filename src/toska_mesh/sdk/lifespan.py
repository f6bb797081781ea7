"""Starting and stopping an ASGI app: its lifespan (ASGI lifespan protocol 2.0), the same under every server of ours.

Servers differ in what they do when an app fails to start: one exits the process from inside, one goes on. Here it is an
exception with the app's own one as its cause.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from toska_mesh.errors import MeshError
from toska_mesh.sdk.asgi import ASGIApp, Message
from toska_mesh.telemetry import event_log

log = event_log("sdk")


class AppStartError(MeshError):
    """The app said, or showed, that it cannot start."""


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[dict[str, Any]]:
    """The app is started for the length of the block; gives the state that it keeps for its requests.

    An app that knows no lifespan raises at the sight of it, which the specification allows: nothing to start then.
    """
    run = _Run(app)
    error: BaseException | None = None
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(run.run(), name="lifespan of the app")
        try:
            await run.started()
            yield run.state
            await run.stopped()
        except BaseException as exc:
            task.cancel()
            error = exc  # raised outside of the group, which would wrap it
    if error is not None:
        raise error


class _Run:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.state: dict[str, Any] = {}
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self._has_started = False
        self._is_over = False
        self._error: Exception | None = None

    async def run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._messages.get, self._answers.put)
        except Exception as exc:
            self._error = exc
        finally:
            self._is_over = True
            self._answers.put_nowait({"type": "over"})

    async def started(self) -> None:
        self._messages.put_nowait({"type": "lifespan.startup"})
        answer = await self._answers.get()
        match answer["type"]:
            case "lifespan.startup.complete":
                self._has_started = True
            case "lifespan.startup.failed":
                words = str(answer.get("message") or "").strip().splitlines()
                raise AppStartError(f"the app did not start: {words[-1] if words else 'it gave no reason'}") from (
                    await self._cause()
                )
            case _:
                log.debug("app_without_lifespan", reason=repr(self._error))

    async def stopped(self) -> None:
        """Raises the app's own exception when its shutdown failed."""
        if not self._has_started or self._is_over:
            if self._has_started and self._error is not None:
                raise self._error
            return
        self._messages.put_nowait({"type": "lifespan.shutdown"})
        answer = await self._answers.get()
        if answer["type"] == "lifespan.shutdown.failed":
            log.error("app_shutdown_failed", reason=str(answer.get("message", "")).strip())
        if answer["type"] != "over":
            await self._answers.get()
        if self._error is not None:
            raise self._error

    async def _cause(self) -> Exception | None:
        if not self._is_over:
            await self._answers.get()
        return self._error

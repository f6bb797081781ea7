"""An HTTP server in memory: aiohttp's own, whose requests can be ended all at once, as the end of a process does."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

_LAST_SECONDS = 0.001
"""aiohttp takes 0 for "without end"."""


class MemoryServer:
    """Make one inside the running loop; `connection` gives the protocol of a new connection."""

    def __init__(self, answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        self._answer = answer
        self._server = web.Server(self._serve, access_log=None)
        self._answering: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def connection(self, request_factory: Any) -> asyncio.Protocol:
        """`request_factory`: how the app's requests are made; None for aiohttp's plain ones."""
        if request_factory is not None:
            self._server.request_factory = request_factory
        return self._server()

    @property
    def in_flight(self) -> int:
        """Requests whose answer has not been written."""
        return len(self._answering)

    async def idle(self) -> None:
        """Until every answer has been written."""
        await self._idle.wait()

    def kill(self) -> None:
        """Let everything that is being answered end here and now."""
        for task in self._answering:
            task.cancel()

    async def close(self) -> None:
        self.kill()
        if self._answering:
            await asyncio.wait(self._answering)
        await self._server.shutdown(_LAST_SECONDS)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()  # aiohttp's, which writes the answer once we have returned it
        if task is not None:
            self._answering.add(task)
            self._idle.clear()
            task.add_done_callback(self._over)
        return await self._answer(request)

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._answering.discard(task)
        if not self._answering:
            self._idle.set()

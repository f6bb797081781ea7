"""An ASGI app under uvicorn, inside a loop of ours.

uvicorn's own signal handling and lifespan are off: it would close its listener before anything else, and exit the
process from inside when an app fails to start.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn

from toska_mesh.sdk.asgi import MeshASGI
from toska_mesh.sdk.hosts import BACKLOG, KEEP_ALIVE_SECONDS
from toska_mesh.sdk.lifespan import lifespan

_LAST_SECONDS = 0.5
"""For requests to notice that they are cut off."""


class UvicornHost:
    """See `hosts.Host`."""

    def __init__(self, app: MeshASGI, listening: socket.socket) -> None:
        self.started = asyncio.Event()
        self._app = app
        self._listening = listening
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._server = _Server(config, self.started)

    async def run(self) -> None:
        async with lifespan(self._app) as state:
            self._app.state = state
            with self._without_expected_noise():
                try:
                    await self._server.serve(sockets=[self._listening])
                finally:
                    await self._cut_off()

    def stop(self, seconds: float) -> None:
        self._server.config.timeout_graceful_shutdown = max(1, round(seconds))
        self._server.should_exit = True

    async def _cut_off(self) -> None:
        """End the requests that have outlived all waiting here, where it is known why."""
        late = tuple(self._server.server_state.tasks)
        for request in late:
            request.cancel()
        if late:
            await asyncio.wait(late, timeout=_LAST_SECONDS)

    @contextlib.contextmanager
    def _without_expected_noise(self) -> Iterator[None]:
        """uvicorn tells the whole stack of a request that it cuts off as if that were a bug of the app's."""

        def is_news(record: logging.LogRecord) -> bool:
            error = record.exc_info[1] if record.exc_info else None
            return not (self._server.should_exit and isinstance(error, asyncio.CancelledError))

        logger = logging.getLogger("uvicorn.error")
        logger.addFilter(is_news)
        try:
            yield
        finally:
            logger.removeFilter(is_news)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: asyncio.Event) -> None:
        super().__init__(config)
        self._told_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._told_started.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

"""An ASGI app under uvicorn, inside a loop of ours.

uvicorn's own signal handling and lifespan are off: it would close its listener before anything else, and exit the
process from inside when an app fails to start.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from toska_mesh.sdk.asgi import MeshASGI
from toska_mesh.sdk.hosts import BACKLOG, KEEP_ALIVE_SECONDS
from toska_mesh.sdk.lifespan import lifespan


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
            await self._server.serve(sockets=[self._listening])

    def stop(self, seconds: float) -> None:
        self._server.config.timeout_graceful_shutdown = max(1, round(seconds))
        self._server.should_exit = True


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

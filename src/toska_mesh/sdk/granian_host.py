"""An ASGI app under granian, inside a loop of ours: its embedded server, with the lifespan driven here.

The embedded server binds for itself. So that the port is known before and stays ours, our socket is bound to it too and
never listens; granian's own shares the port with it (SO_REUSEPORT).
"""

import asyncio
import contextlib
import logging
import socket

from granian.constants import Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from toska_mesh.sdk.asgi import MeshASGI
from toska_mesh.sdk.hosts import BACKLOG, KEEP_ALIVE_SECONDS
from toska_mesh.sdk.lifespan import lifespan

_PROBE_SECONDS = 0.01


def _is_news(record: logging.LogRecord) -> bool:
    """granian tells the future of a server that it gave up waiting for that it has ended: no bug of the app's."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, asyncio.InvalidStateError) and "shutdown_glue" in record.getMessage())


class GranianHost:
    """See `hosts.Host`. `reserved` is bound with `is_shared`."""

    def __init__(self, app: MeshASGI, reserved: socket.socket) -> None:
        self.started = asyncio.Event()
        self._app = app
        self._reserved = reserved
        address, port = reserved.getsockname()[:2]
        self._server = Server(
            app,
            address=address,
            port=port,
            interface=Interfaces.ASGINL,
            backlog=BACKLOG,
            http1_settings=HTTP1Settings(header_read_timeout=KEEP_ALIVE_SECONDS * 1000),
            log_enabled=False,
        )

    async def run(self) -> None:
        async with lifespan(self._app) as state, asyncio.TaskGroup() as tasks:
            self._app.state = state
            probe = tasks.create_task(self._until_listening(), name="wait for granian's listener")
            with contextlib.suppress(TimeoutError):  # what is in flight has not ended in the time it had
                await self._server.serve()
            probe.cancel()

    def stop(self, seconds: float) -> None:
        # Left in place: the call that fails comes from granian's thread, when it likes, also after our end.
        logging.getLogger("asyncio").addFilter(_is_news)
        self._server.workers_kill_timeout = max(1, round(seconds))
        self._server.stop()  # type: ignore[no-untyped-call]

    async def _until_listening(self) -> None:
        """It listens from a thread of its own and tells nobody when."""
        address, port = self._reserved.getsockname()[:2]
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        while True:
            try:
                _, writer = await asyncio.open_connection(address, port)
            except OSError:
                await asyncio.sleep(_PROBE_SECONDS)
                continue
            writer.close()
            self.started.set()
            return

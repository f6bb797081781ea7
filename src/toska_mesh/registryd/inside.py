"""The registry inside somebody else's process: Consul's HTTP API on a port of their event loop, without a daemon.

No settings, no signals, no disk: for tests, and needs nothing that only the daemons need.
"""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from toska_mesh.registryd.engine import Engine, keep_time
from toska_mesh.registryd.memory import MemoryStore
from toska_mesh.registryd.node import Node
from toska_mesh.registryd.server import ApiServer

_LAST_ANSWERS_SECONDS = 1.0


@asynccontextmanager
async def open_registry(
    store: MemoryStore, *, host: str = "127.0.0.1", port: int = 0, token: str = ""
) -> AsyncIterator[int]:
    """Serve what the store holds until the context ends; gives the port. Changes go back into the store."""
    clock = asyncio.get_running_loop().time
    with socket.create_server((host, port)) as listener:
        port = int(listener.getsockname()[1])
        node = Node(str(uuid.uuid4()), socket.gethostname(), host, port)
        engine = Engine.build(store.load(), node, clock, store.add, store.durable, token=token)
        app = web.Application()
        app.router.add_routes(ApiServer(engine.api).routes())
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,  # a blocked query whose client has left
            shutdown_timeout=_LAST_ANSWERS_SECONDS,
        )
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            async with asyncio.TaskGroup() as tasks:
                expiry = tasks.create_task(keep_time(engine.state, clock, lambda _: None), name="expire")
                try:
                    yield port
                finally:
                    engine.watches.close()  # blocked queries answer now, with what there is
                    expiry.cancel()
        finally:
            await runner.cleanup()

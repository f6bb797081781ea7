"""`MeshMiddleware`: an ASGI app joins the mesh under whatever server carries it.

As a wrapper (`app = join(app, name="orders")`) or among the app's own middlewares
(`app.add_middleware(MeshMiddleware, name="orders")`): either way it sees the lifespan, which it passes through.
"""

import asyncio
from collections.abc import Mapping
from typing import Unpack

from prometheus_client import REGISTRY, CollectorRegistry

from toska_mesh.errors import ConfigError
from toska_mesh.sdk import apps
from toska_mesh.sdk.apps import AnyASGIApp
from toska_mesh.sdk.asgi import ASGIApp, MeshASGI, Message, Receive, Scope, Send
from toska_mesh.sdk.checks import HealthCheck
from toska_mesh.sdk.defaults import chosen_options
from toska_mesh.sdk.joined import Joined
from toska_mesh.sdk.options import ServiceOptions
from toska_mesh.sdk.overrides import ServiceOverrides
from toska_mesh.telemetry import event_log

log = event_log("sdk")

JOINED_ALREADY = "the app has joined already; give the app itself, join() is for servers of somebody else's"

_STARTED, _NOT_STARTED = "lifespan.startup.complete", "lifespan.startup.failed"


class MeshMiddleware:
    """Options as for `serve`. The server has to run the lifespan: without it nothing is registered."""

    def __init__(
        self,
        app: AnyASGIApp,
        options: ServiceOptions | None = None,
        *,
        checks: Mapping[str, HealthCheck] | None = None,
        metrics_registry: CollectorRegistry | None = REGISTRY,
        joined: Joined | None = None,
        **overrides: Unpack[ServiceOverrides],
    ) -> None:
        if isinstance(app, MeshMiddleware):
            raise ConfigError(JOINED_ALREADY)
        if apps.is_aiohttp(apps.ready(app)):
            raise ConfigError("an aiohttp Application takes no ASGI middleware; join(app) does the same for it")
        self.joined = joined or Joined(chosen_options(options, overrides), checks, metrics_registry)
        self._app = app
        self._asgi = MeshASGI(app, self.joined.stay.edge)
        self._has_lifespan = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            if not self._has_lifespan:
                self._has_lifespan = True  # said once
                log.warning("not_joined", reason="the server does not run the app's lifespan; turn it on")
            await self._asgi(scope, receive, send)
            return
        self._has_lifespan = True
        error: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            life = _Life(self.joined, tasks, receive, send)
            try:
                await life.run(self._app, scope)
            except Exception as exc:
                error = exc  # raised outside of the group, which would wrap it
            finally:
                life.end()
        if error is not None:
            raise error


class _Life:
    """One lifespan: the app's own, with ours around it."""

    def __init__(self, joined: Joined, tasks: asyncio.TaskGroup, receive: Receive, send: Send) -> None:
        self._joined = joined
        self._tasks = tasks
        self._receive = receive
        self._send = send
        self._task: asyncio.Task[None] | None = None
        self._is_asked = False
        """The server has said `startup`."""
        self._is_answered = False
        self._has_ended = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        self._joined.prepare()
        try:
            await app(scope, self._hear, self._say)
        except Exception:
            if self._is_answered:
                raise
            # The app knows no lifespan, which the specification lets it show in this way.
        if not self._is_asked:
            await self._hear()
        if not self._is_answered:
            await self._say({"type": _STARTED})
        if self._task is not None and not self._has_ended:
            await self._hear()
            await self._send({"type": "lifespan.shutdown.complete"})

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _hear(self) -> Message:
        message = await self._receive()
        if message["type"] == "lifespan.startup":
            self._is_asked = True
        elif message["type"] == "lifespan.shutdown":
            self._has_ended = True
            if self._task is not None:
                await self._joined.leave()
        return message

    async def _say(self, message: Message) -> None:
        await self._send(message)
        self._is_answered = self._is_answered or message["type"] in (_STARTED, _NOT_STARTED)
        if message["type"] == _STARTED and self._task is None:
            self._task = self._tasks.create_task(self._joined.run(), name="join the mesh")

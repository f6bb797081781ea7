"""The aiohttp edge: a middleware and a signal on an Application, and a host that serves one.

A route of the app for exactly one of our paths wins, a pattern that also matches it does not.
"""

import asyncio
import contextlib
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import WSCloseCode, web

from toska_mesh.errors import ConfigError
from toska_mesh.sdk.context import context_of, serving_request
from toska_mesh.sdk.endpoints import Edge
from toska_mesh.sdk.hosts import BACKLOG, KEEP_ALIVE_SECONDS
from toska_mesh.sdk.joined import Joined

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_Websockets = weakref.WeakSet[web.WebSocketResponse]
_WEBSOCKETS: web.AppKey[_Websockets] = web.AppKey("toska_websockets", weakref.WeakSet)

_LAST_SECONDS = 0.5
"""What aiohttp's own shutdown may take once nothing is in flight any more."""


def add_edge(app: web.Application, edge: Edge) -> None:
    """Put the edge around everything that the app does; before it starts. Raises ConfigError for the second time."""
    if _WEBSOCKETS in app:
        raise ConfigError("this aiohttp Application has joined the mesh already; serve or join it once")
    mesh = _MeshMiddleware(edge)
    app.middlewares.insert(0, mesh.serve)
    app.on_response_prepare.append(mesh.prepare)
    app.on_shutdown.append(_close_websockets)
    app[_WEBSOCKETS] = mesh.websockets


def add_stay(app: web.Application, joined: Joined) -> None:
    """Let the app join when its server, whichever that is, listens, and leave before that closes."""
    add_edge(app, joined.stay.edge)

    async def stay(_: web.Application) -> AsyncIterator[None]:
        joined.prepare()
        async with asyncio.TaskGroup() as tasks:
            joining = tasks.create_task(joined.run(), name="join the mesh")
            yield
            await joined.leave()
            joining.cancel()

    app.cleanup_ctx.append(stay)


class AiohttpHost:
    """See `hosts.Host`."""

    def __init__(self, app: web.Application, edge: Edge, listening: socket.socket) -> None:
        self.started = asyncio.Event()
        self._app = app
        self._edge = edge
        self._listening = listening
        self._is_stopping = asyncio.Event()
        self._finish_seconds = 0.0

    async def run(self) -> None:
        runner = web.AppRunner(
            self._app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            shutdown_timeout=_LAST_SECONDS,
        )
        try:
            await runner.setup()
            site = web.SockSite(runner, self._listening, backlog=BACKLOG)
            await site.start()
            self.started.set()
            await self._is_stopping.wait()
            await site.stop()
            # The wait is ours: aiohttp's own shutdown stops reading the bodies that still arrive.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._finish_seconds):
                    await _close_websockets(self._app)
                    await self._edge.in_flight.idle()
        finally:
            await runner.cleanup()

    def stop(self, seconds: float) -> None:
        self._finish_seconds = seconds
        self._is_stopping.set()


class _MeshMiddleware:
    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self.websockets = _Websockets()

    @web.middleware
    async def serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        edge = self._edge
        if edge.owns(request.method, request.path) and not _has_own_route(request):
            answer = await edge.answer(request.path, request.headers.get("Accept", ""))
            return web.Response(body=answer.body, status=answer.status, headers={"Content-Type": answer.content_type})
        loop = asyncio.get_running_loop()
        began = loop.time()
        answering = asyncio.current_task()
        if answering is not None:
            # aiohttp gives each request a task of its own, which writes the answer after we have returned it.
            edge.in_flight.begin()
            answering.add_done_callback(lambda _: edge.in_flight.end())
        status = 500
        try:
            with serving_request(context_of(request.headers, began)):
                response = await handler(request)
            status = response.status
        except web.HTTPException as exc:
            status = exc.status
            raise
        finally:
            edge.metrics.observe(request.method, status, loop.time() - began)
        return response

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """While draining the client is asked to use another connection next time."""
        if isinstance(response, web.WebSocketResponse):
            self.websockets.add(response)
        elif self._edge.is_draining:
            response.force_close()
            if request.version >= (1, 1):
                response.headers["Connection"] = "close"


async def _close_websockets(app: web.Application) -> None:
    """Tell those at the other end to connect anew, which brings them to another instance by now."""
    websockets = app[_WEBSOCKETS]
    async with asyncio.TaskGroup() as tasks:
        for websocket in tuple(websockets):
            tasks.create_task(_close(websocket), name="close a websocket")


async def _close(websocket: web.WebSocketResponse) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError):  # it is gone already
        await websocket.close(code=WSCloseCode.SERVICE_RESTART, message=b"the service restarts")


def _has_own_route(request: web.Request) -> bool:
    match = request.match_info
    if match.http_exception is not None:
        return False
    resource = match.route.resource
    return resource is not None and resource.canonical == request.path

"""What answers for a fake service: a plain function, an ASGI app or an aiohttp application, each as one handler.

Real HTTP arrives here, parsed by aiohttp's own server over the network in memory; so an app sees what it would see in
production, down to a client that leaves in the middle.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from urllib.parse import unquote

import orjson
from aiohttp import web

from toska_mesh.sdk.asgi import ASGIApp, Message
from toska_mesh.sdk.lifespan import lifespan
from toska_mesh.testing.crew import Crew
from toska_mesh.testing.network import MemoryTransport

PROBER = "toska-mesh"
"""How the probes of a caller's guard name themselves (User-Agent)."""

_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """What a plain function gets. Header names are in lower case."""

    method: str
    path: str
    """Percent-decoded, without the query."""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    instance: str = ""
    """Id of the instance that was asked."""

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return orjson.loads(self.body)


@dataclass(frozen=True, slots=True)
class FakeResponse:
    """What a plain function may give; also good are a status, a text, bytes, anything JSON can hold (a dict, a list),
    a pair of status and one of these, or None for 204."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


FunctionHandler = Callable[[FakeRequest], Any]
ServiceApp = web.Application | ASGIApp | FunctionHandler


class Handler(Protocol):
    """One app."""

    @property
    def request_factory(self) -> Any:
        """How aiohttp's server makes its request objects for this app; None for its own way."""

    async def start(self, crew: Crew) -> None:
        """Let the app start up. What runs beside its requests is the crew's."""

    async def answer(self, request: web.BaseRequest, instance: str) -> web.StreamResponse:
        """Let the app answer."""

    async def close(self) -> None:
        """Let the app shut down."""


class Handled:
    """An app that starts when its first instance does, once for all that share it."""

    def __init__(self, handler: Handler, crew: Crew) -> None:
        self.handler = handler
        self._crew = crew
        self._starting = crew.start(self._start(), "start an app")
        self._has_started = False

    async def _start(self) -> None:
        await self.handler.start(self._crew)
        self._has_started = True

    async def started(self) -> bool:
        """Wait for it. False when the app could not start; the test hears why at its end."""
        if not self._starting.done():
            await asyncio.wait([self._starting])
        return self._has_started

    async def close(self) -> None:
        if await self.started():
            await self.handler.close()


def handler_of(app: ServiceApp) -> Handler:
    """Raises TypeError for what is none of the three."""
    if isinstance(app, web.Application):
        return AiohttpHandler(app)
    if callable(app):
        arity = _arity(app)
        if arity == 1:
            return FunctionAnswers(cast(FunctionHandler, app))
        if arity == 3:
            return AsgiHandler(cast(ASGIApp, app))
    raise TypeError(
        f"{app!r} is no service: give a function of one request, an ASGI app (scope, receive, send), or an aiohttp "
        "Application"
    )


def _arity(app: Callable[..., Any]) -> int:
    """How many arguments it has to be called with."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(app).parameters.values()
    return sum(1 for one in parameters if one.kind in kinds and one.default is inspect.Parameter.empty)


class FunctionAnswers:
    request_factory = None

    def __init__(self, function: FunctionHandler) -> None:
        self._function = function

    async def start(self, crew: Crew) -> None:
        pass

    async def close(self) -> None:
        pass

    async def answer(self, request: web.BaseRequest, instance: str) -> web.StreamResponse:
        if request.headers.get("User-Agent") == PROBER:
            return web.Response()  # a function is about the requests of the test
        asked = FakeRequest(
            method=request.method,
            path=request.path,
            query=dict(request.query),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.read(),
            instance=instance,
        )
        given = self._function(asked)
        if inspect.isawaitable(given):
            given = await given
        answer = _as_response(given)
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


def _as_response(given: Any) -> FakeResponse:
    status = 200
    if isinstance(given, tuple) and len(given) == 2 and _is_status(given[0]):
        status, given = given
    match given:
        case FakeResponse():
            return given
        case None:
            return FakeResponse(204 if status == 200 else status)
        case bytes():
            return FakeResponse(status, given, {"Content-Type": "application/octet-stream"})
        case str():
            return FakeResponse(status, given.encode(), {"Content-Type": "text/plain; charset=utf-8"})
        case _:
            pass
    if _is_status(given):
        return FakeResponse(given)
    return FakeResponse(status, orjson.dumps(given), {"Content-Type": "application/json"})


def _is_status(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 200 <= value <= 599


class AiohttpHandler:
    """Instances that were given the same application share it, with its state."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None)
        self.request_factory: Any = None
        self._handle: Any = None

    async def start(self, crew: Crew) -> None:
        await self._runner.setup()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the aiohttp application has not started")
        self.request_factory, self._handle = server.request_factory, server.request_handler

    async def close(self) -> None:
        await self._runner.cleanup()

    async def answer(self, request: web.BaseRequest, instance: str) -> web.StreamResponse:
        response: web.StreamResponse = await self._handle(request)
        return response


class AsgiHandler:
    """The app's lifespan runs in a task of its own, as long as the mesh does."""

    request_factory = None

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._state: dict[str, Any] = {}
        self._has_started = asyncio.Event()
        self._may_end = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    async def start(self, crew: Crew) -> None:
        self._life = crew.start(self._live(), "lifespan of an ASGI app")
        waiting = crew.start(self._has_started.wait(), "wait for an ASGI app")
        await asyncio.wait([self._life, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not self._has_started.is_set():
            waiting.cancel()
            raise RuntimeError("the ASGI app did not start")

    async def _live(self) -> None:
        async with lifespan(self._app) as self._state:
            self._has_started.set()
            await self._may_end.wait()

    async def close(self) -> None:
        self._may_end.set()
        if self._life is not None:
            await asyncio.wait([self._life])

    async def answer(self, request: web.BaseRequest, instance: str) -> web.StreamResponse:
        exchange = _AsgiExchange(request)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": f"{request.version.major}.{request.version.minor}",
            "method": request.method,
            "scheme": request.scheme,
            "path": unquote(request.rel_url.raw_path),
            "raw_path": request.rel_url.raw_path.encode(),
            "query_string": request.rel_url.raw_query_string.encode(),
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.raw_headers],
            "client": request.transport and request.transport.get_extra_info("peername"),
            "server": request.transport and request.transport.get_extra_info("sockname"),
            "state": dict(self._state),
        }
        await self._app(scope, exchange.receive, exchange.send)
        if exchange.response is None:
            raise RuntimeError("the ASGI app ended without an answer")
        return exchange.response


class _AsgiExchange:
    """One request and its answer, as ASGI messages."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self._is_read = False
        self._head: Message = {}
        self.response: web.StreamResponse | None = None
        self._is_done = asyncio.Event()
        """The answer is complete, or nobody is there to read it."""
        if isinstance(request.transport, MemoryTransport):
            request.transport.when_lost(self._is_done.set)

    async def receive(self) -> Message:
        if self._is_read:
            await self._is_done.wait()
            return {"type": "http.disconnect"}
        chunk = await self._request.content.read(_CHUNK_BYTES)
        self._is_read = self._request.content.at_eof()
        return {"type": "http.request", "body": chunk, "more_body": not self._is_read}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        body, has_more = message.get("body", b""), message.get("more_body", False)
        if self.response is None:
            self.response = self._make(body if not has_more else None)
            if not has_more:
                self._is_done.set()
                return
            await self.response.prepare(self._request)
        await self.response.write(body)
        if not has_more:
            await self.response.write_eof()
            self._is_done.set()

    def _make(self, body: bytes | None) -> web.StreamResponse:
        """The answer; with its whole body unless that comes in pieces."""
        status = self._head["status"]
        response = web.StreamResponse(status=status) if body is None else web.Response(status=status, body=body)
        response.headers.popall("Content-Type", None)
        for name, value in self._head.get("headers", ()):
            if bytes(name).lower() != b"transfer-encoding":  # the server's own business
                response.headers.add(bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
        return response

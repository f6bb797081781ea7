"""The ASGI edge: wraps any ASGI app, counts, answers the mesh's own paths, sets the request's context.

Whether the app has a route of its own for one of our paths is asked of its router where it has one (Starlette, FastAPI
and what is built on them); an app without a router gives its paths away only by answering, so there ours win.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from toska_mesh.sdk.context import READ_NAMES, context_of, enter, leave
from toska_mesh.sdk.endpoints import Edge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_READ = frozenset(name.encode("ascii") for name in READ_NAMES)
_CLOSE = (b"connection", b"close")
_DEEPEST_CHAIN = 32
"""Middlewares around a router; a chain beyond this is a loop."""


class MeshASGI:
    """`app` as the mesh wants it. The lifespan passes through untouched."""

    def __init__(self, app: ASGIApp, edge: Edge) -> None:
        self._app = app
        self._edge = edge
        self._own_routes: dict[str, bool] = {}
        self.state: dict[str, Any] | None = None
        """What the app's lifespan keeps for its requests, where we drive it; a server that does puts it in itself."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        edge = self._edge
        if self.state is not None:
            scope["state"] = self.state.copy()
        if scope["type"] == "http" and edge.owns(scope["method"], scope["path"]) and not self._is_routed(scope):
            await self._answer(scope, send)
            return
        # Written out rather than as nested context managers: this is on the way of every request.
        loop = asyncio.get_running_loop()
        began = loop.time()
        is_http = scope["type"] == "http"
        observed = _Observed(send, edge, scope.get("http_version", "1.1")) if is_http else None
        edge.in_flight.begin()
        token = enter(context_of(_Fields(scope["headers"]), began))
        try:
            await self._app(scope, receive, observed or send)
        finally:
            leave(token)
            edge.in_flight.end()
            if observed is not None:
                # An app that raises before its head becomes the server's 500.
                edge.metrics.observe(scope["method"], observed.status or 500, loop.time() - began)

    async def _answer(self, scope: Scope, send: Send) -> None:
        accept = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")
        answer = await self._edge.answer(scope["path"], accept)
        headers = [
            (b"content-type", answer.content_type.encode("latin-1")),
            (b"content-length", b"%d" % len(answer.body)),
        ]
        if self._edge.is_draining and _closes(scope.get("http_version", "1.1")):
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})

    def _is_routed(self, scope: Scope) -> bool:
        """Whether the app's router has a route for this path that is not one for any path."""
        path = scope["path"]
        known = self._own_routes.get(path)
        if known is None:
            known = self._own_routes[path] = _has_own_route(_router(scope.get("app") or self._app), path)
        return known


class _Fields:
    """Of a request's raw fields, whose names are in small letters here, those that a context is made from."""

    __slots__ = ("_raw",)

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw

    def items(self) -> list[tuple[str, str]]:
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._raw if name in _READ]


class _Observed:
    """`send` that keeps the status and, while draining, asks the client to use another connection next time."""

    __slots__ = ("_edge", "_http_version", "_send", "status")

    def __init__(self, send: Send, edge: Edge, http_version: str) -> None:
        self._send = send
        self._edge = edge
        self._http_version = http_version
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._edge.is_draining and _closes(self._http_version):
                kept = [field for field in message.get("headers", ()) if bytes(field[0]).lower() != b"connection"]
                message = {**message, "headers": [*kept, _CLOSE]}
        await self._send(message)


def _closes(http_version: str) -> bool:
    return http_version.startswith("1")  # HTTP/2 has no such field (RFC 9113 section 8.2.2)


class _Route(Protocol):
    def matches(self, scope: Scope) -> tuple[Any, Any]: ...


def _router(app: object) -> list[_Route]:
    """The routes of the app, looked for through the middlewares around it."""
    for _ in range(_DEEPEST_CHAIN):
        routes = getattr(app, "routes", None)
        if isinstance(routes, list) and all(callable(getattr(route, "matches", None)) for route in routes):
            return routes
        app = getattr(app, "app", None)
        if app is None:
            break
    return []


def _has_own_route(routes: list[_Route], path: str) -> bool:
    """A route for any path also takes one that nobody can have meant."""
    nobody = uuid.uuid4().hex
    unmeant = "/" + "/".join(nobody for _ in path.strip("/").split("/"))
    found = _first_match(routes, path)
    return found is not None and found is not _first_match(routes, unmeant)


def _first_match(routes: list[_Route], path: str) -> _Route | None:
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": [], "query_string": b""}
    for route in routes:
        match, _ = route.matches(dict(scope))
        if getattr(match, "name", "") == "FULL":
            return route
    return None

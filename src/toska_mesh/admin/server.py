"""The small HTTP server that every daemon carries: health, metrics, and whatever routes the daemon adds.

Never in the path of proxied requests.
"""

import errno
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from toska_mesh.admin.health import Health, HealthReport
from toska_mesh.errors import ConfigError
from toska_mesh.telemetry import event_log

log = event_log("admin")

_ANY_CASE = re.compile(r"\{\w+:\(\?i:([^)]*)\)\}")
_PATTERN = re.compile(r"\{(\w+):[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")  # quantifiers have braces too

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_response(body: object, status: int = 200, content_type: str = "application/json") -> web.Response:
    return web.Response(body=orjson.dumps(body, default=str), status=status, content_type=content_type)


def problem(status: int, code: str, title: str, detail: str = "") -> web.Response:
    """An RFC 9457 problem document with a stable `code`."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    return json_response(body, status, "application/problem+json")


def port_in_use(port: int, variable: str, exc: OSError, host: str = "") -> Exception:
    """What to raise for a failed bind: a ConfigError that names the setting at fault, or `exc` if it is another fault.

    The host's variable is the port's with `HOST` for `PORT`; a daemon's second port, `X_HTTP_PORT`, shares `X_HOST`.
    """
    if exc.errno == errno.EADDRINUSE:
        return ConfigError(f"port {port} is in use by another program; stop it or set {variable} to a free port")
    if exc.errno == errno.EACCES:
        return ConfigError(f"port {port} may not be opened by this user; set {variable} to a port above 1023")
    if exc.errno == errno.EADDRNOTAVAIL or isinstance(exc, socket.gaierror):
        host_variable = variable.replace("_HTTP_PORT", "_PORT").replace("_PORT", "_HOST")
        return ConfigError(f"{host_variable}={host!r} is not an address or host name of this machine")
    return exc


class AdminServer:
    """Serves `/health`, `/health/live`, `/health/ready`, `/metrics` and `routes`. An async context manager.

    `variable` is the setting that names the port, for the error when the port is taken. Raises ConfigError then.
    Without `metrics` the daemon brings its own `/metrics` among the routes. `unix_path` serves on a Unix socket instead
    of host and port, `listening` on sockets that are bound already. `cancel_on_disconnect` cancels a handler whose
    client has left: for long polls, which would pile up otherwise.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        variable: str,
        health: Health,
        metrics: CollectorRegistry | None,
        routes: Iterable[web.RouteDef] = (),
        middlewares: Iterable[Middleware] = (),
        max_body_bytes: int = 1024 * 1024,
        cancel_on_disconnect: bool = False,
        unix_path: str = "",
        listening: Sequence[socket.socket] = (),
    ) -> None:
        self._host = host
        self._listening = listening
        self._unix_path = unix_path
        self._wanted_port = port
        self._variable = variable
        table = [
            web.get("/health", _reporter(health.overall)),
            web.get("/health/live", _reporter(health.live)),
            web.get("/health/ready", _reporter(health.ready)),
            *([web.get("/metrics", _metrics_server(metrics))] if metrics is not None else []),
            *routes,
        ]
        app = web.Application(middlewares=[_errors_as_problems(table), *middlewares], client_max_size=max_body_bytes)
        app.router.add_routes(table)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=2.0,
            handler_cancellation=cancel_on_disconnect,
        )
        self.port = 0
        """The bound port, once entered (of interest when 0 was asked for)."""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        if self._unix_path:
            await web.UnixSite(self._runner, self._unix_path).start()
            return self
        for sock in self._listening:
            await web.SockSite(self._runner, sock).start()
        if self._listening:
            self.port = int(self._runner.addresses[0][1])
            return self
        site = web.TCPSite(self._runner, self._host, self._wanted_port, reuse_address=True)
        try:
            await site.start()
        except OSError as exc:
            await self._runner.cleanup()
            raise port_in_use(self._wanted_port, self._variable, exc, self._host) from exc
        self.port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop serving, earlier than at the end of the context."""
        await self._runner.cleanup()


def _metrics_server(metrics: CollectorRegistry) -> Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(metrics), headers={"Content-Type": content_type})

    return serve


def _reporter(report: Callable[[], HealthReport]) -> Handler:
    async def serve(_: web.Request) -> web.StreamResponse:
        current = report()
        return json_response(current.body, current.status)

    return serve


def _errors_as_problems(table: Iterable[web.RouteDef]) -> Middleware:
    paths = _paths(table)

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as exc:
            if exc.status < 400 or exc.content_type != "text/plain":
                raise
            return _as_problem(exc, f"the paths here: {paths}" if exc is request.match_info.http_exception else "")
        except Exception as exc:
            log.exception("admin_request_failed", method=request.method, path=request.path)
            return problem(500, "internal-error", "Internal Server Error", type(exc).__name__)

    return answer


def _as_problem(exc: web.HTTPException, hint: str) -> web.Response:
    if "Allow" in exc.headers:
        hint = f"the methods here: {exc.headers['Allow']}"
    answer = problem(exc.status, exc.reason.lower().replace(" ", "-"), exc.reason, hint)
    if "Allow" in exc.headers:
        answer.headers["Allow"] = exc.headers["Allow"]  # RFC 9110 section 15.5.6: a 405 must carry it
    return answer


def _paths(table: Iterable[web.RouteDef]) -> str:
    """The routes as a person would write them: a pattern for a word in any case is that word, others are their name."""
    plain = (_PATTERN.sub(r"{\1}", _ANY_CASE.sub(r"\1", route.path)) for route in table)
    return ", ".join({path.lower(): path for path in sorted(plain)}.values())

"""`serve` and `join`: the two ways of a service into the mesh.

`serve` is the program: it makes the loop, the log and the signal handlers, and returns when the service has left.
`join` is for apps whose server is somebody else's.
"""

import asyncio
import importlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

from prometheus_client import REGISTRY, CollectorRegistry

from toska_mesh.errors import ConfigError
from toska_mesh.sdk import apps, extras
from toska_mesh.sdk.apps import AiohttpApp, AnyASGIApp, App
from toska_mesh.sdk.checks import HealthCheck
from toska_mesh.sdk.defaults import chosen_options, name_for_people
from toska_mesh.sdk.interception import tell_stop_requested
from toska_mesh.sdk.joined import Joined
from toska_mesh.sdk.lifespan import AppStartError
from toska_mesh.sdk.middleware import JOINED_ALREADY, MeshMiddleware
from toska_mesh.sdk.options import ServiceOptions
from toska_mesh.sdk.outlet import program_log
from toska_mesh.sdk.overrides import ServiceOverrides
from toska_mesh.sdk.service import UVICORN, AsgiServer, MeshService
from toska_mesh.telemetry import event_log

if TYPE_CHECKING:
    from aiohttp import web

    Application = TypeVar("Application", bound=web.Application)

log = event_log("sdk")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CONFIG_EXIT = 2


def serve(
    app: App,
    options: ServiceOptions | None = None,
    *,
    server: AsgiServer = UVICORN,
    use_uvloop: bool = False,
    checks: Mapping[str, HealthCheck] | None = None,
    metrics_registry: CollectorRegistry | None = REGISTRY,
    **overrides: Unpack[ServiceOverrides],
) -> None:
    """Serve `app` as a service of the mesh until SIGTERM or SIGINT; then leave without losing a request.

    Blocks. The same signal a second time ends all waiting. Without a port in code or environment any free one is
    taken: the mesh knows the real one. `checks` decide about the service's health, by name. A wrong setting ends the
    process with one line that says so and exit code 2, an app that does not start with 1.
    """
    name = name_for_people(options, overrides, os.path.basename(sys.argv[0]) or "service")
    try:
        with program_log():
            chosen = chosen_options(options, overrides)
            name = chosen.name
            service = MeshService(app, chosen, server=server, metrics_registry=metrics_registry)
            service.add_checks(checks)
            try:
                with asyncio.Runner(loop_factory=_uvloop() if use_uvloop else None) as runner:
                    runner.run(_run(service))
            except AppStartError as exc:
                log.exception("app_did_not_start", service=name, reason=str(exc))
                raise SystemExit(1) from None
    except ConfigError as exc:
        for line in str(exc).splitlines():
            print(f"{name}: {line}", file=sys.stderr)  # noqa: T201
        raise SystemExit(_CONFIG_EXIT) from None


@overload
def join(
    app: "Application",
    options: ServiceOptions | None = None,
    *,
    checks: Mapping[str, HealthCheck] | None = None,
    metrics_registry: CollectorRegistry | None = REGISTRY,
    **overrides: Unpack[ServiceOverrides],
) -> "Application": ...


@overload
def join(
    app: "Sequence[web.AbstractRouteDef]",
    options: ServiceOptions | None = None,
    *,
    checks: Mapping[str, HealthCheck] | None = None,
    metrics_registry: CollectorRegistry | None = REGISTRY,
    **overrides: Unpack[ServiceOverrides],
) -> "web.Application": ...


@overload
def join(
    app: AnyASGIApp,
    options: ServiceOptions | None = None,
    *,
    checks: Mapping[str, HealthCheck] | None = None,
    metrics_registry: CollectorRegistry | None = REGISTRY,
    **overrides: Unpack[ServiceOverrides],
) -> MeshMiddleware: ...


def join(
    app: AiohttpApp | AnyASGIApp,
    options: ServiceOptions | None = None,
    *,
    checks: Mapping[str, HealthCheck] | None = None,
    metrics_registry: CollectorRegistry | None = REGISTRY,
    **overrides: Unpack[ServiceOverrides],
) -> "web.Application | MeshMiddleware":
    """The app as a service of the mesh under whatever server carries it; options as for `serve`.

    An aiohttp Application is changed and given back; an ASGI app is wrapped. The server's port is found out where
    code and environment do not say it. What a server must do for that is in `docs/sdk.md`.
    """
    joined = Joined(chosen_options(options, overrides), checks, metrics_registry)
    if isinstance(app, MeshMiddleware):
        raise ConfigError(JOINED_ALREADY)
    given = apps.ready(app)
    if apps.is_aiohttp(given):
        importlib.import_module("toska_mesh.sdk.aiohttp_app").add_stay(given, joined)
        return cast("web.Application", given)
    return MeshMiddleware(cast(AnyASGIApp, given), joined=joined)


async def _run(service: MeshService) -> None:
    async with _signals(service) as asked:
        try:
            async with service:
                asked.has_started()
                await service.run_until(asked.stop)
        except asyncio.CancelledError:
            if not asked.stop.is_set():
                raise
            reason = "while it waited for its registration" if service.is_serving else "before it had started"
            log.info("stopped", service=service.options.name, reason=reason)
            return
        log.info("stopped", service=service.options.name)


class _Asked:
    """What the signals have asked for so far."""

    def __init__(self, service: MeshService, starting: asyncio.Task[Any] | None) -> None:
        self.stop = asyncio.Event()
        self._heard = set[str]()
        self._starting = starting
        self._service = service

    def has_started(self) -> None:
        self._starting = None

    def hear(self, name: str) -> None:
        # A supervisor may send its own after that of the terminal; somebody in a hurry sends the same again.
        is_again = name in self._heard
        self._heard.add(name)
        tell_stop_requested(self._service.options.name, name, is_again=is_again)
        self.stop.set()
        if self._starting is not None:
            self._starting.cancel()  # a service that has begun to register takes that back on its way out
            self._starting = None
        elif is_again:
            self._service.hurry()


@asynccontextmanager
async def _signals(service: MeshService) -> AsyncIterator[_Asked]:
    """SIGTERM and SIGINT are heard for the length of the block; in a thread of somebody's program they are not."""
    asked = _Asked(service, asyncio.current_task())
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    loop = asyncio.get_running_loop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(asked.hear, signal.Signals(number).name)

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        return extras.load("uvloop", "uvloop", "server").new_event_loop  # type: ignore[no-any-return]
    except ConfigError as exc:
        raise ConfigError("use_uvloop is set but uvloop is not installed; `pip install uvloop` brings it") from exc

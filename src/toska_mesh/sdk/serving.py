"""`serve` and `join`: the two ways of a service into the mesh.

`serve` is the program: it makes the loop, the log and the signal handlers, and returns when the service has left.
`join` is for apps whose server is somebody else's.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

from toska_mesh.errors import ConfigError
from toska_mesh.sdk import extras
from toska_mesh.sdk.environment import service_options, variables
from toska_mesh.sdk.lifespan import AppStartError
from toska_mesh.sdk.options import ServiceOptions
from toska_mesh.sdk.service import UVICORN, MeshService
from toska_mesh.telemetry import event_log
from toska_mesh.telemetry.logs import set_up_logging

log = event_log("sdk")

_LOG_LEVELS = ("debug", "info", "warning", "error")
_LOG_FORMATS = ("json", "console")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CONFIG_EXIT = 2


def serve(
    app: object,
    options: ServiceOptions | None = None,
    *,
    server: str = UVICORN,
    use_uvloop: bool = False,
    setup: Callable[[MeshService], None] | None = None,
    metrics_registry: CollectorRegistry | None = REGISTRY,
    **overrides: Any,
) -> None:
    """Serve `app` as a service of the mesh until SIGTERM or SIGINT; then leave without losing a request.

    Blocks. A second signal ends all waiting. Without a port in code or environment any free one is taken: the mesh
    knows the real one. `setup` gets the service before it starts, to add health checks. A wrong setting, or an app
    that does not start, ends the process with one line that says so (exit codes 2 and 1).
    """
    with _logging() as name:
        try:
            if options is None:
                options = service_options(**_with_any_port(overrides))
            elif overrides:
                raise TypeError(f"options are given, so {', '.join(sorted(overrides))} should be said in them")
            name = options.name
            service_of = lambda: MeshService(  # noqa: E731  # made inside the loop, which its events belong to
                app, options, server=server, metrics_registry=metrics_registry
            )
            with asyncio.Runner(loop_factory=_uvloop() if use_uvloop else None) as runner:
                runner.run(_run(service_of, setup))
        except ConfigError as exc:
            for line in str(exc).splitlines():
                print(f"{name}: {line}", file=sys.stderr)  # noqa: T201
            raise SystemExit(_CONFIG_EXIT) from None
        except AppStartError as exc:
            log.exception("app_did_not_start", service=name, reason=str(exc))
            raise SystemExit(1) from None


async def _run(make: Callable[[], MeshService], setup: Callable[[MeshService], None] | None) -> None:
    service = make()
    if setup is not None:
        setup(service)
    async with _signals() as asked:
        try:
            async with service:
                asked.has_started(service)
                await service.run_until(asked.stop)
        except asyncio.CancelledError:
            if not asked.stop.is_set():
                raise
            log.info("stopped", service=service.options.name, reason="before it had started")
            return
        log.info("stopped", service=service.options.name)


class _Asked:
    """What the signals have asked for so far."""

    def __init__(self, starting: asyncio.Task[Any] | None) -> None:
        self.stop = asyncio.Event()
        self._starting = starting
        self._service: MeshService | None = None

    def has_started(self, service: MeshService) -> None:
        self._service = service
        self._starting = None

    def hear(self, name: str) -> None:
        is_first = not self.stop.is_set()
        log.info("stop_requested", signal=name, consequence="draining" if is_first else "leaving at once")
        self.stop.set()
        if self._starting is not None:
            self._starting.cancel()  # nobody knows of us yet, so there is nothing to drain
            self._starting = None
        elif not is_first and self._service is not None:
            self._service.hurry()


@asynccontextmanager
async def _signals() -> AsyncIterator[_Asked]:
    """SIGTERM and SIGINT are heard for the length of the block; in a thread of somebody's program they are not."""
    asked = _Asked(asyncio.current_task())
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


@contextmanager
def _logging() -> Iterator[str]:
    """A log on standard output for programs that have not set one up; gives the name to speak under."""
    name = os.path.basename(sys.argv[0]) or "service"
    root = logging.getLogger()
    if root.handlers:
        yield name
        return
    try:
        level = _choice("TOSKA_LOG_LEVEL", "info", _LOG_LEVELS)
        form = _choice("TOSKA_LOG_FORMAT", "console" if sys.stdout and sys.stdout.isatty() else "json", _LOG_FORMATS)
    except ConfigError as exc:
        print(f"{name}: {exc}", file=sys.stderr)  # noqa: T201
        raise SystemExit(_CONFIG_EXIT) from None
    writer = set_up_logging(level, form)
    root.setLevel(level.upper())  # the app's own lines too
    try:
        yield name
    finally:
        root.handlers.clear()
        writer.close()


def _choice(variable: str, default: str, words: tuple[str, ...]) -> str:
    word = os.environ.get(variable, "").strip().lower() or default
    if word not in words:
        raise ConfigError(f"{variable}={word!r} is not one of {', '.join(words)}")
    return word


def _with_any_port(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The family's 8080 is for containers; on one machine it is discovery's own port."""
    if "port" in overrides or _port_is_in_environment(os.environ):
        return dict(overrides)
    return {**overrides, "port": 0}


def _port_is_in_environment(environ: Mapping[str, str]) -> bool:
    variable = next(variable for variable in variables() if variable.option == "port")
    names = {name.lower() for name in (variable.name, *variable.also)}
    # `tcp://…` is a service link that Kubernetes injects, no port.
    return any(name.lower() in names and value.strip() and "://" not in value for name, value in environ.items())


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        return extras.load("uvloop", "uvloop", "server").new_event_loop  # type: ignore[no-any-return]
    except ConfigError as exc:
        raise ConfigError("use_uvloop is set but uvloop is not installed; `pip install uvloop` brings it") from exc

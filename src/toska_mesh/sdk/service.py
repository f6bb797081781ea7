"""`MeshService`: an app, its HTTP server and its place in the mesh as one thing with a beginning and an end.

The order is the point. Bind, start the app, accept connections, and only then register; at the end leave the mesh first
and close the port last. A mesh that is away stops nothing: the service serves, says that it is not registered, and goes
on trying.
"""

import asyncio
import importlib
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from random import Random
from types import TracebackType
from typing import Final, Literal, Self, Unpack, cast

from prometheus_client import REGISTRY, CollectorRegistry

from toska_mesh.errors import ConfigError
from toska_mesh.model import Endpoint
from toska_mesh.sdk import apps, extras
from toska_mesh.sdk.apps import App
from toska_mesh.sdk.asgi import ASGIApp, MeshASGI
from toska_mesh.sdk.checks import READY, TIMEOUT_SECONDS, HealthCheck
from toska_mesh.sdk.defaults import given_options
from toska_mesh.sdk.hosts import Host, bind, port_of
from toska_mesh.sdk.leaving import LeaveReport
from toska_mesh.sdk.middleware import JOINED_ALREADY, MeshMiddleware
from toska_mesh.sdk.options import ServiceOptions
from toska_mesh.sdk.overrides import ServiceOverrides
from toska_mesh.sdk.stay import SHUT_DOWN, OpenEnrolment, Stay, open_enrolment
from toska_mesh.telemetry import event_log

log = event_log("sdk")

AsgiServer = Literal["uvicorn", "granian"]
UVICORN: Final = "uvicorn"
GRANIAN: Final = "granian"
SERVERS: Final = (UVICORN, GRANIAN)
"""What an ASGI app can be served with; an aiohttp Application brings its own."""

_CUTTING_SECONDS = 1.5
"""What a host takes to end requests that it does not wait for any longer, and the process to end after that."""
_LAST_SECONDS = 1.0
"""What closing the port may take when leaving has used up its time."""


class MeshService:
    """Serve `app` and keep it in the mesh for the length of an `async with` block; leaving the block drains.

    `app`: an aiohttp Application or a list of aiohttp routes, an ASGI app, or a function without parameters that makes
    one. Without `options` they come from the environment, each of `overrides` replacing one. `metrics_registry` is
    shown on `/metrics` beside ours.
    Raises ConfigError for what cannot work, AppStartError when the app did not start.
    """

    def __init__(
        self,
        app: App,
        options: ServiceOptions | None = None,
        *,
        server: AsgiServer = UVICORN,
        metrics_registry: CollectorRegistry | None = REGISTRY,
        open_enrolment: OpenEnrolment = open_enrolment,
        rng: Random | None = None,
        **overrides: Unpack[ServiceOverrides],
    ) -> None:
        if server not in SERVERS:
            raise ConfigError(f"server={server!r} is not one of {', '.join(SERVERS)}; an aiohttp app needs none")
        self._app = app
        self._server = server
        self._stay = Stay(
            given_options(options, overrides),
            metrics_registry=metrics_registry,
            open_enrolment=open_enrolment,
            rng=rng,
        )
        self.port = 0
        """The bound port, once entered."""
        self._running = AsyncExitStack()
        self._host: Host | None = None
        self._serving: asyncio.Task[None] | None = None
        self._staying: asyncio.Task[None] | None = None

    @property
    def options(self) -> ServiceOptions:
        """As they are in use: with an id."""
        return self._stay.options

    @property
    def instance_id(self) -> str:
        return self._stay.instance_id

    @property
    def url(self) -> str:
        """For callers on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.options.host, self.options.host)
        return f"http://{Endpoint(host, self.port).authority}"

    @property
    def is_serving(self) -> bool:
        """Whether connections have been accepted; stays so at the end."""
        return self._host is not None and self._host.started.is_set()

    @property
    def is_registered(self) -> bool:
        """Whether the mesh knows this instance, as far as we know."""
        return self._stay.is_registered()

    @property
    def why_not_registered(self) -> str:
        """For people; empty when it is registered."""
        return self._stay.why_not_registered

    @property
    def leave_report(self) -> LeaveReport | None:
        """How leaving went, after the block."""
        return self._stay.report

    def add_check(
        self,
        name: str,
        check: HealthCheck,
        *,
        tags: Iterable[str] = (READY,),
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Let `check` decide about the service's health; see `checks`."""
        self._stay.checks.add(name, check, tags=tags, timeout_seconds=timeout_seconds)

    def add_checks(self, checks: Mapping[str, HealthCheck] | None) -> None:
        """Each as `add_check` takes it, by name."""
        self._stay.checks.add_all(checks)

    async def registered(self) -> None:
        """Wait until the mesh knows this instance; without end while it does not answer."""
        await self._stay.registered()

    def hurry(self) -> None:
        """Leave without waiting for anybody."""
        self._stay.hurry.set()

    async def run_until(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        await stop.wait()

    async def __aenter__(self) -> Self:
        if self._host is not None:
            raise RuntimeError("a MeshService is for one stay; make another for the next")
        options = self.options
        if isinstance(self._app, MeshMiddleware):
            raise ConfigError(JOINED_ALREADY)
        app = await apps.made(self._app)
        try:
            async with AsyncExitStack() as stack:
                host = self._host = self._hosted(app, stack)
                tasks = await stack.enter_async_context(asyncio.TaskGroup())
                self._serving = tasks.create_task(self._serve(host), name=f"serve {options.name} on port {self.port}")
                await host.started.wait()
                log.info("serving", service=options.name, instance=options.id, host=options.host, port=self.port)
                self._staying = tasks.create_task(self._stay.run(self.port), name=f"stay of {options.id} in the mesh")
                if options.wait_for_registration:
                    await self._until_registered()
                self._running = stack.pop_all()
        except BaseExceptionGroup as exc:
            raise _alone(exc) from _alone(exc).__cause__
        return self

    async def _until_registered(self) -> None:
        try:
            await self.registered()
        except asyncio.CancelledError:
            await self.leave()  # the mesh may know us by now
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                await self.leave()
            except BaseException:
                await self._running.__aexit__(*sys.exc_info())
                raise
            await self._running.__aexit__(kind, exc, trace)
        except BaseExceptionGroup as group:
            raise _alone(group) from _alone(group).__cause__

    async def leave(self, reason: str = SHUT_DOWN) -> LeaveReport | None:
        """Leave the mesh, then close the port; earlier than at the end of the block, if wanted."""
        self._stay.ask_to_leave(reason)
        if self._staying is not None:
            await asyncio.wait([self._staying])
        if self._host is not None and self._serving is not None:
            self._host.stop(max(_LAST_SECONDS, self._stay.seconds_left - _CUTTING_SECONDS))
            await self._until_closed(self._serving)
        return self.leave_report

    async def _until_closed(self, serving: asyncio.Task[None]) -> None:
        """The host has its time to finish what is in flight; told to hurry, it has but a moment."""
        async with asyncio.TaskGroup() as tasks:
            hurried = tasks.create_task(self._stay.hurry.wait(), name="wait for a second signal")
            await asyncio.wait([serving, hurried], return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
        if not serving.done():
            _, late = await asyncio.wait([serving], timeout=_LAST_SECONDS)
            if late:
                serving.cancel()
                await asyncio.wait([serving])

    def _bound(self, stack: AsyncExitStack, *, is_shared: bool) -> socket.socket:
        sock = stack.enter_context(bind(self.options.host, self.options.port, is_shared=is_shared))
        self.port = port_of(sock)
        return sock

    def _hosted(self, app: object, stack: AsyncExitStack) -> Host:
        edge = self._stay.edge
        if apps.is_aiohttp(app):
            module = importlib.import_module("toska_mesh.sdk.aiohttp_app")
            module.add_edge(app, edge)
            sock = self._bound(stack, is_shared=False)
            return cast(Host, module.AiohttpHost(app, edge, sock))
        module = extras.load(f"toska_mesh.sdk.{self._server}_host", self._server, self._server)
        sock = self._bound(stack, is_shared=self._server == GRANIAN)
        make = module.GranianHost if self._server == GRANIAN else module.UvicornHost
        return cast(Host, make(MeshASGI(cast(ASGIApp, app), edge), sock))

    async def _serve(self, host: Host) -> None:
        await host.run()
        if not self._stay.edge.is_draining:
            raise RuntimeError(f"the HTTP server of {self.options.name} has ended by itself")


def _alone(exc: BaseException) -> BaseException:
    """An error without the groups around it, when there is only the one."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc

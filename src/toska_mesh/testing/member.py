"""A real service of the SDK in a fake mesh: its own app, checks, registration and leaving, without a port.

What is replaced is the HTTP server (the app answers over the memory network) and the way to the registry.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, cast

from aiohttp import web

from toska_mesh.sdk.aiohttp_app import add_edge
from toska_mesh.sdk.apps import App
from toska_mesh.sdk.asgi import ASGIApp, MeshASGI
from toska_mesh.sdk.checks import READY, TIMEOUT_SECONDS, HealthCheck
from toska_mesh.sdk.endpoints import Edge
from toska_mesh.sdk.enrolment import Enrolment
from toska_mesh.sdk.hosts import Host
from toska_mesh.sdk.lifespan import lifespan
from toska_mesh.sdk.options import ServiceOptions
from toska_mesh.sdk.service import MeshService
from toska_mesh.testing.enrolment import FakeEnrolment
from toska_mesh.testing.handlers import AiohttpHandler, AsgiHandler, Handler
from toska_mesh.testing.instance import World
from toska_mesh.testing.network import Address
from toska_mesh.testing.server import MemoryServer


class FakeMember(MeshService):
    """A `MeshService` at an address of a fake mesh: `async with` it, from registering to having left."""

    def __init__(self, world: World, app: object, options: ServiceOptions) -> None:
        given = cast(App, app)  # what it is, is told by the service
        super().__init__(given, options, metrics_registry=None, open_enrolment=self._open_enrolment, rng=world.rng)
        self._world = world
        self._consul = world.registry.client()
        self._address: Address = (options.advertised_address, options.port)
        self.requests = 0
        """How many requests have reached it."""

    @property
    def url(self) -> str:
        """Base of its URLs, for an HTTP client of the test's own (`fake_mesh.session()`)."""
        return f"http://{self._address[0]}:{self._address[1]}"

    def cut_off(self) -> None:
        """Its machine loses the network: it reaches nobody, nobody reaches it. It may notice; it does not end."""
        self._world.events.add("cut off", self.instance_id)
        self._consul.reachable.clear()
        self._world.network.cut_off(self._address)

    def reconnects(self) -> None:
        """The network is back."""
        self._world.events.add("reconnects", self.instance_id)
        self._consul.reachable.set()
        self._world.network.reconnect(self._address)

    def add_check(
        self,
        name: str,
        check: HealthCheck,
        *,
        tags: Iterable[str] = (READY,),
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """As in a `MeshService`. A plain function runs in the loop and not in a thread, which has no virtual clock."""

        async def ask() -> Any:
            given = check()
            return await given if inspect.isawaitable(given) else given

        super().add_check(name, ask, tags=tags, timeout_seconds=timeout_seconds)

    @asynccontextmanager
    async def _open_enrolment(self, options: ServiceOptions) -> AsyncIterator[Enrolment]:
        yield FakeEnrolment(self._consul)

    def _hosted(self, app: object, stack: AsyncExitStack) -> Host:
        self.port = self._address[1]
        return cast(Host, _MemoryHost(self, self._world, app, self._stay.edge, self._address))


class _MemoryHost:
    """`sdk.hosts.Host` on the memory network."""

    def __init__(self, member: FakeMember, world: World, app: object, edge: Edge, address: Address) -> None:
        self.started = asyncio.Event()
        self._member = member
        self._world = world
        self._edge = edge
        self._address = address
        self._is_stopping = asyncio.Event()
        self._finish_seconds = 0.0
        self._handler: Handler
        self._server = MemoryServer(self._serve)
        if isinstance(app, web.Application):
            add_edge(app, edge)
            self._app: web.Application | MeshASGI = app
        else:
            self._app = MeshASGI(cast(ASGIApp, app), edge)

    async def run(self) -> None:
        network = self._world.network
        async with _started(self._app, self._world) as self._handler:
            try:
                network.listen(self._address, self._accept)
                self.started.set()
                await self._is_stopping.wait()
                network.stop_listening(self._address)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._finish_seconds):
                        await self._edge.in_flight.idle()
            finally:
                network.stop_listening(self._address)
                network.close(self._address)
                await self._server.close()
        self._world.events.add("left", self._member.instance_id)

    def stop(self, seconds: float) -> None:
        self._finish_seconds = seconds
        self._is_stopping.set()

    async def _accept(self) -> asyncio.Protocol:
        return self._server.connection(self._handler.request_factory)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self._member.requests += 1
        began = self._world.loop.time()
        status = "no answer"
        try:
            response = await self._handler.answer(request, self._member.instance_id)
            status = str(response.status)
            return response
        finally:
            seconds = self._world.loop.time() - began
            text = f"{request.method} {request.path_qs} -> {status}, {seconds:g} s"
            self._world.events.add("request", self._member.instance_id, text)


@asynccontextmanager
async def _started(app: web.Application | MeshASGI, world: World) -> AsyncIterator[Handler]:
    """The app, started up; shut down at the end. Raises what keeps it from starting."""
    if isinstance(app, MeshASGI):
        async with lifespan(app) as app.state:
            yield AsgiHandler(app)
        return
    handler = AiohttpHandler(app)
    await handler.start(world.crew)
    try:
        yield handler
    finally:
        await handler.close()

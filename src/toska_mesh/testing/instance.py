"""One instance of a fake service: what it answers, what can befall it, and what the registry hears of it.

Two things are kept apart, as they are in life: how the process is (up, frozen, gone) and what the registry believes.
A process that goes down without a word stays registered and healthy until its TTL has run out; that time is what
callers have to live through, and what a test here is for.
"""

import asyncio
from dataclasses import dataclass
from random import Random

from aiohttp import web

from toska_mesh.errors import RegistryError
from toska_mesh.model import Endpoint, HealthStatus, InstanceId
from toska_mesh.model.metadata import DRAIN_NOTE
from toska_mesh.registry.api import Registration
from toska_mesh.sdk.enrolment import Enrolment
from toska_mesh.testing.crew import Crew
from toska_mesh.testing.fake_registry import FakeRegistry
from toska_mesh.testing.handlers import PROBER, Handled
from toska_mesh.testing.history import Events
from toska_mesh.testing.network import MemoryNetwork, MemoryTransport
from toska_mesh.testing.server import MemoryServer

_LEAVE_SECONDS = 30.0
_NOTICE_SECONDS = 0.1
"""For those who route by themselves and whom the barrier does not know."""


@dataclass(frozen=True, slots=True)
class World:
    """What every part of one fake mesh shares."""

    loop: asyncio.AbstractEventLoop
    events: Events
    registry: FakeRegistry
    network: MemoryNetwork
    rng: Random
    crew: Crew
    enrolment: Enrolment


class FakeInstance:
    """Faults are said as what happens to it; each takes the place of the one before, `revive` ends any of them."""

    def __init__(self, world: World, registration: Registration, app: Handled) -> None:
        self._world = world
        self._registration = registration
        self._app = app
        self._address = (registration.address, registration.port)
        self._server = MemoryServer(self._serve)
        self._runs = asyncio.Event()
        """Cleared while the process is frozen."""
        self._runs.set()
        self._is_up = True
        self._is_wanted = True
        """Whether it wants to be registered."""
        self._status, self._output = HealthStatus.HEALTHY, ""
        self._delay_seconds = 0.0
        self._status_code = 0
        self._is_resetting = False
        self._story: asyncio.Task[None] | None = None
        self.requests = 0
        """How many requests have reached it, whatever it did with them."""
        self.probes = 0
        """How often a caller who doubted it has asked whether it is there; not among the requests."""
        world.network.listen(self._address, self._accept)
        world.registry.when_back(self._registry_is_back)
        self._tell_registry()

    @property
    def id(self) -> InstanceId:
        return self._registration.id

    @property
    def service(self) -> str:
        return self._registration.service

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(*self._address)

    @property
    def url(self) -> str:
        """Base of its URLs, for an HTTP client of the test's own (`fake_mesh.session()`)."""
        return f"http://{self.endpoint.authority}"

    @property
    def in_flight(self) -> int:
        """How many requests it has not answered."""
        return self._server.in_flight

    @property
    def is_up(self) -> bool:
        """Whether it accepts connections."""
        return self._is_up

    # What can befall it

    def down(self) -> None:
        """The process is gone: connections are refused, open ones broken, and no beat comes any more."""
        self._begin("down")
        self._world.network.reconnect(self._address)
        self._die()

    def vanish(self) -> None:
        """The machine is gone: nothing answers, not even with a refusal. Connecting takes until the caller gives up."""
        self._begin("vanish")
        self._is_up = False
        self._world.network.cut_off(self._address)
        self._stop_beating()

    def hang(self) -> None:
        """The process is frozen: it accepts and holds what it gets, answers nothing and beats no more."""
        self._begin("hang")
        self._come_up()
        self._runs.clear()
        self._stop_beating()

    def slow(self, seconds: float) -> None:
        """Every answer takes this much longer. It beats on: the registry notices nothing."""
        self._begin("slow", f"{seconds:g} s")
        self._come_up()
        self._delay_seconds = seconds

    def answers(self, status: int) -> None:
        """Every answer is this status, and the app is not asked. It beats on."""
        if not 200 <= status <= 599:
            raise ValueError(f"{status} is no status of an answer; use one from 200 to 599")
        self._begin("answers", str(status))
        self._come_up()
        self._status_code = status

    def resets(self) -> None:
        """Every request is taken and its connection broken. It beats on."""
        self._begin("resets")
        self._come_up()
        self._is_resetting = True

    def flapping(self, up: float, down: float) -> None:
        """Down for `down` seconds, up for `up`, and so on; down first."""
        if not (up > 0 and down > 0):
            raise ValueError(f"flapping needs times above 0, got up={up:g} and down={down:g}")
        self._begin("flapping", f"{up:g} s up, {down:g} s down")
        self._story = self._world.crew.start(self._flap(up, down), f"{self.id} flaps")

    def unhealthy(self, output: str = "unhealthy") -> None:
        """It says of itself that it is not well, and serves as before."""
        self._begin("unhealthy", output)
        self._come_up(HealthStatus.UNHEALTHY, output)

    def drains(self) -> None:
        """It marks itself as about to leave and serves on: callers should look elsewhere."""
        self._begin("drains")
        self._come_up(HealthStatus.DEGRADED, DRAIN_NOTE)

    def leaves(self) -> None:
        """It leaves as a service of the SDK does: marks itself, waits until every gateway has heard, finishes what it
        has, deregisters and closes. That takes time; `left` can be waited for."""
        self._begin("leaves")
        self._come_up(HealthStatus.DEGRADED, DRAIN_NOTE)
        self._story = self._world.crew.start(self._leave(), f"{self.id} leaves")

    async def left(self) -> None:
        """Until what `leaves` began is done."""
        if self._story is not None:
            await asyncio.wait([self._story])

    def revive(self) -> None:
        """As before it all: it serves, is registered and healthy. A frozen one goes on with what it holds."""
        self._begin("revive")
        self._come_up()

    # Inside

    def _begin(self, what: str, text: str = "") -> None:
        """Note it, and end what was before."""
        if self._story is not None and self._story is not asyncio.current_task():
            self._story.cancel()
            self._story = None
        self._world.events.add(what, self.id, text)
        self._delay_seconds, self._status_code, self._is_resetting = 0.0, 0, False

    def _come_up(self, status: HealthStatus = HealthStatus.HEALTHY, output: str = "") -> None:
        """Be a process that runs, and say so."""
        self._is_up, self._is_wanted = True, True
        self._runs.set()
        self._world.network.reconnect(self._address)
        self._world.network.listen(self._address, self._accept)
        self._status, self._output = status, output
        self._tell_registry()

    def _die(self) -> None:
        self._is_up = False
        self._world.network.stop_listening(self._address)
        self._world.network.reset(self._address)
        self._server.kill()
        self._stop_beating()

    async def _flap(self, up: float, down: float) -> None:
        while True:
            self._world.events.add("down", self.id)
            self._die()
            await asyncio.sleep(down)
            self._world.events.add("revive", self.id)
            self._come_up()
            await asyncio.sleep(up)

    async def _leave(self) -> None:
        world = self._world
        ends = world.loop.time() + _LEAVE_SECONDS
        try:
            await world.enrolment.wait_applied(self._registration.service, ends)
        except RegistryError as exc:
            world.events.add("leaves", self.id, f"without knowing who has heard: {exc}")
        await asyncio.sleep(_NOTICE_SECONDS)
        try:
            async with asyncio.timeout_at(ends):
                await self._server.idle()
        except TimeoutError:
            world.events.add("leaves", self.id, f"breaks off {self.in_flight} requests")
        self._is_wanted = False
        self._tell_registry()
        self._is_up = False
        world.network.stop_listening(self._address)
        world.network.close(self._address)
        world.events.add("left", self.id)

    def _tell_registry(self) -> None:
        """Bring the registry to what this instance wants it to know, if it can be told anything."""
        registry = self._world.registry
        if registry.is_away:
            return
        if not self._is_wanted:
            registry.withdraw(self.id)
            return
        if not registry.report(self.id, self._status, self._output):
            registry.enrol(self._registration)
            registry.report(self.id, self._status, self._output)
        registry.keeps_beating(self.id)

    def _stop_beating(self) -> None:
        if not self._world.registry.is_away:
            self._world.registry.stops_beating(self.id, self._registration.ttl_seconds)

    @property
    def _is_beating(self) -> bool:
        return self._is_up and self._runs.is_set()

    def _registry_is_back(self) -> None:
        """Who lives beats on; what has been forgotten is registered with the next beat, which is not at once."""
        if not self._is_beating:
            return
        registry = self._world.registry
        if not self._is_wanted or registry.instance(self.id) is not None:
            self._tell_registry()
            return
        beat_seconds = self._registration.ttl_seconds / 3
        self._world.loop.call_later(self._world.rng.uniform(0.0, beat_seconds), self._beat)

    def _beat(self) -> None:
        if self._is_beating:
            self._tell_registry()

    async def _accept(self) -> asyncio.Protocol | None:
        if not await self._app.started():
            return None
        return self._server.connection(self._app.handler.request_factory)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        is_probe = request.headers.get("User-Agent") == PROBER
        if is_probe:
            self.probes += 1
        else:
            self.requests += 1
        began = self._world.loop.time()
        status = "no answer"
        try:
            response = await self._answer(request)
            await self._runs.wait()  # frozen in the middle
            if request.transport is not None and not request.transport.is_closing():
                status = str(response.status)
            return response
        finally:
            seconds = self._world.loop.time() - began
            text = f"{request.method} {request.path_qs} -> {status}, {seconds:g} s"
            self._world.events.add("probe" if is_probe else "request", self.id, text)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        await self._runs.wait()
        if self._delay_seconds:
            await asyncio.sleep(self._delay_seconds)
        if self._is_resetting:
            if isinstance(request.transport, MemoryTransport):
                request.transport.abort()
            return web.Response()  # to nobody
        if self._status_code:
            return web.Response(status=self._status_code)
        return await self._app.handler.answer(request, self.id)

    async def close(self) -> None:
        self._world.network.stop_listening(self._address)
        self._world.network.reset(self._address)
        await self._server.close()

    def __repr__(self) -> str:
        return f"<FakeInstance {self.id} at {self.endpoint.authority}, {self.requests} requests>"

"""A whole mesh inside one test: services with instances, a registry, a gateway; no sockets, and no waiting.

What decides is real: the registry's state, the follower, the router, the client with its retries and breakers, a
service's membership. What is fake is the wire between them, the clock, and the services that you say.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from random import Random
from types import TracebackType
from typing import Any, Self, overload
from uuid import UUID

import aiohttp

from toska_mesh.model import InstanceId, ServiceName, rules
from toska_mesh.model.metadata import HEALTH_CHECK_ENDPOINT, LB_STRATEGY, SCHEME, WEIGHT
from toska_mesh.registry.api import Registration
from toska_mesh.sdk.client import CallOptions
from toska_mesh.sdk.mesh import Mesh
from toska_mesh.sdk.options import ServiceOptions
from toska_mesh.sdk.sources import ConsulSource, Source
from toska_mesh.testing.client import WiredMesh
from toska_mesh.testing.clock import VirtualLoop
from toska_mesh.testing.crew import Crew
from toska_mesh.testing.enrolment import FakeEnrolment
from toska_mesh.testing.fake_registry import FakeRegistry
from toska_mesh.testing.gateway import FakeGateway
from toska_mesh.testing.handlers import Handled, ServiceApp, handler_of
from toska_mesh.testing.history import Events
from toska_mesh.testing.instance import FakeInstance, World
from toska_mesh.testing.member import FakeMember
from toska_mesh.testing.network import MemoryConnector, MemoryNetwork
from toska_mesh.testing.registrable import check_described
from toska_mesh.testing.transport import FakeTransport

_PORT = 8080


class FakeClock:
    """The test's clock: it starts at 0 and moves only while everybody waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @property
    def now(self) -> float:
        """Seconds since the test began."""
        return self._loop.time()

    async def advance(self, seconds: float) -> None:
        """Let this much time pass, and everything happen that happens in it."""
        await asyncio.sleep(seconds)

    async def until(self, at_seconds: float) -> None:
        """Let time pass until then."""
        await asyncio.sleep(max(0.0, at_seconds - self._loop.time()))


class FakeService(Sequence[FakeInstance]):
    """The instances of one service, in the order in which they were added."""

    def __init__(self, name: str, instances: Sequence[FakeInstance]) -> None:
        self.name = name
        self._instances = tuple(instances)

    @property
    def requests(self) -> int:
        """How many requests have reached its instances."""
        return sum(instance.requests for instance in self._instances)

    def __len__(self) -> int:
        return len(self._instances)

    @overload
    def __getitem__(self, index: int) -> FakeInstance: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[FakeInstance]: ...
    def __getitem__(self, index: int | slice) -> FakeInstance | Sequence[FakeInstance]:
        return self._instances[index]

    def __iter__(self) -> Iterator[FakeInstance]:
        return iter(self._instances)

    def __repr__(self) -> str:
        return f"<FakeService {self.name}: {len(self)} instances>"


class FakeMesh:
    """`async with` it, or use the fixture `fake_mesh`. It needs a virtual clock, which the fixture brings."""

    clock: FakeClock
    events: Events
    """Everything that happened, with its time: see `Events.of`."""
    registry: FakeRegistry

    def __init__(self, *, seed: int = 0) -> None:
        """`seed`: of everything that draws lots, so that a run can be repeated; another seed is another run."""
        self._rng = Random(seed)
        self._stack = AsyncExitStack()
        self._handlers: list[Handled] = []
        self._services: dict[str, FakeService] = {}
        self._members = 0
        self._gateway: FakeGateway | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise RuntimeError(
                "a fake mesh runs on a virtual clock: use the fixture fake_mesh in an `async def` test, "
                "or mark the test with @pytest.mark.virtual_clock"
            )
        self.clock = FakeClock(loop)
        self.events = Events(loop.time)
        self.registry = FakeRegistry(self.events, self._rng)
        self._network = MemoryNetwork()
        self._crew = await self._stack.enter_async_context(Crew(self.events))
        self._stack.push_async_callback(self._close)
        self._world = World(
            loop,
            self.events,
            self.registry,
            self._network,
            self._rng,
            self._crew,
            FakeEnrolment(self.registry.client()),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # Services

    def add_service(
        self,
        name: str,
        app: ServiceApp | Sequence[ServiceApp],
        *,
        instances: int | None = None,
        strategy: str = "RoundRobin",
        weights: Sequence[int] = (),
        metadata: Mapping[str, str] | None = None,
        interval_seconds: int = rules.DEFAULT_INTERVAL_SECONDS,
    ) -> FakeService:
        """A service whose instances are up, registered and healthy.

        `app`: a function of one `FakeRequest`, an ASGI app, or an aiohttp Application, shared by all instances; or a
        list with one app for each. `interval_seconds` of their health reports says how long a dead one stays listed:
        its TTL is 5 s longer. Raises ValueError for a name that is taken and for what nobody could register outside of
        a test, TypeError for an app that is none.
        """
        if name in self._services:
            raise ValueError(f"this mesh has a service {name!r} already")
        apps = _one_for_each(app, instances)
        written = {SCHEME: "http", HEALTH_CHECK_ENDPOINT: "/health", LB_STRATEGY: strategy, **(metadata or {})}
        check_described(name, strategy, weights, len(apps), interval_seconds, written)
        shared: dict[int, Handled] = {}
        number = len(self._services) + 1
        made = []
        for index, one in enumerate(apps):
            if id(one) not in shared:
                shared[id(one)] = Handled(handler_of(one), self._crew)
                self._handlers.append(shared[id(one)])
            weight = str(weights[index] if index < len(weights) else 1)
            registration = Registration(
                ServiceName(name),
                InstanceId(f"{name}-{index + 1}"),
                f"10.1.{number}.{index + 1}",
                _PORT,
                {WEIGHT: weight} | written,
                ttl_seconds=rules.ttl_seconds(interval_seconds),
            )
            made.append(FakeInstance(self._world, registration, shared[id(one)]))
        self._services[name] = FakeService(name, made)
        return self._services[name]

    def service(self, name: str) -> FakeService:
        """What `add_service` gave. Raises KeyError."""
        return self._services[name]

    def instance(self, instance_id: str) -> FakeInstance:
        """The instance with this id. Raises KeyError."""
        for service in self._services.values():
            for instance in service:
                if instance.id == instance_id:
                    return instance
        raise KeyError(instance_id)

    # Time

    def schedule(self, at_seconds: float, action: Callable[[], Awaitable[object] | object]) -> None:
        """Do it at that time of the clock, once: `fake_mesh.schedule(5, stock[0].down)`. May be a coroutine function.

        If it raises, the test fails. Raises ValueError for a time that is over.
        """
        if at_seconds < self.clock.now:
            raise ValueError(f"{at_seconds:g} s is over: the clock is at {self.clock.now:g} s")
        _ = self._crew.start(self._act(at_seconds, action), f"at {at_seconds:g} s")

    async def _act(self, at_seconds: float, action: Callable[[], Awaitable[object] | object]) -> None:
        await self.clock.until(at_seconds)
        result = action()
        if inspect.isawaitable(result):
            await result

    # Ways in

    @asynccontextmanager
    async def client(self, name: str = "", calls: CallOptions | None = None) -> AsyncIterator[Mesh]:
        """A real `toska_mesh.sdk.Mesh` in this mesh. `name`: of the calling service. `calls`: defaults of its calls."""
        source = ConsulSource(self.registry.client(), self._rng)
        async with self._open_mesh(source, name, calls) as mesh:
            yield mesh

    @asynccontextmanager
    async def _open_mesh(self, source: Source, name: str = "", calls: CallOptions | None = None) -> AsyncIterator[Mesh]:
        async with (
            FakeTransport(self._network) as transport,
            WiredMesh(self._network, transport, source, self._rng, name, calls) as mesh,
        ):
            yield mesh

    @property
    def gateway(self) -> FakeGateway:
        """The way in from outside; runs from its first request on."""
        if self._gateway is None:
            self._gateway = FakeGateway(
                self.events, self._crew, self.registry.client(), self._rng, lambda source: self._open_mesh(source)
            )
        return self._gateway

    def member(self, app: object, options: ServiceOptions | None = None, **overrides: Any) -> FakeMember:
        """A real `toska_mesh.sdk.MeshService` in this mesh, to be used with `async with`: leaving the block leaves the
        mesh, as a service that is stopped does.

        `app`: an ASGI app, an aiohttp Application, or a function without parameters that makes one. `overrides`: single
        options (`name="orders"`, `health_interval_seconds=10`); the environment is not asked.
        """
        options = options or ServiceOptions()
        self._members += 1
        address = options.advertised_address or f"10.2.0.{self._members}"
        given: dict[str, Any] = {"advertised_address": address, "port": options.port or _PORT} | overrides
        return FakeMember(self._world, app, replace(options, **given).resolved(self._new_id))

    def _new_id(self) -> UUID:
        return UUID(int=self._rng.getrandbits(128), version=4)

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """A plain HTTP client on the fake network, past the mesh: for an instance's `url`. Use `async with`."""
        return aiohttp.ClientSession(connector=MemoryConnector(self._network), **options)

    def history(self, last: int | None = None) -> str:
        """Everything that happened, one line each; or the last of it, with a word on what was before."""
        left_out = 0 if last is None else max(0, len(self.events) - last)
        lines = [str(event) for event in self.events[left_out:]]
        if left_out:
            lines.insert(0, f"... {left_out} events before that: fake_mesh.history() gives all of them")
        return "\n".join(lines) or "nothing"

    async def _close(self) -> None:
        for service in self._services.values():
            for instance in service:
                await instance.close()
        for handler in self._handlers:
            await handler.close()


def _one_for_each(app: ServiceApp | Sequence[ServiceApp], instances: int | None) -> list[ServiceApp]:
    if isinstance(app, list | tuple):
        if instances not in (None, len(app)):
            raise ValueError(f"{len(app)} apps for {instances} instances: leave one of the two out")
        return list(app)
    count = 1 if instances is None else instances
    if count < 1:
        raise ValueError(f"instances={count} is below 1")
    return [app] * count  # type: ignore[list-item]  # no sequence any more

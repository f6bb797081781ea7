"""What a transport tells of each thing that can befall an instance: real sockets and the fake mesh tell the same."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import pytest
from aiohttp import web
from tests.support.ports import free_port

from toska_mesh.model import Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.registry.api import Registration
from toska_mesh.resilience import BreakerPolicy, Failure, Outcome, RecentLatency
from toska_mesh.sdk.bodies import NOTHING, Body, make_body
from toska_mesh.sdk.transport import AiohttpTransport, Answer, Remote, Request, TryFailedError
from toska_mesh.testing import Events, FakeInstance, FakeRegistry
from toska_mesh.testing.crew import Crew
from toska_mesh.testing.enrolment import FakeEnrolment
from toska_mesh.testing.handlers import Handled, handler_of
from toska_mesh.testing.instance import World
from toska_mesh.testing.network import MemoryNetwork
from toska_mesh.testing.transport import FakeTransport

PIECE = b"x" * 100_000


async def serve(request: web.Request) -> web.StreamResponse:
    """The app of either side. What it does is said by the path."""
    match request.path:
        case "/echo":
            return web.Response(body=await request.read(), headers={"X-Method": request.method})
        case "/stream":
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(10):
                await response.write(PIECE)
            return response
        case "/broken":
            response = web.StreamResponse(headers={"Content-Length": str(10 * len(PIECE))})
            await response.prepare(request)
            await response.write(PIECE)
            assert request.transport is not None
            request.transport.abort()
            return response
        case "/close":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        case _:
            raise web.HTTPNotFound


class Ground(Protocol):
    """One instance and a transport that reaches it; faults as in `FakeInstance`."""

    transport: AiohttpTransport
    endpoint: Endpoint

    async def down(self) -> None: ...
    def hang(self) -> None: ...
    def slow(self, seconds: float) -> None: ...
    def answers(self, status: int) -> None: ...
    def resets(self) -> None: ...


class RealGround:
    """On a socket."""

    def __init__(self, transport: AiohttpTransport) -> None:
        self.transport = transport
        self.endpoint = Endpoint("127.0.0.1", free_port())
        self._fault: Callable[[web.Request], object] = lambda request: None
        app = web.Application(middlewares=[self._before])
        app.router.add_route("*", "/{path:.*}", serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, self.endpoint.host, self.endpoint.port).start()

    @web.middleware
    async def _before(self, request: web.Request, handler: Callable[..., object]) -> web.StreamResponse:
        answer = self._fault(request)
        if asyncio.iscoroutine(answer):
            answer = await answer
        return answer or await handler(request)  # type: ignore[return-value,misc]

    async def down(self) -> None:
        await self._runner.cleanup()

    def hang(self) -> None:
        self._fault = lambda request: asyncio.sleep(3600)

    def slow(self, seconds: float) -> None:
        self._fault = lambda request: asyncio.sleep(seconds)

    def answers(self, status: int) -> None:
        self._fault = lambda request: web.Response(status=status)

    def resets(self) -> None:
        def reset(request: web.Request) -> web.Response:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        self._fault = reset


class FakeGround:
    """In memory."""

    def __init__(self, transport: FakeTransport, instance: FakeInstance) -> None:
        self.transport = transport
        self._instance = instance
        self.endpoint = instance.endpoint
        self.hang, self.slow = instance.hang, instance.slow
        self.answers, self.resets = instance.answers, instance.resets

    async def down(self) -> None:
        self._instance.down()


@pytest.fixture(params=["sockets", "fake"])
async def ground(request: pytest.FixtureRequest) -> AsyncIterator[Ground]:
    async with AsyncExitStack() as stack:
        if request.param == "sockets":
            real = RealGround(await stack.enter_async_context(AiohttpTransport(ssl.create_default_context())))
            await real.start()
            stack.push_async_callback(real.down)
            yield real
            return
        loop = asyncio.get_running_loop()
        events, network = Events(loop.time), MemoryNetwork()
        crew = await stack.enter_async_context(Crew(events))
        registry = FakeRegistry(events, Random(0))
        world = World(loop, events, registry, network, Random(0), crew, FakeEnrolment(registry.client()))
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", serve)
        handled = Handled(handler_of(app), crew)
        stack.push_async_callback(handled.close)
        instance = FakeInstance(
            world, Registration(ServiceName("stock"), InstanceId("stock-1"), "10.1.1.1", 80), handled
        )
        stack.push_async_callback(instance.close)
        yield FakeGround(await stack.enter_async_context(FakeTransport(network)), instance)


@dataclass(slots=True)
class Told:
    """What a call hears of its try."""

    is_connected: bool = False
    outcomes: list[Outcome] = field(default_factory=list)

    def connected(self) -> None:
        self.is_connected = True


async def ask(ground: Ground, told: Told, path: str = "/echo", method: str = "GET", body: Body = NOTHING) -> Answer:
    instance = Instance(ServiceName("stock"), InstanceId("stock-1"), ground.endpoint, HealthStatus.HEALTHY)
    request = Request(method, path, {}, body, method == "GET", {})
    async with asyncio.timeout(5):
        remote = Remote(instance, BreakerPolicy(), RecentLatency())
        answer = await ground.transport.send(request, remote, {"X-Word": "yes"}, told)
    answer._mesh_belongs_to(instance, 1, float("inf"))
    answer._mesh_on_over(told.outcomes.append)
    return answer


async def failure(ground: Ground, told: Told, path: str = "/echo", method: str = "GET") -> Failure:
    with pytest.raises(TryFailedError) as failed:
        await ask(ground, told, path, method)
    assert failed.value.why
    return failed.value.failure


async def test_an_answer_comes_whole(ground: Ground) -> None:
    told = Told()
    answer = await ask(ground, told, method="POST", body=await make_body(b"12345"))
    assert (answer.status, answer.headers["X-Method"], await answer.read()) == (200, "POST", b"12345")
    assert told.is_connected
    assert told.outcomes == [Outcome.SUCCESS]


async def test_a_long_answer_comes_in_pieces_and_its_end_is_told(ground: Ground) -> None:
    told = Told()
    answer = await ask(ground, told, "/stream")
    assert told.outcomes == []
    assert await answer.read() == PIECE * 10
    assert told.outcomes == [Outcome.SUCCESS]


async def test_a_long_body_arrives(ground: Ground) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield PIECE

    answer = await ask(ground, Told(), method="PUT", body=await make_body(pieces()))
    assert await answer.read() == PIECE * 10


async def test_connections_are_used_again(ground: Ground) -> None:
    for _ in range(3):
        told = Told()
        await (await ask(ground, told)).read()
        assert told.is_connected


async def test_down_is_no_connection_and_nothing_sent(ground: Ground) -> None:
    await ground.down()
    told = Told()
    assert await failure(ground, told) is Failure.CONNECT
    assert not told.is_connected


async def test_what_was_connected_before_it_went_down_is_found_out(ground: Ground) -> None:
    await (await ask(ground, Told())).read()
    await ground.down()
    await asyncio.sleep(0.05)  # the news that the connection is over has arrived
    told = Told()
    assert await failure(ground, told, method="POST") is Failure.CONNECT
    assert not told.is_connected


async def test_hanging_is_silence_after_a_connection(ground: Ground) -> None:
    ground.hang()
    told = Told()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await ask(ground, told)
    assert told.is_connected


async def test_slow_is_an_answer_later(ground: Ground) -> None:
    ground.slow(0.2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await ask(ground, Told())).status == 200
    assert loop.time() - began >= 0.19


@pytest.mark.parametrize("status", [503, 404, 204])
async def test_a_status_is_an_answer(ground: Ground, status: int) -> None:
    ground.answers(status)
    told = Told()
    assert (await ask(ground, told)).status == status
    assert told.outcomes == [Outcome.SUCCESS]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_reset_is_no_answer_after_a_connection(ground: Ground, method: str) -> None:
    ground.resets()
    told = Told()
    assert await failure(ground, told, method=method) is Failure.RESET
    assert told.is_connected


async def test_a_connection_closed_without_an_answer_is_a_reset_too(ground: Ground) -> None:
    told = Told()
    assert await failure(ground, told, "/close", "POST") is Failure.RESET
    assert told.is_connected


async def test_an_answer_that_breaks_off_fails_where_it_is_read(ground: Ground) -> None:
    told = Told()
    answer = await ask(ground, told, "/broken")
    assert answer.status == 200
    with pytest.raises(Exception, match="broke off"):
        await answer.read()
    assert told.outcomes == [Outcome.FAILURE]


@pytest.mark.parametrize("leave", [Answer._mesh_drop, Answer.close, Answer.release])
async def test_an_answer_that_its_caller_leaves_is_told_as_cancelled(
    ground: Ground, leave: Callable[[Answer], object]
) -> None:
    told = Told()
    answer = await ask(ground, told, "/stream")
    leave(answer)
    assert told.outcomes == [Outcome.CANCELLED]

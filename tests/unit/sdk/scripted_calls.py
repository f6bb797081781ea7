"""Calls without a network: instances that do what a test has written down, on the virtual clock."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Never

from tests.unit.router.build import instance, snapshot

from toska_mesh.aio import Latest, background_tasks
from toska_mesh.guard import ContainedTasks, Guard, Guarded
from toska_mesh.guard.patience import Patience
from toska_mesh.model import CatalogSnapshot, Instance, ServiceName, Verdicts
from toska_mesh.resilience import BreakerPolicy, Deadline, Failure, Outcome, RetryBudget, State, SuspicionPolicy
from toska_mesh.resilience.retry import RetryPolicy
from toska_mesh.router import RoutingPolicy
from toska_mesh.sdk import context as contexts
from toska_mesh.sdk.bodies import NOTHING, Body
from toska_mesh.sdk.calls import Call, Sender
from toska_mesh.sdk.directory import Directory
from toska_mesh.sdk.transport import Progress, Remote, Request, TryFailedError

ORDERS = ServiceName("orders")
NEVER = float("inf")


class ScriptedReply:
    """An answer; `end` says how its body ended."""

    def __init__(self, status: int, ends: bool = True) -> None:
        self.status = status
        self.is_dropped = False
        self.given: tuple[str, int] = ("", 0)
        self._ends = ends
        self._report: Callable[[Outcome], None] | None = None

    def _mesh_belongs_to(self, instance: Instance, attempts: int, deadline: float) -> None:
        self.given = (instance.id, attempts)

    def _mesh_on_over(self, report: Callable[[Outcome], None]) -> None:
        self._report = report
        if self._ends:
            self.end(Outcome.SUCCESS)

    def end(self, outcome: Outcome) -> None:
        assert self._report is not None
        self._report(outcome)

    def _mesh_drop(self) -> None:
        self.is_dropped = True


Step = Callable[[Request, Progress], Awaitable[ScriptedReply]]


def answers(status: int = 200, after: float = 0.0, ends: bool = True) -> Step:
    """Connects, and answers with that status after so many seconds."""

    async def step(request: Request, progress: Progress) -> ScriptedReply:
        progress.connected()
        await _send(request)
        await asyncio.sleep(after)
        return ScriptedReply(status, ends)

    return step


def refuses(after: float = 0.0) -> Step:
    """There is nobody at that port."""

    async def step(request: Request, progress: Progress) -> Never:
        await asyncio.sleep(after)
        raise TryFailedError(Failure.CONNECT, "cannot connect: Connection refused")

    return step


def resets(after: float = 0.0) -> Step:
    """Takes the request and breaks the connection."""

    async def step(request: Request, progress: Progress) -> Never:
        progress.connected()
        await _send(request)
        await asyncio.sleep(after)
        raise TryFailedError(Failure.RESET, "the instance closed the connection")

    return step


def hangs() -> Step:
    """Takes the request and says nothing."""

    async def step(request: Request, progress: Progress) -> Never:
        progress.connected()
        await asyncio.Event().wait()
        raise AssertionError

    return step


def swallows() -> Step:
    """The connection does not come about, and no error either."""

    async def step(request: Request, progress: Progress) -> Never:
        await asyncio.Event().wait()
        raise AssertionError

    return step


async def _send(request: Request) -> None:
    payload = request.body.payload()
    if hasattr(payload, "__aiter__"):
        async for _ in payload:
            pass


class ScriptedSource:
    """Knows what it is told."""

    def __init__(self) -> None:
        self.trouble = ""
        self.has_state = asyncio.Event()
        self.wanted: list[str] = []

    def want(self, service: ServiceName) -> None:
        self.wanted.append(service)

    async def known(self, service: ServiceName) -> None:
        await self.has_state.wait()

    async def follow(self, catalog: Latest[CatalogSnapshot], verdicts: Latest[Verdicts]) -> Never:
        await asyncio.Event().wait()
        raise AssertionError


class ScriptedProber:
    """Every instance answers probes, unless it is named here."""

    def __init__(self) -> None:
        self.silent: set[str] = set()

    async def probe(self, target: Guarded) -> bool:
        await asyncio.sleep(1.0 if target.instance.id in self.silent else 0.01)
        return target.instance.id not in self.silent


class World:
    """One service, its instances' scripts, and what was asked of whom. What has no script any more answers 200."""

    def __init__(self, tasks: ContainedTasks, breaker: BreakerPolicy) -> None:
        loop = asyncio.get_running_loop()
        self.source = ScriptedSource()
        self.prober = ScriptedProber()
        self.scripts: dict[str, list[Step]] = defaultdict(list)
        self.asked: list[str] = []
        self.sent: list[Mapping[str, str]] = []
        self.outcomes: list[tuple[str, int]] = []
        self.token = ""
        self.budget = RetryBudget()
        self._catalog = Latest[CatalogSnapshot]()
        self._version = 0
        self.directory: Directory[Remote] = Directory(
            self.source,
            self._catalog,
            Latest[Verdicts](),
            RoutingPolicy(),
            lambda instance, latency: Remote(instance, breaker, latency),
            clock=loop.time,
            rng=random.Random(1),
        )
        self.directory.want(ORDERS)
        self.guard = Guard(Remote, tasks, loop.time, SuspicionPolicy(), self._note, self.prober)
        self.sender = Sender(
            self,
            self.guard,
            self.directory,
            clock=loop.time,
            rng=random.Random(1),
            token=lambda: self.token,
            budget=self.budget,
            stats=self,
        )

    def _note(self, target: Guarded, previous: State, current: State) -> None:
        pass

    def called(self, service: str, outcome: str, seconds: float, attempts: int) -> None:
        self.outcomes.append((outcome, attempts))

    async def send(
        self, request: Request, target: Remote, headers: Mapping[str, str], progress: Progress
    ) -> ScriptedReply:
        self.asked.append(target.instance.id)
        self.sent.append(headers)
        script = self.scripts[target.instance.id]
        step = script.pop(0) if script else answers()
        return await step(request, progress)

    def instances(self, *ids: str, **metadata: str) -> None:
        """These are registered now, all healthy."""
        self.publish(*(instance(id, **metadata) for id in ids))

    def publish(self, *instances: Instance) -> None:
        self._version += 1
        found = snapshot(*instances, version=self._version)
        self._catalog.set(found if instances else CatalogSnapshot({ORDERS: ()}, self._version))
        self.source.has_state.set()
        self.directory.refresh()

    def lose_the_registry(self, reason: str) -> None:
        """What is known stays, and is only the last known state from now on."""
        known = self._catalog.peek()
        assert known is not None
        self._catalog.set(replace(known, stale_since=asyncio.get_running_loop().time(), stale_reason=reason))
        self.directory.refresh()

    def target(self, id: str) -> Any:
        table = self.directory.table
        assert table is not None
        service = table.service(ORDERS)
        assert service is not None
        return next(target for target in service.all_targets() if target.instance.id == id)

    def call(
        self,
        method: str = "GET",
        *,
        body: Body = NOTHING,
        idempotent: bool | None = None,
        own_seconds: float = 90.0,
        inherited: float = NEVER,
        patience: Patience | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> "Awaitable[ScriptedReply]":
        """Make a call; await it."""
        is_idempotent = method in ("GET", "PUT", "DELETE") if idempotent is None else idempotent
        request = Request(method, "/items/1", headers or {}, body, is_idempotent, {})
        found = patience or Patience(min(30.0, own_seconds), own_seconds, RetryPolicy())
        return _inheriting(Call(self.sender, ORDERS, request, key).run(lambda service: found, own_seconds), inherited)

    def assert_balanced(self) -> None:
        """Nothing is left in flight anywhere, and nobody is waited for."""
        for target in self.directory.used_targets():
            assert target.in_flight == 0, target
            assert not target.waiting, target


async def _inheriting(call: Awaitable[ScriptedReply], until: float) -> ScriptedReply:
    """Make the call for a request that is waited for until then."""
    if until == NEVER:
        return await call
    context = contexts.current() or contexts.RequestContext("corr", "req")
    with contexts.serving_request(replace(context, deadline=Deadline(until))):
        return await call


@asynccontextmanager
async def world(
    *ids: str, breaker: BreakerPolicy | None = None, ticking: bool = True, **metadata: str
) -> AsyncIterator[World]:
    """A world with these instances of `orders`, in which the guard looks for silence as the mesh makes it."""
    async with background_tasks() as tasks:
        made = World(ContainedTasks(tasks), breaker or BreakerPolicy())
        if ids:
            made.instances(*ids, **metadata)

        async def tick() -> Never:
            while True:
                await asyncio.sleep(0.1)
                made.guard.tick(made.directory.used_targets(), asyncio.get_running_loop().time())

        if ticking:
            tasks.create_task(tick(), name="tick")
        yield made

"""The registry of a fake mesh: the embedded registry's own state and API, asked without a wire, on the virtual clock.

Nothing of it is imitated: what a service registers, how a TTL runs out, what a blocking query answers and what a wiped
registry knows is what `toska-registry` does. Only how it is reached is fake, and that is where the faults are.
"""

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import Any, Self, TypeVar
from urllib.parse import quote, unquote, urlencode

import orjson

from toska_mesh.errors import InstanceNotFoundError, RegistryUnavailableError
from toska_mesh.model import HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry
from toska_mesh.registry.consul.client import Answer
from toska_mesh.registry.consul.codec import check_id
from toska_mesh.registryd.api.http import Reply
from toska_mesh.registryd.engine import Engine
from toska_mesh.registryd.memory import MemoryStore
from toska_mesh.registryd.node import Node
from toska_mesh.testing.history import Events

T = TypeVar("T")

ADDRESS = "http://registry.fake:8500"
_REGISTER = "/v1/agent/service/register"
_DEREGISTER = "/v1/agent/service/deregister/"
_CHECK = "/v1/agent/check/"
_ME = "registry"
_NO_PARAMS: Mapping[str, str] = {}


class FakeRegistry:
    """Faults are said as what happens: `goes_away`, `comes_back`, `freezes`, `thaws`. Owned by its `FakeMesh`."""

    def __init__(self, events: Events, rng: Random) -> None:
        self._events = events
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._store = MemoryStore()
        self._is_away = False
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._alarm: asyncio.TimerHandle | None = None
        self._on_return: list[Callable[[], None]] = []
        self.delay_seconds = 0.0
        """How long every answer takes."""
        self._engine = self._start()
        self._direct = ConsulRegistry(_DirectClient(self))

    # What a test does to it

    @property
    def is_away(self) -> bool:
        return self._is_away

    def goes_away(self) -> None:
        """Refuse connections; those that are open break. Services go on as they can."""
        if self._is_away:
            return
        self._is_away = True
        self._engine.watches.close()
        if self._alarm is not None:
            self._alarm.cancel()
        self._events.add("away", _ME)

    def comes_back(self, *, wiped: bool = False) -> None:
        """Answer again. `wiped`: it has forgotten everything, and its indexes begin anew."""
        if not self._is_away:
            raise RuntimeError("the registry is not away: goes_away() comes first")
        if wiped:
            self._store.wipe()
        self._is_away = False
        self._engine = self._start()
        self._events.add("back", _ME, "wiped" if wiped else "")
        for callback in self._on_return:
            callback()
        self._mind_time()

    def freezes(self) -> None:
        """Accept everything and answer nothing, as a process that is stopped."""
        self._thawed.clear()
        self._events.add("frozen", _ME)

    def thaws(self) -> None:
        """Answer again, first what has been asked meanwhile."""
        self._thawed.set()
        self._events.add("thawed", _ME)

    def instances(self, service: str) -> tuple[Instance, ...]:
        """What it knows under the name, whatever the health, sorted by id; also while nobody can reach it."""
        return _at_once(self._direct.instances(ServiceName(service)))

    def instance(self, instance_id: str) -> Instance | None:
        """What it knows under the id."""
        names = _at_once(self._direct.service_names())
        found = (one for name in names for one in self.instances(name) if one.id == instance_id)
        return next(found, None)

    def client(self) -> "FakeConsulClient":
        """For anything that speaks to Consul: the follower, the KV store, a session."""
        return FakeConsulClient(self)

    # What the mesh around it does

    def when_back(self, callback: Callable[[], None]) -> None:
        self._on_return.append(callback)

    def enrol(self, registration: Registration) -> None:
        """Register, at once."""
        _at_once(self._direct.register(registration))
        self._mind_time()

    def report(self, instance_id: InstanceId, status: HealthStatus, output: str) -> bool:
        """Say how an instance is, at once. False: nobody knows it."""
        try:
            _at_once(self._direct.report_health(instance_id, status, output))
        except InstanceNotFoundError:
            return False
        self._mind_time()
        return True

    def withdraw(self, instance_id: InstanceId) -> None:
        """Deregister, at once."""
        try:
            _at_once(self._direct.deregister(instance_id))
        except InstanceNotFoundError:
            pass

    def keeps_beating(self, instance_id: InstanceId) -> None:
        """From now on the TTL does not run out: as if a beat came always in time, without a timer for each."""
        self._engine.state.deadlines.clear(("ttl", check_id(instance_id)))

    def stops_beating(self, instance_id: InstanceId, ttl_seconds: float) -> None:
        """Count the TTL from now, as after a last beat."""
        if self._engine.state.catalog.check(check_id(instance_id)) is not None:
            self._engine.state.deadlines.set(("ttl", check_id(instance_id)), self._loop.time() + ttl_seconds)
            self._mind_time()

    async def answer(self, method: str, target: str, body: bytes) -> Reply:
        """One request. Raises RegistryUnavailableError; waits for ever while frozen."""
        await asyncio.sleep(self.delay_seconds)
        await self._thawed.wait()
        engine = self._engine
        if not self._is_away:
            reply = await self.answer_now(engine, method, target, body)
            if not engine.watches.is_closing:
                return reply
        raise RegistryUnavailableError(f"registry {ADDRESS} cannot be reached: connection refused")

    async def answer_now(self, engine: Engine, method: str, target: str, body: bytes) -> Reply:
        before = self._status_of(engine, method, target)
        reply = await engine.api.answer(method, target, None, body)
        if method == "PUT" and reply.status == 200:
            self._note(target, body, before)
            self._mind_time()
        return reply

    @property
    def engine(self) -> Engine:
        return self._engine

    # Inside

    def _start(self) -> Engine:
        node = Node(str(self._new_id()), "registry", "127.0.0.1", 8500)
        return Engine.build(
            self._store.load(),
            node,
            self._loop.time,
            self._store.add,
            self._store.durable,
            rng=self._rng,
            new_id=self._new_id,
        )

    def _new_id(self) -> uuid.UUID:
        return uuid.UUID(int=self._rng.getrandbits(128), version=4)

    def _mind_time(self) -> None:
        """Wake up when the next thing is due; nothing ticks, so that a test that waits for nothing is found out."""
        if self._alarm is not None:
            self._alarm.cancel()
        due = self._engine.state.deadlines.next_at()
        self._alarm = None if due is None else self._loop.call_at(due, self._expire)

    def _expire(self) -> None:
        expired = self._engine.state.expire(self._loop.time())
        for check in expired.checks:
            self._events.add("expired", check.removeprefix("service:"), "its TTL ran out: unhealthy")
        for service_id in expired.reaped_services:
            self._events.add("reaped", service_id, "unhealthy for longer than its grace")
        self._mind_time()

    def _status_of(self, engine: Engine, method: str, target: str) -> str:
        if method != "PUT" or not target.startswith(_CHECK):
            return ""
        check = engine.state.catalog.check(_last(target))
        return "" if check is None else check.status

    def _note(self, target: str, body: bytes, before: str) -> None:
        """Put it into the history; beats that say nothing new are not in it."""
        if target.startswith(_REGISTER):
            said = orjson.loads(body)
            self._events.add("registered", said["ID"], f"as {said['Name']} at {said['Address']}:{said['Port']}")
        elif target.startswith(_DEREGISTER):
            self._events.add("deregistered", _last(target))
        elif target.startswith(_CHECK):
            check = self._engine.state.catalog.check(_last(target))
            if check is not None and check.status != before:
                text = f"{before} -> {check.status} {check.output}".rstrip()
                self._events.add("reported", check.service_id, text)


def _last(target: str) -> str:
    return unquote(target.partition("?")[0].rpartition("/")[2])


class FakeConsulClient(ConsulClient):
    """A client whose wire is a call. Clear `reachable` to cut it: what it asks then gets no answer."""

    def __init__(self, registry: FakeRegistry) -> None:
        super().__init__(ConsulOptions(ADDRESS))
        self._registry = registry
        self.reachable = asyncio.Event()
        self.reachable.set()

    async def __aenter__(self) -> Self:
        return self

    async def call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] = _NO_PARAMS,
        body: bytes | None = None,
        deadline: float | None = None,
        limit_seconds: float | None = None,
        missing_ok: bool = False,
    ) -> Answer:
        limit = self._options.call_seconds if limit_seconds is None else limit_seconds
        ends = asyncio.get_running_loop().time() + limit
        if deadline is not None:
            ends = min(ends, deadline)
        target = f"{path}?{urlencode(params, quote_via=quote)}" if params else path
        try:
            async with asyncio.timeout_at(ends):
                await self.reachable.wait()
                reply = await self._registry.answer(method, target, body or b"")
                await self.reachable.wait()
        except TimeoutError as error:
            raise RegistryUnavailableError(f"registry {ADDRESS} did not answer {method} {path} in time") from error
        return self._judge(reply.status, reply.headers, reply.body, missing_ok)


class _DirectClient(FakeConsulClient):
    """The mesh's own way in: no fault is in it, and nothing in it waits."""

    async def call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] = _NO_PARAMS,
        body: bytes | None = None,
        deadline: float | None = None,
        limit_seconds: float | None = None,
        missing_ok: bool = False,
    ) -> Answer:
        target = f"{path}?{urlencode(params, quote_via=quote)}" if params else path
        reply = await self._registry.answer_now(self._registry.engine, method, target, body or b"")
        return self._judge(reply.status, reply.headers, reply.body, missing_ok)


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise AssertionError("the registry in memory had to wait for something")

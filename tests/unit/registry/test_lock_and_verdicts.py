"""Leadership and verdicts against a fake Consul on the virtual clock."""

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.unit.registry.consul_fake import FakeConsul

from toska_mesh.aio import Latest
from toska_mesh.model import NO_VERDICTS, HealthStatus, InstanceId, ServiceName, Verdicts
from toska_mesh.registry.consul import ConsulLeaderLock, ConsulVerdictBoard, ConsulVerdictFollower
from toska_mesh.registry.consul.verdicts import LEADER_KEY, PREFIX

ORDERS, CARTS = ServiceName("orders"), ServiceName("carts")
UNHEALTHY, DEGRADED = HealthStatus.UNHEALTHY, HealthStatus.DEGRADED
TTL = 15


def lock(consul: FakeConsul, name: str = "me") -> ConsulLeaderLock:
    return ConsulLeaderLock(consul, "toska/test/leader", name, ttl_seconds=TTL, rng=random.Random(1))


@asynccontextmanager
async def running(*locks: ConsulLeaderLock) -> AsyncIterator[list[asyncio.Task[None]]]:
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(one.run()) for one in locks]
        await asyncio.sleep(1)
        yield started
        for task in started:
            task.cancel()


async def test_one_of_two_leads_and_the_other_follows_at_once() -> None:
    consul = FakeConsul()
    first, second = lock(consul, "first"), lock(consul, "second")
    async with running(first, second) as (task, _):
        assert [first.is_leader, second.is_leader] == [True, False]
        await asyncio.sleep(100)
        assert [first.is_leader, second.is_leader] == [True, False]
        task.cancel()
        await asyncio.sleep(1)
        assert [first.is_leader, second.is_leader] == [False, True]
        assert [first.leadership.peek(), second.leadership.peek()] == [False, True]
    assert consul.sessions == {}


@pytest.mark.parametrize("state", ["down", "frozen"])
async def test_a_leader_that_cannot_renew_steps_down_before_the_lock_may_be_anothers(state: str) -> None:
    consul = FakeConsul()
    mine = lock(consul)
    async with running(mine):
        assert mine.is_leader
        cut_at = asyncio.get_running_loop().time()
        consul.break_connections(state)
        await asyncio.sleep(TTL / 2)
        assert mine.is_leader
        await asyncio.sleep(cut_at + TTL - asyncio.get_running_loop().time() + 0.1)
        assert not mine.is_leader
        assert mine.session == ""
        await asyncio.sleep(6)
        assert mine.leadership.peek() is False
        consul.break_connections("up")
        await asyncio.sleep(10)
        assert mine.is_leader
        assert mine.leadership.peek() is True


async def test_a_lost_session_is_made_anew() -> None:
    consul = FakeConsul()
    mine = lock(consul)
    async with running(mine):
        (session,) = consul.sessions
        consul.end_session(session)
        await asyncio.sleep(1)
        assert mine.is_leader
        assert mine.session not in ("", session)


async def test_a_wiped_registry_gets_a_new_session() -> None:
    consul = FakeConsul()
    mine = lock(consul)
    async with running(mine):
        consul.break_connections("down")
        consul.wipe()
        consul.state = "up"
        await asyncio.sleep(TTL)
        assert mine.is_leader
        assert mine.session in consul.sessions


@asynccontextmanager
async def board(consul: FakeConsul, source: Latest[Verdicts]) -> AsyncIterator[ConsulVerdictBoard]:
    writer = ConsulVerdictBoard(consul, "monitor", rng=random.Random(1))
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(writer.run(source))
        await asyncio.sleep(1)
        yield writer
        task.cancel()


def on_board(consul: FakeConsul) -> dict[str, object]:
    found = {key: entry for key, entry in consul.kv.items() if key.startswith(PREFIX)}
    return {key.removeprefix(PREFIX): json.loads(base64.b64decode(entry["Value"])) for key, entry in found.items()}


def verdicts(**found: HealthStatus) -> Verdicts:
    return Verdicts({ORDERS: {InstanceId(key): status for key, status in found.items()}}, {ORDERS: 5})


async def test_the_board_holds_what_is_objected_to_and_nothing_else() -> None:
    consul, source = FakeConsul(), Latest[Verdicts]()
    async with board(consul, source) as writer:
        assert writer.is_leader
        assert on_board(consul) == {}
        source.set(verdicts(b=UNHEALTHY, a=DEGRADED))
        await asyncio.sleep(1)
        expected = {"monitor": "monitor", "probed": 5, "instances": {"a": "Degraded", "b": "Unhealthy"}}
        assert on_board(consul) == {"orders": expected}
        source.set(Verdicts({ORDERS: {}, CARTS: {InstanceId("c"): UNHEALTHY}}, {ORDERS: 5, CARTS: 1}))
        await asyncio.sleep(1)
        assert set(on_board(consul)) == {"carts"}
    assert consul.kv == {}
    assert consul.sessions == {}


async def test_unchanged_verdicts_are_not_written_again() -> None:
    consul, source = FakeConsul(), Latest[Verdicts]()
    async with board(consul, source):
        source.set(verdicts(a=UNHEALTHY))
        await asyncio.sleep(1)
        consul.calls.clear()
        source.set(verdicts(a=UNHEALTHY))
        await asyncio.sleep(100)
        assert not [path for _, method, path, _ in consul.calls if method == "PUT" and "/kv/" in path]


async def test_a_lost_session_or_key_is_written_again() -> None:
    consul, source = FakeConsul(), Latest[Verdicts]()
    async with board(consul, source) as writer:
        source.set(verdicts(a=UNHEALTHY))
        await asyncio.sleep(1)
        for session in list(consul.sessions):
            consul.end_session(session)
        assert on_board(consul) == {}
        await asyncio.sleep(10)
        assert writer.is_leader
        assert set(on_board(consul)) == {"orders"}
        del consul.kv[PREFIX + "orders"]  # by an operator
        await asyncio.sleep(35)
        assert set(on_board(consul)) == {"orders"}


async def test_a_key_that_another_session_locked_does_not_hold_up_the_others() -> None:
    consul, source = FakeConsul(), Latest[Verdicts]()
    consul.sessions["foreign"] = "x"
    consul.kv[PREFIX + "carts"] = {"Key": PREFIX + "carts", "Value": "", "Session": "foreign"}
    async with board(consul, source):
        found = {InstanceId("x"): UNHEALTHY}
        source.set(Verdicts({CARTS: found, ORDERS: found}, {}))
        await asyncio.sleep(1)
        assert consul.kv[PREFIX + "orders"]["Session"] != "foreign"


async def test_who_does_not_lead_writes_nothing() -> None:
    consul, source = FakeConsul(), Latest[Verdicts]()
    consul.sessions["other"] = "other monitor"
    consul.kv[LEADER_KEY] = {"Key": LEADER_KEY, "Value": "", "Session": "other"}
    async with board(consul, source) as writer:
        source.set(verdicts(a=UNHEALTHY))
        await asyncio.sleep(60)
        assert not writer.is_leader
        assert on_board(consul) == {}
        consul.end_session("other")
        await asyncio.sleep(1)
        assert writer.is_leader
        assert set(on_board(consul)) == {"orders"}


@asynccontextmanager
async def reader(consul: FakeConsul) -> AsyncIterator[Latest[Verdicts]]:
    seen = Latest[Verdicts]()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(ConsulVerdictFollower(consul, rng=random.Random(1)).follow(seen))
        await asyncio.sleep(1)
        yield seen
        task.cancel()


async def test_a_reader_sees_what_the_board_holds() -> None:
    consul, source = FakeConsul(), Latest[Verdicts]()
    async with reader(consul) as seen:
        assert seen.peek() == NO_VERDICTS
        async with board(consul, source):
            source.set(verdicts(a=UNHEALTHY))
            await asyncio.sleep(1)
            assert seen.peek() == verdicts(a=UNHEALTHY)
            version = seen.version
            await asyncio.sleep(200)
            assert seen.version == version
        await asyncio.sleep(1)
        assert seen.peek() == NO_VERDICTS


@pytest.mark.parametrize("state", ["down", "frozen"])
async def test_a_reader_drops_verdicts_that_nobody_confirms(state: str) -> None:
    consul, source = FakeConsul(), Latest[Verdicts]()
    async with board(consul, source), reader(consul) as seen:
        source.set(verdicts(a=UNHEALTHY))
        await asyncio.sleep(1)
        consul.break_connections(state)
        await asyncio.sleep(13)
        assert seen.peek() == verdicts(a=UNHEALTHY)
        await asyncio.sleep(18)
        assert seen.peek() == NO_VERDICTS
        consul.break_connections("up")
        await asyncio.sleep(20)
        assert seen.peek() == verdicts(a=UNHEALTHY)


def key(service: str, value: object, session: str = "s") -> dict[str, object]:
    text = value if isinstance(value, str) else json.dumps(value)
    return {"Key": PREFIX + service, "Value": base64.b64encode(text.encode()).decode(), "Session": session}


async def test_a_reader_passes_over_what_it_cannot_read_or_trust() -> None:
    consul = FakeConsul()
    good = {"probed": 1, "instances": {"o1": "Unhealthy"}}
    entries = [
        key("orders", good),
        key("no-session", good, session=""),
        key("no-json", "{"),
        key("odd-status", {"probed": 1, "instances": {"x": "Sleepy"}}),
        key("no-count", {"instances": {}}),
        key("", good),
    ]
    consul.kv = {str(entry["Key"]): entry for entry in entries}
    async with reader(consul) as seen:
        assert seen.peek() == Verdicts({ORDERS: {InstanceId("o1"): UNHEALTHY}}, {ORDERS: 1})


@pytest.mark.parametrize("step", range(0, 60, 3))
async def test_cancelled_at_any_await_the_board_gives_its_session_back(step: int) -> None:
    consul, source = FakeConsul(), Latest[Verdicts]()
    source.set(verdicts(a=UNHEALTHY))
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(ConsulVerdictBoard(consul, "monitor").run(source))
        for _ in range(step):
            await asyncio.sleep(0.0005)
        task.cancel()
    assert task.cancelled()
    assert consul.sessions == {}
    assert on_board(consul) == {}

"""Delivery against a scripted broker: at least once, in order per service, through every kind of trouble."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Never

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.virtual_loop import run_virtual
from tests.unit.messaging.examples import NOW, InlineExecutor, metrics, outgoing

from toska_mesh.messaging.delivery import (
    BrokerLostError,
    Delivery,
    DeliveryPolicy,
    MessageRefusedError,
)
from toska_mesh.messaging.envelope import Outgoing
from toska_mesh.messaging.outbox import Outbox
from toska_mesh.messaging.store import OutboxStore

POLICY = DeliveryPolicy()


@dataclass
class Broker:
    """What the fake sessions share: what arrived, and how the broker behaves now."""

    arrived: list[Outgoing] = field(default_factory=list)
    is_up: bool = True
    is_silent: bool = False
    refuse: set[str] = field(default_factory=set)
    confirm_seconds: float = 0.0
    under_way: int = 0
    most_under_way: int = 0
    connects: list[float] = field(default_factory=list)
    sessions: int = 0
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    def by_lane(self) -> dict[str, list[bytes]]:
        """First arrivals of each lane in order; repetitions of a message left out."""
        lanes: dict[str, list[bytes]] = defaultdict(list)
        for message in self.arrived:
            if message.body not in lanes[message.lane]:
                lanes[message.lane].append(message.body)
        return lanes

    def break_connections(self) -> None:
        self.lost.set()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator["Session"]:
        self.connects.append(asyncio.get_running_loop().time())
        if not self.is_up:
            raise BrokerLostError("refused")
        self.lost = asyncio.Event()
        self.sessions += 1
        yield Session(self)


class Session:
    is_blocked = False

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    async def publish(self, outgoing: Outgoing) -> None:
        broker = self.broker
        broker.under_way += 1
        broker.most_under_way = max(broker.most_under_way, broker.under_way)
        try:
            if outgoing.lane in broker.refuse:
                raise MessageRefusedError("nack")
            broker.arrived.append(outgoing)
            await asyncio.sleep(broker.confirm_seconds)
            if broker.is_silent:
                await asyncio.Event().wait()
        finally:
            broker.under_way -= 1

    async def watch(self) -> Never:
        await self.broker.lost.wait()
        raise BrokerLostError("gone")


@asynccontextmanager
async def delivering(
    folder: Path, broker: Broker, policy: DeliveryPolicy = POLICY
) -> AsyncIterator[tuple[Outbox, Delivery]]:
    counters = metrics()
    with closing(OutboxStore(folder)) as store:
        outbox = Outbox(store, InlineExecutor(), counters, lambda: NOW)
        delivery = Delivery(outbox, broker.connect, counters, policy, random.Random(1))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(outbox.run()), tasks.create_task(delivery.run())]
            try:
                yield outbox, delivery
            finally:
                for task in running:
                    task.cancel()


def numbered(count: int, lanes: int = 3) -> list[Outgoing]:
    return [outgoing(f"lane-{number % lanes}", b'{"n":%d}' % number) for number in range(count)]


def expected(events: list[Outgoing]) -> dict[str, list[bytes]]:
    lanes: dict[str, list[bytes]] = defaultdict(list)
    for event in events:
        lanes[event.lane].append(event.body)
    return lanes


async def test_events_arrive_once_and_in_order_per_lane(tmp_path):
    broker, events = Broker(), numbered(30)
    async with delivering(tmp_path, broker) as (outbox, _):
        for event in events:
            await outbox.put(event)
        await outbox.until_empty()
    assert broker.by_lane() == expected(events)
    assert len(broker.arrived) == 30


async def test_publishing_goes_on_while_the_broker_is_away(tmp_path):
    broker, events = Broker(is_up=False), numbered(100)
    async with delivering(tmp_path, broker) as (outbox, delivery):
        for event in events:
            await outbox.put(event)
        assert asyncio.get_running_loop().time() == 0.0
        await asyncio.sleep(1)
        assert (delivery.is_connected, delivery.trouble) == (False, "refused")
        broker.is_up = True
        await outbox.until_empty()
        assert (delivery.is_connected, delivery.trouble) == (True, "")
    assert broker.by_lane() == expected(events)


async def test_tries_to_connect_grow_apart_up_to_a_bound(tmp_path):
    broker = Broker(is_up=False)
    async with delivering(tmp_path, broker):
        await asyncio.sleep(600)
    gaps = [later - earlier for earlier, later in zip(broker.connects, broker.connects[1:], strict=False)]
    assert all(gap <= 0.5 * 2**tries for tries, gap in enumerate(gaps))
    assert all(15 <= gap <= 30 for gap in gaps[6:])
    assert len(set(gaps)) == len(gaps)  # jitter: a fleet does not knock in step


async def test_a_session_that_breaks_at_once_each_time_is_no_tight_loop(tmp_path):
    class Fragile(Broker):
        @asynccontextmanager
        async def connect(self):
            async with super().connect() as session:
                self.break_connections()
                yield session

    broker = Fragile()
    async with delivering(tmp_path, broker):
        await asyncio.sleep(300)
    assert broker.sessions < 25


async def test_after_a_long_life_a_lost_connection_is_replaced_quickly(tmp_path):
    broker = Broker()
    async with delivering(tmp_path, broker):
        for _ in range(5):
            await asyncio.sleep(3600)
            broker.break_connections()
        await asyncio.sleep(1)
    assert broker.sessions == 6


async def test_unconfirmed_events_are_sent_again_over_the_next_connection_in_order(tmp_path):
    broker, events = Broker(is_silent=True), numbered(9)
    async with delivering(tmp_path, broker) as (outbox, _):
        for event in events:
            await outbox.put(event)
        await asyncio.sleep(5)
        assert len(broker.arrived) == 3  # of each lane only the first is under way
        broker.is_silent = False
        broker.break_connections()
        await outbox.until_empty()
    assert broker.by_lane() == expected(events)
    assert len(broker.arrived) == 12


async def test_a_refused_event_holds_its_own_lane_and_no_other(tmp_path):
    broker, events = Broker(refuse={"lane-0"}), numbered(9)
    async with delivering(tmp_path, broker) as (outbox, _):
        for event in events:
            await outbox.put(event)
        await asyncio.sleep(60)
        assert broker.by_lane() == {lane: bodies for lane, bodies in expected(events).items() if lane != "lane-0"}
        assert outbox.waiting == 3
        broker.refuse.clear()
        await outbox.until_empty()
    assert broker.by_lane() == expected(events)
    assert broker.sessions == 1


async def test_no_more_than_the_window_is_under_way(tmp_path):
    broker = Broker(confirm_seconds=1)
    async with delivering(tmp_path, broker, DeliveryPolicy(window=4)) as (outbox, _):
        for event in numbered(20, lanes=20):
            await outbox.put(event)
        await outbox.until_empty()
    assert broker.most_under_way == 4
    assert len(broker.arrived) == 20


async def test_many_lanes_are_under_way_at_once(tmp_path):
    broker = Broker(confirm_seconds=1)
    async with delivering(tmp_path, broker) as (outbox, _):
        for event in numbered(100, lanes=100):
            await outbox.put(event)
        await outbox.until_empty()
        assert asyncio.get_running_loop().time() < 2


async def test_a_bug_in_the_session_ends_delivery_loudly(tmp_path):
    class Buggy(Broker):
        @asynccontextmanager
        async def connect(self):
            raise ZeroDivisionError
            yield

    with pytest.raises(ExceptionGroup) as caught:
        async with delivering(tmp_path, Buggy()):
            await asyncio.sleep(1)
    assert caught.group_contains(ZeroDivisionError)


async def test_delivery_can_be_cancelled_at_any_moment(tmp_path):
    for moment in (0.0, 0.5, 1.0, 1.5, 2.0):
        broker = Broker(confirm_seconds=1, refuse={"lane-2"})
        async with delivering(tmp_path / str(moment), broker) as (outbox, _):
            for event in numbered(9):
                await outbox.put(event)
            await asyncio.sleep(moment)
        assert broker.under_way == 0


async def test_a_loss_at_the_moment_of_the_cancellation_does_not_swallow_it(tmp_path):
    broker = Broker()
    async with delivering(tmp_path, broker):
        await asyncio.sleep(1)
        broker.break_connections()
        await asyncio.sleep(0)  # the watcher fails in the same turn in which the block's end cancels delivery


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    troubles=st.lists(
        st.tuples(st.floats(0.1, 20), st.sampled_from(["down", "up", "break", "silent", "heard", "refuse", "take"])),
        max_size=12,
    ),
    pauses=st.lists(st.floats(0, 5), min_size=12, max_size=12),
)
def test_whatever_the_broker_does_every_event_arrives_in_order(tmp_path_factory, troubles, pauses):
    folder = tmp_path_factory.mktemp("outbox")
    events = numbered(len(pauses))

    async def scenario() -> Broker:
        broker = Broker(confirm_seconds=0.05)
        async with delivering(folder, broker) as (outbox, _), asyncio.TaskGroup() as tasks:
            tasks.create_task(_play(broker, troubles))
            for event, pause in zip(events, pauses, strict=True):
                await outbox.put(event)
                await asyncio.sleep(pause)
            await outbox.until_empty()
        return broker

    assert run_virtual(scenario).by_lane() == expected(events)


async def _play(broker: Broker, troubles: list[tuple[float, str]]) -> None:
    """Act, and leave a working broker behind."""
    for pause, trouble in troubles:
        await asyncio.sleep(pause)
        match trouble:
            case "down" | "up":
                broker.is_up = trouble == "up"
                broker.break_connections()
            case "break":
                broker.break_connections()
            case "silent" | "heard":
                broker.is_silent = trouble == "silent"
            case "refuse" | "take":
                broker.refuse = {"lane-1"} if trouble == "refuse" else set()
    broker.is_up, broker.is_silent, broker.refuse = True, False, set()
    broker.break_connections()

"""Who announces what, and what happens when the sink refuses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from tests.unit.healthmonitor.builders import START, a_snapshot

from toska_mesh.aio import Latest
from toska_mesh.errors import PublishError
from toska_mesh.healthmonitor.announcer import Announcer
from toska_mesh.healthmonitor.history import Announcements, Transition
from toska_mesh.messaging import SinkState
from toska_mesh.model import (
    CatalogSnapshot,
    HealthStatus,
    InstanceHealthChanged,
    InstanceId,
    MeshMessage,
    ServiceName,
    Verdicts,
)


class Sink:
    def __init__(self) -> None:
        self.taken: list[InstanceHealthChanged] = []
        self.refusals = 0
        self.state = SinkState(is_enabled=True)

    async def publish(self, message: MeshMessage) -> None:
        if self.refusals:
            self.refusals -= 1
            raise PublishError("the disk is full")
        assert isinstance(message, InstanceHealthChanged)
        self.taken.append(message)


class Board:
    is_leader = True

    async def run(self, verdicts: Latest[Verdicts]) -> None:
        raise AssertionError("not the announcer's job")


def turned(name: str, current: HealthStatus = HealthStatus.UNHEALTHY) -> Transition:
    return Transition(ServiceName("orders"), InstanceId(name), HealthStatus.HEALTHY, current, START, "http", "HTTP 503")


@asynccontextmanager
async def announcing(sink: Sink, board: Board, catalog: Latest[CatalogSnapshot]) -> AsyncIterator[Announcements]:
    announcements = Announcements(hand_over_seconds=60)
    announcer = Announcer(announcements, sink, board, catalog, uuid4)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(announcer.run())
        yield announcements
        task.cancel()


def a_catalog(stale_since: float | None = None) -> Latest[CatalogSnapshot]:
    catalog: Latest[CatalogSnapshot] = Latest()
    catalog.set(a_snapshot(stale_since=stale_since))
    return catalog


async def test_the_leader_announces_in_order_with_all_fields():
    sink, board = Sink(), Board()
    async with announcing(sink, board, a_catalog()) as announcements:
        announcements.add(turned("orders-1"))
        announcements.add(turned("orders-2"))
        await asyncio.sleep(1)
    assert [event.instance_id for event in sink.taken] == ["orders-1", "orders-2"]
    event = sink.taken[0]
    assert (event.service, event.previous, event.current, event.output, event.timestamp) == (
        "orders",
        HealthStatus.HEALTHY,
        HealthStatus.UNHEALTHY,
        "HTTP 503",
        START,
    )
    assert event.event_id != sink.taken[1].event_id


async def test_a_refused_event_stays_first_in_line():
    sink, board = Sink(), Board()
    sink.refusals = 3
    async with announcing(sink, board, a_catalog()) as announcements:
        announcements.add(turned("orders-1"))
        announcements.add(turned("orders-2"))
        await asyncio.sleep(60)
    assert [event.instance_id for event in sink.taken] == ["orders-1", "orders-2"]


async def test_a_follower_announces_nothing_and_takes_over_what_the_dead_leader_missed():
    sink, board = Sink(), Board()
    board.is_leader = False
    async with announcing(sink, board, a_catalog()) as announcements:
        announcements.add(turned("long-ago"))
        await asyncio.sleep(90)
        announcements.add(turned("just-now"))
        await asyncio.sleep(20)
        assert sink.taken == []
        board.is_leader = True
        await asyncio.sleep(1)
    assert [event.instance_id for event in sink.taken] == ["just-now"]


async def test_a_lone_monitor_without_its_registry_loses_no_event():
    sink, board = Sink(), Board()
    board.is_leader = False
    async with announcing(sink, board, a_catalog(stale_since=0.0)) as announcements:
        announcements.add(turned("orders-1"))
        await asyncio.sleep(3600)
        board.is_leader = True
        await asyncio.sleep(1)
    assert [event.instance_id for event in sink.taken] == ["orders-1"]

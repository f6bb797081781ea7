"""The outbox: safe before `put` returns, bounded, in order, and honest when the disk fails."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.messaging.examples import NOW, InlineExecutor, metrics, outgoing

from toska_mesh.errors import MessagingError, PublishError
from toska_mesh.messaging.envelope import Outgoing
from toska_mesh.messaging.outbox import Outbox, OutboxLimits
from toska_mesh.messaging.store import OutboxStore, Stored


class CountingStore(OutboxStore):
    """Counts transactions; fails on demand."""

    commits = 0
    broken = False

    def apply(self, added: Sequence[Outgoing], removed: Sequence[int], now: float) -> list[int]:
        if self.broken:
            raise sqlite3.OperationalError("database or disk is full")
        self.commits += 1
        return super().apply(added, removed, now)

    def load(self, seqs: Sequence[int]) -> list[Stored]:
        if self.broken:
            raise sqlite3.OperationalError("disk I/O error")
        return super().load(seqs)


@asynccontextmanager
async def opened(
    folder: Path, limits: OutboxLimits | None = None, executor: Executor | None = None
) -> AsyncIterator[tuple[Outbox, CountingStore]]:
    with closing(CountingStore(folder)) as store:
        outbox = Outbox(store, executor or InlineExecutor(), metrics(), lambda: NOW, limits or OutboxLimits())
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(outbox.run())
            try:
                yield outbox, store
            finally:
                running.cancel()


async def test_an_event_is_on_disk_when_put_returns(tmp_path):
    event = outgoing()
    async with opened(tmp_path) as (outbox, store):
        await outbox.put(event)
        assert [stored.outgoing for stored in store.load([1])] == [event]
        assert outbox.waiting == 1


async def test_publishers_that_wait_together_share_one_transaction(tmp_path):
    async with opened(tmp_path) as (outbox, store):
        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                tasks.create_task(outbox.put(outgoing(f"lane-{number}")))
        assert store.commits == 1
        assert outbox.waiting == 50


async def test_events_of_one_publisher_keep_their_order(tmp_path):
    events = [outgoing("a", b'{"n":%d}' % number) for number in range(5)]
    async with opened(tmp_path) as (outbox, _):
        for event in events:
            await outbox.put(event)
        taken = []
        for _ in events:
            (stored,) = await outbox.take(10)
            taken.append(stored.outgoing)
            outbox.delivered(stored)
        assert taken == events


async def test_delivered_events_leave_the_disk(tmp_path):
    async with opened(tmp_path) as (outbox, store):
        await outbox.put(outgoing())
        (stored,) = await outbox.take(1)
        outbox.delivered(stored)
        await outbox.until_empty()
        assert store.entries() == []
        assert (outbox.waiting, outbox.waiting_bytes) == (0, 0)


async def test_what_was_not_delivered_is_taken_after_a_restart_in_order(tmp_path):
    events = [outgoing(lane) for lane in ("a", "b", "a")]
    async with opened(tmp_path) as (outbox, _):
        for event in events:
            await outbox.put(event)
    async with opened(tmp_path) as (outbox, _):
        assert outbox.waiting == 3
        first = await outbox.take(10)
        assert [stored.outgoing for stored in first] == events[:2]
        outbox.delivered(first[0])
        assert [stored.outgoing for stored in await outbox.take(10)] == events[2:]


async def test_at_the_bound_new_events_are_refused_and_old_ones_stay(tmp_path):
    async with opened(tmp_path, OutboxLimits(max_events=2)) as (outbox, store):
        await outbox.put(outgoing("a"))
        await outbox.put(outgoing("b"))
        with pytest.raises(PublishError, match="full: 2 events"):
            await outbox.put(outgoing("c"))
        assert [entry.lane for entry in store.entries()] == ["a", "b"]
        outbox.delivered((await outbox.take(1))[0])
        await outbox.put(outgoing("c"))


async def test_the_bound_counts_events_that_are_just_being_written(tmp_path):
    async with opened(tmp_path, OutboxLimits(max_events=2)) as (outbox, store):
        async with asyncio.TaskGroup() as tasks:
            puts = [tasks.create_task(_outcome(outbox)) for _ in range(5)]
        assert [task.result() for task in puts] == [True, True, False, False, False]
        assert len(store.entries()) == 2


async def test_bytes_are_bounded_too(tmp_path):
    async with opened(tmp_path, OutboxLimits(max_bytes=3000, max_event_bytes=2000)) as (outbox, _):
        await outbox.put(outgoing(body=b"x" * 1500))
        with pytest.raises(PublishError, match="full"):
            await outbox.put(outgoing(body=b"x" * 1500))
        with pytest.raises(PublishError, match="2001 bytes"):
            await outbox.put(outgoing(body=b"x" * 2001))


async def test_a_full_disk_is_told_to_the_publisher_and_passes(tmp_path):
    async with opened(tmp_path) as (outbox, store):
        store.broken = True
        with pytest.raises(PublishError, match="disk is full"):
            await outbox.put(outgoing())
        assert (outbox.waiting, outbox.waiting_bytes) == (0, 0)
        store.broken = False
        await outbox.put(outgoing())
        assert outbox.waiting == 1


async def test_a_removal_that_failed_is_repeated(tmp_path):
    async with opened(tmp_path) as (outbox, store):
        await outbox.put(outgoing())
        (stored,) = await outbox.take(1)
        store.broken = True
        outbox.delivered(stored)
        await asyncio.sleep(5)
        assert not outbox._idle.is_set()
        store.broken = False
        await outbox.until_empty()
        assert store.entries() == []


async def test_an_unreadable_file_is_a_messaging_error(tmp_path):
    async with opened(tmp_path) as (outbox, store):
        await outbox.put(outgoing())
        store.broken = True
        with pytest.raises(MessagingError, match="I/O error"):
            await outbox.take(1)
        store.broken = False
        outbox.reset()
        assert len(await outbox.take(1)) == 1


async def test_a_row_that_vanished_does_not_stop_its_lane(tmp_path):
    async with opened(tmp_path) as (outbox, store):
        await outbox.put(outgoing("a"))
        await outbox.put(outgoing("a"))
        store._db.execute("DELETE FROM outbox WHERE seq = 1")
        assert await outbox.take(1) == []
        assert [stored.seq for stored in await outbox.take(1)] == [2]


async def test_a_disk_that_hangs_is_reported_in_time(tmp_path):
    class Hanging(Executor):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            return Future()

    loop = asyncio.get_running_loop()
    with closing(CountingStore(tmp_path)) as store:
        outbox = Outbox(store, Hanging(), metrics(), lambda: NOW)
        async with asyncio.TaskGroup() as tasks:
            # The virtual loop would wait for a real thread; nothing real hangs here.
            loop.run_in_executor = lambda executor, work, *args: loop.create_future()
            running = tasks.create_task(outbox.run())
            with pytest.raises(PublishError, match="longer than 5 s"):
                await outbox.put(outgoing())
            assert loop.time() == 5.0
            running.cancel()


async def test_a_publisher_that_is_cancelled_disturbs_nobody(tmp_path):
    async with opened(tmp_path) as (outbox, store):
        async with asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(outbox.put(outgoing("a")))
            staying = tasks.create_task(outbox.put(outgoing("b")))
            await asyncio.sleep(0)
            leaving.cancel()
        assert staying.done()
        assert len(store.entries()) == outbox.waiting == 2


async def test_closing_writes_what_waits_and_refuses_what_comes(tmp_path):
    async with opened(tmp_path) as (outbox, store):
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(outbox.put(outgoing()))
            await asyncio.sleep(0)
            await outbox.close()
        assert waiting.exception() is None
        assert len(store.entries()) == 1
        with pytest.raises(PublishError, match="closed"):
            await outbox.put(outgoing())


async def test_publishers_are_told_when_the_writer_ends(tmp_path):
    with closing(CountingStore(tmp_path)) as store:
        outbox = Outbox(store, InlineExecutor(), metrics(), lambda: NOW)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(outbox.run())
            await asyncio.sleep(0)
            put = tasks.create_task(_outcome(outbox))
            await asyncio.sleep(0)
            running.cancel()
        assert put.result() is False


async def test_the_age_of_the_oldest_event_is_known(tmp_path):
    now = NOW
    with closing(CountingStore(tmp_path)) as store:
        store.apply([outgoing()], [], now=(NOW - timedelta(seconds=90)).timestamp())
        outbox = Outbox(store, InlineExecutor(), metrics(), lambda: now)
        assert outbox.oldest_age_seconds == 90.0
        (stored,) = await outbox.take(1)
        outbox.delivered(stored)
        assert outbox.oldest_age_seconds == 0.0


async def test_a_backlog_that_was_large_gives_its_space_back_once_delivered(tmp_path):
    async with opened(tmp_path) as (outbox, _):
        for number in range(20):
            await outbox.put(outgoing(f"lane-{number}", b'"%s"' % (b"x" * 1_000_000)))
        for stored in await outbox.take(100):
            outbox.delivered(stored)
        await outbox.until_empty()
        await asyncio.sleep(1)
        assert (tmp_path / "outbox.sqlite3").stat().st_size < 1_000_000


async def _outcome(outbox: Outbox) -> bool:
    try:
        await outbox.put(outgoing())
    except PublishError:
        return False
    return True

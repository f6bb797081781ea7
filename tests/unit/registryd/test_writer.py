"""Group commit: an answer waits for its own rows, and a refusing disk loses nothing."""

import asyncio
import sqlite3
from collections.abc import Callable

import pytest

from toska_mesh.registryd.writer import GroupWriter, NotDurableError, Rows


class SlowDisk:
    """Commits when told to."""

    def __init__(self) -> None:
        self.batches: list[dict[tuple[str, str], bytes | None]] = []
        self.failure: Exception | None = None
        self.health: list[str | None] = []
        self._under_way: list[tuple[asyncio.Future[None], Callable[[], None]]] = []

    def submit(self, work: Callable[[], None]) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way.append((future, work))
        return future

    def apply(self, rows: Rows, index: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.batches.append(dict(rows))

    async def commit(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        future, work = self._under_way.pop(0)
        try:
            work()
        except sqlite3.Error as exc:
            future.set_exception(exc)
        else:
            future.set_result(None)
        for _ in range(3):
            await asyncio.sleep(0)

    def writer(self) -> GroupWriter:
        return GroupWriter(self.apply, self.submit, self.health.append, lambda rows: None)


async def command(writer: GroupWriter, rows: Rows, index: int) -> None:
    """As the API does it: no step of the loop between the change and the waiting."""
    writer.add(rows, index)
    await writer.durable()


async def test_commands_of_one_turn_and_those_during_a_commit_share_batches() -> None:
    disk = SlowDisk()
    writer = disk.writer()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(command(writer, {("kv", "a"): b"1"}, 1))
        second = tasks.create_task(command(writer, {("kv", "b"): b"1"}, 2))
        for _ in range(3):
            await asyncio.sleep(0)
        third = tasks.create_task(command(writer, {("kv", "a"): b"2"}, 3))
        await disk.commit()
        assert (first.done(), second.done(), third.done()) == (True, True, False)
        await disk.commit()
        assert third.done()
    assert disk.batches == [{("kv", "a"): b"1", ("kv", "b"): b"1"}, {("kv", "a"): b"2"}]


async def test_with_nothing_pending_nobody_waits() -> None:
    await SlowDisk().writer().durable()


async def test_a_command_without_rows_waits_for_what_it_saw() -> None:
    disk = SlowDisk()
    writer = disk.writer()
    writer.add({("kv", "a"): b"1"}, 1)
    for _ in range(3):
        await asyncio.sleep(0)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(writer.durable())
        await asyncio.sleep(0)
        assert not waiting.done()
        await disk.commit()
        assert waiting.done()
    assert len(disk.batches) == 1


async def test_a_refusing_disk_fails_the_answers_and_is_tried_again() -> None:
    disk = SlowDisk()
    writer = disk.writer()
    disk.failure = sqlite3.OperationalError("database or disk is full")
    writer.add({("kv", "a"): b"1", ("kv", "b"): b"1"}, 1)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(expect_refusal(writer))
        await disk.commit()
        await waiting
    writer.add({("kv", "a"): None}, 2)
    disk.failure = None
    await asyncio.sleep(1.1)
    await disk.commit()
    assert disk.batches == [{("kv", "a"): None, ("kv", "b"): b"1"}]
    assert disk.health == ["database or disk is full", None]
    assert writer.is_idle


async def expect_refusal(writer: GroupWriter) -> None:
    with pytest.raises(NotDurableError, match="disk is full"):
        await writer.durable()


async def test_closing_waits_for_the_last_batch() -> None:
    disk = SlowDisk()
    writer = disk.writer()
    writer.add({("kv", "a"): b"1"}, 1)
    async with asyncio.TaskGroup() as tasks:
        closing = tasks.create_task(writer.close(5.0))
        await disk.commit()
        assert await closing is True


async def test_closing_says_when_something_stays_unwritten() -> None:
    disk = SlowDisk()
    writer = disk.writer()
    disk.failure = sqlite3.OperationalError("no")
    writer.add({("kv", "a"): b"1"}, 1)
    async with asyncio.TaskGroup() as tasks:
        closing = tasks.create_task(writer.close(5.0))
        await disk.commit()
        assert await closing is False

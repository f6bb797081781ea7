"""`Latest`: the newest value from one writer to any number of readers."""

import asyncio

import pytest

from toska_mesh.aio import Latest


def test_it_is_empty_before_the_first_value() -> None:
    latest = Latest[int]()
    assert latest.peek() is None
    assert latest.version == 0


async def test_a_waiting_reader_gets_the_value_when_it_is_set() -> None:
    latest = Latest[int]()
    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(latest.first())
        await asyncio.sleep(1)
        assert not reader.done()
        latest.set(7)
    assert reader.result() == 7


async def test_every_waiting_reader_is_woken() -> None:
    latest = Latest[str]()
    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(latest.first()) for _ in range(3)]
        await asyncio.sleep(0)
        latest.set("new")
    assert [reader.result() for reader in readers] == ["new", "new", "new"]


async def test_a_reader_of_an_old_version_does_not_wait() -> None:
    latest = Latest[int]()
    latest.set(1)
    latest.set(2)
    assert await latest.newer_than(0) == (2, 2)
    assert await latest.newer_than(1) == (2, 2)


async def test_a_reader_of_the_newest_version_waits_for_the_next() -> None:
    latest = Latest[int]()
    latest.set(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await latest.newer_than(1)


async def test_a_value_set_between_the_wake_up_and_the_read_is_the_one_that_is_read() -> None:
    latest = Latest[int]()
    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(latest.newer_than(0))
        await asyncio.sleep(0)
        latest.set(1)
        latest.set(2)
    assert reader.result() == (2, 2)


async def test_a_slow_reader_skips_what_it_missed() -> None:
    latest = Latest[int]()
    seen: list[int] = []

    async def read() -> None:
        async for value in latest.updates():
            seen.append(value)
            await asyncio.sleep(10)
            if value == 5:
                return

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        for value in range(1, 6):
            latest.set(value)
            await asyncio.sleep(4)
    assert seen[0] == 1
    assert seen[-1] == 5
    assert len(seen) < 5
    assert seen == sorted(seen)


async def test_equal_values_are_news_too() -> None:
    latest = Latest[int]()
    latest.set(1)
    latest.set(1)
    assert latest.version == 2


async def test_a_cancelled_reader_leaves_the_others_alone() -> None:
    latest = Latest[int]()
    async with asyncio.TaskGroup() as tasks:
        leaving = tasks.create_task(latest.first())
        staying = tasks.create_task(latest.first())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        latest.set(3)
    assert leaving.cancelled()
    assert staying.result() == 3

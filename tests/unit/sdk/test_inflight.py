"""Counting requests, and waiting for the last one."""

import asyncio

import pytest

from toska_mesh.sdk.inflight import InFlight


async def test_nothing_in_flight_is_idle_at_once() -> None:
    await InFlight().idle()


async def test_idle_comes_with_the_end_of_the_last_request() -> None:
    loop = asyncio.get_running_loop()
    in_flight = InFlight()

    async def serve(seconds: float) -> None:
        with in_flight.counted():
            await asyncio.sleep(seconds)

    async with asyncio.TaskGroup() as tasks:
        for seconds in (1, 5, 3):
            tasks.create_task(serve(seconds))
        await asyncio.sleep(0)
        assert in_flight.count == 3
        await in_flight.idle()
        assert loop.time() == 5
    assert in_flight.count == 0


async def test_a_request_that_begins_when_the_last_one_ends_is_waited_for_too() -> None:
    loop = asyncio.get_running_loop()
    in_flight = InFlight()

    async def serve() -> None:
        in_flight.begin()
        await asyncio.sleep(1)
        in_flight.end()
        in_flight.begin()
        await asyncio.sleep(1)
        in_flight.end()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve())
        await asyncio.sleep(0)
        await in_flight.idle()
        assert loop.time() == 2


async def test_a_request_that_fails_or_is_cancelled_is_not_counted_any_more() -> None:
    in_flight = InFlight()
    with pytest.raises(ValueError), in_flight.counted():
        raise ValueError
    with pytest.raises(asyncio.CancelledError), in_flight.counted():
        raise asyncio.CancelledError
    await in_flight.idle()

"""Watching: bulk wake-ups, one serialisation, an end to waiting."""

import asyncio
from random import Random

from toska_mesh.registryd.api.http import Blocking
from toska_mesh.registryd.api.reads import Reads, Resource
from toska_mesh.registryd.watches import Watches


class Counted:
    def __init__(self) -> None:
        self.index = 5
        self.built = 0

    def body(self) -> bytes:
        self.built += 1
        return b"[%d]" % self.index

    def resource(self) -> Resource:
        return Resource(("x",), (("topic", "x"), ("topic", "y")), lambda: self.index, self.body)


async def test_a_thousand_watchers_share_one_serialisation() -> None:
    watches, thing = Watches(), Counted()
    reads = Reads(watches, Random(1))
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(reads.answer(thing.resource(), Blocking(5, 60.0, "leader"))) for _ in range(1000)]
        await asyncio.sleep(1)
        assert watches.count == 1000
        thing.index = 6
        watches.wake([("topic", "x")])
    assert {task.result().body for task in waiting} == {b"[6]"}
    assert thing.built == 1
    assert watches.count == 0
    assert watches._waiting == {}


async def test_waking_without_a_newer_index_keeps_waiting_until_the_end() -> None:
    watches, thing = Watches(), Counted()
    reads = Reads(watches, Random(1))
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(reads.answer(thing.resource(), Blocking(5, 16.0, "leader")))
        await asyncio.sleep(1)
        watches.wake([("topic", "y")])
        await waiting
    assert 16.0 <= loop.time() <= 17.1  # the wait and at most a sixteenth of it
    assert waiting.result().headers["X-Consul-Index"] == "5"


async def test_a_stop_lets_everybody_go_at_once() -> None:
    watches, thing = Watches(), Counted()
    reads = Reads(watches, Random(1))
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(reads.answer(thing.resource(), Blocking(5, 600.0, "leader")))
        await asyncio.sleep(1)
        watches.close()
        await waiting
        await reads.answer(thing.resource(), Blocking(5, 600.0, "leader"))
    assert loop.time() == 1.0


async def test_a_watcher_that_leaves_is_forgotten() -> None:
    watches, thing = Watches(), Counted()
    reads = Reads(watches, Random(1))
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(reads.answer(thing.resource(), Blocking(5, 600.0, "leader")))
        await asyncio.sleep(1)
        waiting.cancel()
    assert (watches.count, watches._waiting) == (0, {})


async def test_a_key_wakes_the_prefixes_above_it() -> None:
    watches = Watches()
    async with asyncio.TaskGroup() as tasks:
        above = tasks.create_task(watches.wait((("kv under", "a/"),), 10.0))
        beside = tasks.create_task(watches.wait((("kv under", "b/"),), 10.0))
        await asyncio.sleep(1)
        watches.wake([("kv", "a/1")])
    assert (above.result(), beside.result()) == (True, False)


async def test_large_answers_do_not_pile_up() -> None:
    reads = Reads(Watches(), Random(1))
    for number in range(100):
        body = bytes(1024 * 1024)
        resource = Resource((number,), (), lambda: 1, lambda body=body: body)  # type: ignore[misc]
        await reads.answer(resource, Blocking(0, 1.0, "leader"))
    assert reads._kept_bytes <= 32 * 1024 * 1024
    assert len(reads._kept) <= 32

"""Work that waits in line: one piece in a turn of the loop, whatever becomes of it."""

import asyncio

from toska_mesh.gateway.turns import Turns


async def test_one_piece_in_each_turn_in_the_order_of_their_coming() -> None:
    loop = asyncio.get_running_loop()
    turns = Turns(loop)
    done: list[str] = []

    def again() -> None:
        done.append("again")
        if done.count("again") < 2:
            turns.add(again)

    turns.add(again)
    turns.add(lambda: done.append("other"))
    for expected in (["again"], ["again", "other"], ["again", "other", "again"], ["again", "other", "again"]):
        await asyncio.sleep(0)
        assert done == expected


async def test_a_piece_that_fails_does_not_hold_up_the_next() -> None:
    loop = asyncio.get_running_loop()
    failures: list[object] = []
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    turns = Turns(loop)
    done: list[int] = []
    turns.add(lambda: [][1])
    turns.add(lambda: done.append(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert done == [1]
    assert len(failures) == 1

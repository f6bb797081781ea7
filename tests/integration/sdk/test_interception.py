"""Signals on their way to a server, heard by us before. With the real signals of this process, so not a unit test."""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop
from tests.support.wait import eventually

from toska_mesh.sdk.interception import Interception


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Server:
    """Somebody who wants the signals, in the way that uvicorn does (of Python) or aiohttp does (of the loop)."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def take_from_python(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self.heard.append(number))

    def take_from_loop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.heard.append, int(number))


def run(main: Callable[[], Awaitable[None]], factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(limited())


every_way = pytest.mark.parametrize(
    ("factory", "take"),
    [
        pytest.param(asyncio.new_event_loop, Server.take_from_python, id="asyncio, Python's"),
        pytest.param(asyncio.new_event_loop, Server.take_from_loop, id="asyncio, the loop's"),
        pytest.param(uvloop.new_event_loop, Server.take_from_python, id="uvloop, Python's"),
    ],
)


@every_way
def test_a_signal_is_heard_before_the_server_and_handed_on_once(
    factory: Callable[[], asyncio.AbstractEventLoop], take: Callable[[Server], None]
) -> None:
    async def main() -> None:
        server, ours = Server(), list[str]()
        take(server)
        interception = Interception(lambda _: ours.append("heard"), lambda _: ours.append("hurried"))
        assert interception.begin()
        signal.raise_signal(signal.SIGTERM)
        await eventually(lambda: ours == ["heard"])
        assert server.heard == []
        interception.hand_on()
        await eventually(lambda: server.heard == [signal.SIGTERM])
        interception.hand_on()
        signal.raise_signal(signal.SIGINT)
        await eventually(lambda: server.heard == [signal.SIGTERM, signal.SIGINT])
        assert ours == ["heard"]

    run(main, factory)


@every_way
def test_the_same_signal_again_hurries_and_goes_to_the_server_at_once(
    factory: Callable[[], asyncio.AbstractEventLoop], take: Callable[[Server], None]
) -> None:
    async def main() -> None:
        server, ours = Server(), list[str]()
        take(server)
        interception = Interception(lambda _: ours.append("heard"), lambda _: ours.append("hurried"))
        assert interception.begin()
        for number, expected in ((signal.SIGINT, ["heard"]), (signal.SIGINT, ["heard", "hurried"])):
            signal.raise_signal(number)
            await eventually(lambda expected=expected: ours == expected)
        await eventually(lambda: server.heard == [signal.SIGINT])

    run(main, factory)


@every_way
def test_a_supervisors_signal_after_that_of_the_terminal_is_no_hurry(
    factory: Callable[[], asyncio.AbstractEventLoop], take: Callable[[Server], None]
) -> None:
    async def main() -> None:
        server, ours = Server(), list[str]()
        take(server)
        interception = Interception(lambda _: ours.append("heard"), lambda _: ours.append("hurried"))
        assert interception.begin()
        signal.raise_signal(signal.SIGINT)
        await eventually(lambda: ours == ["heard"])
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        interception.hand_on()
        await eventually(lambda: server.heard == [signal.SIGINT])
        assert ours == ["heard"]

    run(main, factory)


def test_a_handler_of_uvloop_cannot_be_had_and_is_left_alone() -> None:
    async def main() -> None:
        server = Server()
        server.take_from_loop()
        assert not Interception(lambda _: None, lambda _: None).begin()
        signal.raise_signal(signal.SIGTERM)
        await eventually(lambda: server.heard == [signal.SIGTERM])

    run(main, uvloop.new_event_loop)


def test_another_thread_than_the_main_one_intercepts_nothing() -> None:
    answers: list[bool] = []

    async def main() -> None:
        answers.append(Interception(lambda _: None, lambda _: None).begin())

    thread = threading.Thread(target=run, args=(main, asyncio.new_event_loop))
    thread.start()
    thread.join(20)
    assert answers == [False]

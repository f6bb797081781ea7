"""Waiting for something real to become true: polled to a deadline, never a fixed sleep."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(
    predicate: Callable[[], T | Awaitable[T]], seconds: float = 10, every_seconds: float = 0.02, what: str = ""
) -> T:
    """Ask until the answer is truthy and return it; AssertionError after `seconds` of the loop's clock.

    The predicate may be a coroutine function. An AssertionError or OSError of its own counts as "not yet".
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        answer: object
        try:
            answer = predicate()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return answer
            failure = f"last answer: {answer!r}"
        except (AssertionError, OSError) as error:
            failure = f"last failure: {error!r}"
        if loop.time() >= deadline:
            raise AssertionError(f"{what or _name(predicate)} did not come true in {seconds:g} s; {failure}")
        await asyncio.sleep(every_seconds)


def eventually_now(predicate: Callable[[], T], seconds: float = 10, every_seconds: float = 0.02, what: str = "") -> T:
    """The same for code without a loop."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = predicate()
            if answer:
                return answer
            failure = f"last answer: {answer!r}"
        except (AssertionError, OSError) as error:
            failure = f"last failure: {error!r}"
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what or _name(predicate)} did not come true in {seconds:g} s; {failure}")
        time.sleep(every_seconds)


def _name(predicate: object) -> str:
    return getattr(predicate, "__qualname__", repr(predicate))

"""How many requests a service is still answering: what a drain waits for.

A request counts from its head to the last byte of its answer, so a streamed body and an open WebSocket count too.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class InFlight:
    """Owned by the service; its HTTP edge counts. One event loop."""

    def __init__(self) -> None:
        self._count = 0
        self._begun_at = float("-inf")
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    @property
    def count(self) -> int:
        return self._count

    @property
    def begun_at(self) -> float:
        """When the last one began, seconds on the loop's clock; -inf when there was none."""
        return self._begun_at

    def begin(self) -> None:
        """To be followed by exactly one `end`."""
        self._count += 1
        self._begun_at = asyncio.get_running_loop().time()
        self._is_idle.clear()

    def end(self) -> None:
        self._count -= 1
        if not self._count:
            self._is_idle.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """One request for the length of the block."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    async def idle(self) -> None:
        """Return at a moment when nothing is in flight. It has no limit of its own: put a timeout around it."""
        while self._count:
            await self._is_idle.wait()

"""Work that may wait, a piece of it in each turn of the event loop.

What arrives is handled at once as a rule. Where one read of one client can bring tens of milliseconds of work, it
stands in line here instead: however many clients do that, everybody else waits for one piece and not for all of them.
"""

import asyncio
from collections import deque
from collections.abc import Callable


class Turns:
    """First come, first served. Lives on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()

    def add(self, piece: Callable[[], None]) -> None:
        """Do this in a later turn, behind what waits already."""
        self._waiting.append(piece)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._do_one)

    def _do_one(self) -> None:
        try:
            self._waiting[0]()
        finally:
            self._waiting.popleft()
            if self._waiting:
                self._loop.call_soon(self._do_one)

"""`Latest[T]`: hand the newest value from one writer to any number of readers.

A slow reader wants the newest value, not the backlog, so nothing is queued. One event loop; no locks.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds one value and its version (0 = nothing yet). Readers wait for a version newer than the one they saw."""

    def __init__(self) -> None:
        self._value: T | None = None
        self._version = 0
        self._changed = asyncio.Event()

    @property
    def version(self) -> int:
        return self._version

    def peek(self) -> T | None:
        """The newest value, or None before the first `set`."""
        return self._value

    def set(self, value: T) -> None:
        """Replace the value and wake every reader."""
        self._value = value
        self._version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def newer_than(self, version: int) -> tuple[T, int]:
        """Wait until the version exceeds `version`; give the newest value with its version."""
        while self._version <= version:
            await self._changed.wait()
        return self._value, self._version  # type: ignore[return-value]  # set once the version is above 0

    async def first(self) -> T:
        """Wait for any value at all."""
        value, _ = await self.newer_than(0)
        return value

    async def updates(self) -> AsyncIterator[T]:
        """Every newest value from now on, beginning with the current one; values set meanwhile are skipped over."""
        version = 0
        while True:
            value, version = await self.newer_than(version)
            yield value

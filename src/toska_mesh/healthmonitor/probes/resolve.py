"""Names to addresses for probes: cached for a moment, one lookup per name at a time, never more than a few threads.

The system's resolver blocks for as long as it likes, and thousands of probes may share a name; a probe waits for the
shared lookup only as long as its own deadline allows.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

TTL_SECONDS = 10.0
THREADS = 4
MAX_NAMES = 4096

Addresses = tuple[str, ...]


class Resolver:
    """An async context manager. Owns its threads and its cache; one event loop."""

    def __init__(self, ttl_seconds: float = TTL_SECONDS) -> None:
        self._ttl_seconds = ttl_seconds
        self._cache: dict[str, tuple[float, Addresses]] = {}  # expiry on the loop's clock
        self._lookups: dict[str, asyncio.Future[Addresses]] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="resolve")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, host: str, deadline: float) -> Addresses:
        """Every address of `host`, in the system's order. Raises socket.gaierror, or TimeoutError at `deadline`."""
        loop = asyncio.get_running_loop()
        known = self._cache.get(host)
        if known is not None and known[0] > loop.time():
            return known[1]
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = loop.run_in_executor(self._threads, _look_up, host)
            self._lookups[host] = lookup
            lookup.add_done_callback(lambda done: self._store(host, done, loop.time()))
        async with asyncio.timeout_at(deadline):
            return await asyncio.shield(lookup)  # others wait for the same one

    def _store(self, host: str, lookup: asyncio.Future[Addresses], now: float) -> None:
        self._lookups.pop(host, None)
        self._cache.pop(host, None)  # so that a renewed name moves to the end: the dict stays in order of expiry
        if lookup.cancelled() or lookup.exception() is not None:
            return
        self._cache[host] = (now + self._ttl_seconds, lookup.result())
        while self._cache:
            oldest = next(iter(self._cache))
            if self._cache[oldest][0] > now and len(self._cache) <= MAX_NAMES:
                break
            del self._cache[oldest]


def _look_up(host: str) -> Addresses:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))

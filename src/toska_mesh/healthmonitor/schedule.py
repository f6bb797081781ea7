"""When each instance is probed next. Pure: times are seconds on the caller's monotonic clock.

Every key has its own phase in the interval, taken from a hash, so that 20,000 instances are an even stream and not a
herd at each tick, and so that a restarted monitor falls into the same order. One heap serves all keys; nothing sleeps
per instance.
"""

import heapq
import math
from collections.abc import Hashable, Iterator
from hashlib import blake2b
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_COMPACT_ABOVE = 64


def phase_of(*names: str) -> float:
    """A fixed point in [0, 1) for these names, evenly spread over many of them."""
    digest = blake2b("\0".join(names).encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)


def next_slot(phase: float, interval_seconds: float, after: float) -> float:
    """The first moment later than `after` at which a key of this phase is due."""
    cycle = math.floor(after / interval_seconds - phase)
    slot = (cycle + phase) * interval_seconds
    while slot <= after:
        cycle += 1
        slot = (cycle + phase) * interval_seconds
    return slot


class Schedule(Generic[K]):
    """A timetable of keys: each at most once. Adding a known key moves it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._current: dict[K, int] = {}  # which entry of the heap counts; older ones are skipped when met
        self._serial = 0

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, key: K) -> bool:
        return key in self._current

    def add(self, key: K, due: float) -> None:
        self._serial += 1
        self._current[key] = self._serial
        heapq.heappush(self._heap, (due, self._serial, key))
        self._compact()

    def remove(self, key: K) -> None:
        """Forget the key; unknown ones are ignored."""
        self._current.pop(key, None)
        self._compact()

    def pop_due(self, now: float) -> Iterator[tuple[K, float]]:
        """Take out what is due at `now`, in order of its due time; each with that time."""
        while self._heap and self._heap[0][0] <= now:
            due, serial, key = heapq.heappop(self._heap)
            if self._current.get(key) == serial:
                del self._current[key]
                yield key, due

    def next_due(self) -> float | None:
        """When to look again; None when nothing is planned."""
        while self._heap and self._current.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _compact(self) -> None:
        # Moved and removed keys leave dead entries behind; without this, churn would grow the heap without end.
        if len(self._heap) > _COMPACT_ABOVE and len(self._heap) > 2 * len(self._current):
            self._heap = [entry for entry in self._heap if self._current.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

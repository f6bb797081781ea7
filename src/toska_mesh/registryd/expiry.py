"""Deadlines on the monotonic clock: which TTL, session or grace period has run out. Pure; `now` is handed in.

A beat only writes one number; the heap is corrected when a stale entry reaches its top. A process that was itself
stopped (SIGSTOP, a suspended machine) must not expire what beat meanwhile unheard: the shell then calls `postpone`.
"""

from heapq import heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K")


class Deadlines(Generic[K]):
    """Deadlines by key, at most one each. A deadline is due at its moment, never before."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._queued: dict[K, float] = {}  # the earliest heap entry of the key that still counts
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0  # breaks ties, so that keys need no order
        self._postponed = 0.0

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: K) -> bool:
        return key in self._due

    def set(self, key: K, at: float) -> None:
        """Replace the key's deadline."""
        at -= self._postponed
        self._due[key] = at
        if at < self._queued.get(key, float("inf")):
            self._push(key, at)

    def clear(self, key: K) -> None:
        self._due.pop(key, None)

    def get(self, key: K) -> float | None:
        at = self._due.get(key)
        return None if at is None else at + self._postponed

    def postpone(self, seconds: float) -> None:
        """Give every deadline this much more time."""
        self._postponed += seconds

    def next_at(self) -> float | None:
        """A moment before which nothing is due; None when there is nothing at all."""
        return self._heap[0][0] + self._postponed if self._heap else None

    def take_due(self, now: float) -> list[K]:
        """Remove and give the keys whose time has come, the longest overdue first."""
        due: list[K] = []
        while self._heap and self._heap[0][0] + self._postponed <= now:
            at, _, key = heappop(self._heap)
            if self._queued.get(key) != at:
                continue  # an earlier entry of the key took its place
            del self._queued[key]
            wanted = self._due.get(key)
            if wanted is None:
                continue
            if wanted + self._postponed <= now:
                del self._due[key]
                due.append(key)
            else:
                self._push(key, wanted)
        return due

    def _push(self, key: K, at: float) -> None:
        self._sequence += 1
        self._queued[key] = at
        heappush(self._heap, (at, self._sequence, key))

"""Which due probe starts next when not all may at once. Pure.

Instances that hang hold their slot until the timeout. If they shared all slots with the others, a tenth of them could
delay everybody; so instances whose last probe timed out (suspects) wait in a lane of their own and never get more
than half of the slots.
"""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Lanes(Generic[T]):
    """At most `capacity` items in flight, at most half of them suspects; first come, first served in each lane."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self._capacity = capacity
        self._suspect_capacity = max(1, capacity // 2)
        self._ordinary: deque[T] = deque()
        self._suspects: deque[T] = deque()
        self.in_flight = 0
        self._suspects_in_flight = 0

    @property
    def waiting(self) -> int:
        return len(self._ordinary) + len(self._suspects)

    def push(self, item: T, *, is_suspect: bool) -> None:
        (self._suspects if is_suspect else self._ordinary).append(item)

    def pop(self) -> tuple[T, bool] | None:
        """The item to start now and whether it is a suspect; None when nothing waits or no slot is free.

        Whatever was popped must be handed back with `release`.
        """
        if self.in_flight >= self._capacity:
            return None
        if self._ordinary:
            self.in_flight += 1
            return self._ordinary.popleft(), False
        if self._suspects and self._suspects_in_flight < self._suspect_capacity:
            self.in_flight += 1
            self._suspects_in_flight += 1
            return self._suspects.popleft(), True
        return None

    def release(self, *, is_suspect: bool) -> None:
        self.in_flight -= 1
        if is_suspect:
            self._suspects_in_flight -= 1

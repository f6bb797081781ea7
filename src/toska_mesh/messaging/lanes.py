"""The order of delivery: what may be sent now, and what has to wait for its predecessor.

Pure bookkeeping. Each lane (one service's events) has at most one message under way, so a later one can never reach a
queue before an earlier one, whatever the broker refuses or loses in between; different lanes go side by side.
Among lanes the oldest waiting message goes first.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Lane:
    waiting: deque[int] = field(default_factory=deque)
    current: int | None = None
    is_held: bool = False


class Lanes:
    """Sequence numbers by lane. Numbers must be added in growing order. Owned by the outbox; one event loop."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._ready: list[tuple[int, str]] = []

    def add(self, seq: int, lane: str) -> None:
        entry = self._lanes.get(lane)
        if entry is None:
            entry = self._lanes[lane] = _Lane()
        entry.waiting.append(seq)
        if len(entry.waiting) == 1:
            self._offer(lane, entry)

    def take(self, limit: int) -> list[tuple[int, str]]:
        """Up to `limit` messages that may be sent now, oldest first, as (sequence, lane); each occupies its lane."""
        taken: list[tuple[int, str]] = []
        while self._ready and len(taken) < limit:
            seq, lane = heapq.heappop(self._ready)
            entry = self._lanes[lane]
            entry.current = entry.waiting.popleft()
            taken.append((seq, lane))
        return taken

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    def done(self, lane: str) -> None:
        """The lane's current message is delivered: its successor may go."""
        entry = self._lanes[lane]
        entry.current = None
        if entry.waiting:
            self._offer(lane, entry)
        elif not entry.is_held:
            del self._lanes[lane]

    def hold(self, lane: str) -> None:
        """The lane's current message was refused: it goes back to the front, and the lane waits for `release`."""
        entry = self._lanes[lane]
        self._put_back(entry)
        entry.is_held = True

    def release(self, lane: str) -> None:
        """A held lane may go on; nothing happens when it is not held."""
        entry = self._lanes.get(lane)
        if entry is not None and entry.is_held:
            entry.is_held = False
            self._offer(lane, entry)

    def reset(self) -> None:
        """The connection is gone: nothing is under way or held, every lane begins with its first undelivered one."""
        for entry in self._lanes.values():
            self._put_back(entry)
            entry.is_held = False
        self._ready = [(entry.waiting[0], lane) for lane, entry in self._lanes.items()]
        heapq.heapify(self._ready)

    def _offer(self, lane: str, entry: _Lane) -> None:
        if entry.current is None and not entry.is_held:
            heapq.heappush(self._ready, (entry.waiting[0], lane))

    @staticmethod
    def _put_back(entry: _Lane) -> None:
        if entry.current is not None:
            entry.waiting.appendleft(entry.current)
            entry.current = None

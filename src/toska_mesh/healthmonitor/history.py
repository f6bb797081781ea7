"""What happened to an instance's verdict, and which of it must still be announced. Pure, and bounded both ways."""

from collections import deque
from dataclasses import dataclass
from datetime import datetime

from toska_mesh.model import HealthStatus, InstanceId, ServiceName


@dataclass(frozen=True, slots=True)
class Transition:
    """The verdict on one instance changed."""

    service: ServiceName
    instance_id: InstanceId
    previous: HealthStatus
    current: HealthStatus
    at: datetime
    """UTC."""
    probe_type: str
    message: str
    is_first: bool = False
    """Whether the instance had no transition before this one."""

    @property
    def is_news(self) -> bool:
        """Whether the world is told: everything but an instance's first Healthy, which is what everyone assumed."""
        was_unknown = self.previous is HealthStatus.UNKNOWN
        return not (self.is_first and was_unknown and self.current is HealthStatus.HEALTHY)


History = tuple[Transition, ...]
"""The newest transitions of one instance, oldest first."""


def remember(history: History, transition: Transition, limit: int) -> History:
    """The history with one more transition and at most `limit` of them."""
    return (*history, transition)[-limit:]


class Announcements:
    """Transitions on their way to the event sink, in order.

    Of several monitors only the leader announces. A follower keeps what it saw for `hand_over_seconds`, because a
    leader that died may have missed just that. While the registry cannot be asked who leads, the age of the entries
    stands still, so that a lone monitor that lost its registry loses no event.
    """

    def __init__(self, hand_over_seconds: float = 60.0, limit: int = 10_000) -> None:
        self._hand_over_seconds = hand_over_seconds
        self._limit = limit
        self._waiting: deque[tuple[float, Transition]] = deque()
        self._followed_seconds = 0.0  # how long, in all, another monitor has led
        self._looked_at: float | None = None
        self.dropped = 0
        """How many were pushed out by the bound; a counter for the metrics."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, transition: Transition) -> None:
        self._waiting.append((self._followed_seconds, transition))
        while len(self._waiting) > self._limit:
            self._waiting.popleft()
            self.dropped += 1

    def next(self) -> Transition | None:
        """The oldest one; it stays until `confirm`."""
        return self._waiting[0][1] if self._waiting else None

    def confirm(self, transition: Transition) -> None:
        """The sink has it. A transition that the bound pushed out meanwhile is passed over."""
        if self._waiting and self._waiting[0][1] is transition:
            self._waiting.popleft()

    def follow(self, now: float, *, is_leader_known: bool) -> None:
        """Called every now and then while this monitor does not lead. `now` is monotonic, in seconds."""
        if self._looked_at is not None and is_leader_known:
            self._followed_seconds += now - self._looked_at
        self._looked_at = now
        while self._waiting and self._waiting[0][0] + self._hand_over_seconds < self._followed_seconds:
            self._waiting.popleft()

    def lead(self) -> None:
        """Called when this monitor leads: everything that waits is to be announced."""
        self._looked_at = None

"""`Deadline`: a point on the monotonic clock, handed down so that all tries and waits of a request share one budget."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """Compares by time: the smaller one comes first."""

    at: float
    """Seconds, monotonic; infinity means never."""

    @classmethod
    def after(cls, now: float, seconds: float | None) -> Self:
        """The deadline `seconds` from now; None means never."""
        return cls(float("inf") if seconds is None else now + seconds)

    def remaining(self, now: float) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - now)

    def has_expired(self, now: float) -> bool:
        return now >= self.at

    def allows(self, now: float, seconds: float) -> bool:
        """Whether a wait of `seconds` would end before the deadline: a pause that cannot pay off need not begin."""
        return now + seconds < self.at

    def earliest(self, *others: "Deadline") -> "Deadline":
        """The one that comes first."""
        return min((self, *others))


NEVER = Deadline(float("inf"))

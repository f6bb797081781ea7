"""Silence is evidence: how long is too long to wait for an instance, judged by how its service usually answers.

`RecentLatency` remembers the answers of one service in a histogram that forgets; `is_suspect` compares an instance's
oldest silent request with it. A suspect is only passed over while others are eligible, and no longer than it is silent,
so a wrong suspicion costs nothing but a detour. What a request without an answer does about it is not decided here.
"""

from bisect import bisect_left
from dataclasses import dataclass
from math import inf
from typing import Final

_GROWTH: Final = 2 ** (1 / 4)
_BOUNDS: Final = tuple(0.0001 * _GROWTH**step for step in range(81))
"""Upper bounds of the buckets in seconds: 0.1 ms to about 105 s, each 19 % above the last."""

_SETTLE_EVERY: Final = 64


class RecentLatency:
    """Answer times of one service, the newest `memory` counting most. O(1) per answer; one event loop."""

    __slots__ = ("_counts", "_fresh", "_memory", "_p99", "_settled")

    def __init__(self, memory: int = 2048) -> None:
        """`memory`: after so many answers all counts are halved. Raises ValueError below 64."""
        if memory < _SETTLE_EVERY:
            raise ValueError(f"memory {memory} is below {_SETTLE_EVERY}")
        self._memory = memory
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._settled = 0  # answers that `_p99` knows of
        self._fresh = 0  # answers since
        self._p99: float | None = None

    @property
    def samples(self) -> int:
        """How many answers are remembered (older ones as halves)."""
        return self._settled + self._fresh

    def observe(self, seconds: float) -> None:
        """Count one answer."""
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self._fresh += 1
        if self._fresh >= _SETTLE_EVERY:
            self._settle()

    def p99(self) -> float | None:
        """The 99th percentile in seconds, rounded up to a bucket's bound (19 % at most); None without answers.

        Computed anew every 64 answers (before the first 64: each time), so it may be asked often.
        """
        return self._p99 if self._settled else self.quantile(0.99)

    def _settle(self) -> None:
        self._settled += self._fresh
        self._fresh = 0
        if self._settled >= self._memory:
            self._counts = [count >> 1 for count in self._counts]
            self._settled = sum(self._counts)
        self._p99 = self.quantile(0.99)

    def quantile(self, fraction: float) -> float | None:
        """Any quantile, computed now; None without answers."""
        if not self.samples:
            return None
        left = fraction * self.samples
        for bound, count in zip(_BOUNDS, self._counts, strict=False):
            left -= count
            if left <= 1e-9:
                return bound
        return float("inf")


@dataclass(frozen=True, slots=True)
class SuspicionPolicy:
    """When silence becomes suspect. Raises ValueError for values without a meaning."""

    min_seconds: float = 1.0
    factor: float = 20.0
    """Times the recent p99 of the service."""
    min_samples: int = 10
    """With fewer answers the service's habits are unknown and `unknown_seconds` is the bound, unless those few were
    slow."""
    unknown_seconds: float = 2.0
    """Shorter than some first answers of a process that has just started: what they meet is a probe, which a process
    that is only slow answers."""
    dial_seconds: float = 1.0
    """For a connection that does not come about. The kernel accepts it, whatever the application does, so the service's
    habits say nothing about it: a machine is dead, a network drops, or a queue overflows."""
    share: float = 1 / 3
    """Of the time that the request itself has for its try: another one has to fit behind it."""
    hurried_seconds: float = 0.25
    """However little time a request has, no silence shorter than this is suspect."""
    hurried_factor: float = 3.0
    """Times the recent p99, or the slowest of a few answers: the same for what is usual."""

    def __post_init__(self) -> None:
        if not (
            self.min_seconds > 0
            and self.factor > 0
            and self.unknown_seconds > 0
            and self.dial_seconds > 0
            and self.share > 0
            and self.hurried_seconds > 0
            and self.hurried_factor > 0
        ):
            raise ValueError("a suspicion policy needs seconds, a share and factors above 0")

    def threshold_seconds(self, latency: RecentLatency, patience_seconds: float = inf) -> float:
        """How long a request may wait silently before its instance is suspect.

        `patience_seconds`: for how long the request would wait at all.
        """
        p99 = latency.p99() or 0.0
        often = self.hurried_factor * p99
        hurried = max(self.hurried_seconds, self.share * patience_seconds, often)
        if latency.samples < self.min_samples:
            return min(max(self.unknown_seconds, often), hurried)
        return min(max(self.min_seconds, self.factor * p99), hurried)

    def dial_threshold_seconds(self, patience_seconds: float = inf) -> float:
        """The same for a request that still waits for its connection."""
        return min(self.dial_seconds, max(self.hurried_seconds, self.share * patience_seconds))


def is_suspect(oldest_sent_at: float | None, now: float, threshold_seconds: float) -> bool:
    """Whether an instance whose oldest silent request was sent then is suspect now; None: it owes no answer."""
    return oldest_sent_at is not None and now - oldest_sent_at >= threshold_seconds

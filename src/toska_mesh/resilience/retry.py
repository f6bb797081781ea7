"""Whether a failed try may be repeated, and after what pause. A pure table; who retries and where is the caller's.

The rule of RFC 9110 section 9.2.2: a request may be repeated when its method is idempotent, or when it is known that
the server never began to act on it. We know that when no byte of it reached an upstream. Once an answer has begun to
reach the client, nothing may be repeated.
"""

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

IDEMPOTENT_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110 section 9.2.2. Methods are case-sensitive (section 9.1)."""

_IDEMPOTENT_BYTES: Final = frozenset(method.encode() for method in IDEMPOTENT_METHODS)

RETRYABLE_STATUSES: Final = frozenset({502, 503, 504})
"""Answers that say: not me, not now (RFC 9110 sections 15.6.3 to 15.6.5)."""


class Failure(Enum):
    """How a try failed before an answer was passed on."""

    CONNECT = "connect"
    """No connection: refused, unreachable, too slow, TLS refused."""
    RESET = "reset"
    """The connection broke before the answer's head was complete, or what came was no HTTP."""
    TIMEOUT = "timeout"
    """No answer's head in time."""
    STATUS = "status"
    """The upstream answered with one of `RETRYABLE_STATUSES`."""


def is_idempotent(method: str | bytes) -> bool:
    """Whether repeating a request with this method has the effect of sending it once."""
    return method in _IDEMPOTENT_BYTES if isinstance(method, bytes) else method in IDEMPOTENT_METHODS


@dataclass(frozen=True, slots=True)
class Try:
    """One failed try, as far as it decides about the next."""

    failure: Failure
    idempotent: bool
    """By `is_idempotent`, or because the client sent an idempotency key that the route honours."""
    bytes_sent: bool
    """Whether any byte of the request may have reached the upstream."""
    answer_begun: bool = False
    """Whether any byte of an answer was passed on to the client."""
    body_kept: bool = True
    """Whether all of the request's body can be sent again (none is also all)."""


def may_repeat(attempt: Try) -> bool:
    """Whether sending the request again is safe. Count, budget and deadline are not looked at."""
    if attempt.answer_begun or not attempt.body_kept:
        return False
    return attempt.idempotent or not attempt.bytes_sent


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently. Raises ValueError for values without a meaning."""

    count: int = 3
    """Tries after the first one; 0 never retries."""
    base_seconds: float = 0.2
    factor: float = 2.0
    jitter_seconds: float = 0.2
    """Up to this much is added at random, so that clients that failed together do not come back together."""
    max_seconds: float = 10.0
    """Longest pause before the jitter."""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count {self.count} is negative")
        if self.base_seconds < 0 or self.jitter_seconds < 0 or self.max_seconds < 0:
            raise ValueError("pauses cannot be negative")
        if self.factor < 1:
            raise ValueError(f"factor {self.factor} is below 1: pauses would shrink")

    def pause_seconds(self, retries_done: int, rng: Random) -> float:
        """The pause before retry number `retries_done + 1` at the same instance."""
        # The exponent is bounded: a float power overflows long after the longest pause is reached.
        pause = self.base_seconds * self.factor ** min(retries_done, 64)
        return min(pause, self.max_seconds) + rng.random() * self.jitter_seconds

    def next_pause(self, attempt: Try, retries_done: int, goes_elsewhere: bool, rng: Random) -> float | None:
        """Seconds to wait before the next try: 0 at once, None not at all.

        `goes_elsewhere`: the next try asks another instance, which does not have to wait for this one's recovery.
        """
        if retries_done >= self.count or not may_repeat(attempt):
            return None
        return 0.0 if goes_elsewhere else self.pause_seconds(retries_done, rng)

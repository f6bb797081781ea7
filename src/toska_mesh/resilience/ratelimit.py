"""`RateLimiter`: so many requests per window and client, smoothly (GCRA), in bounded memory.

GCRA keeps one number per client: the moment at which its bucket will be full again. A request moves it by
`window / permits`; one that would move it further than `burst` steps ahead of now is refused and moves nothing. So a
client may send `burst` at once and then one per step; in no window does it get more than `permits + burst`.

Memory: a client that was silent for as long as a full bucket takes to refill is as good as new, so two generations of
clients are enough: whoever is seen moves to the young one, and at each turn the old one is dropped whole. When
`max_clients` are remembered, newcomers share `SHARED_BUCKETS` buckets instead of displacing anybody: a flood of
invented addresses cannot give a limited client its permits back, it can only crowd other newcomers until it ends.
Which bucket is the interpreter's own salted hash, so nobody can aim. Give IPv6 clients by their /64 network.
"""

from typing import Final, NamedTuple

SHARED_BUCKETS: Final = 1024

_FORGIVEN: Final = 1e-3
"""Part of a step that rounding may cost a client without harm. It does not add up, so it never amounts to a permit."""
_NEARLY: Final = 1.0 - _FORGIVEN


class Decision(NamedTuple):
    """The numbers behind the `RateLimit` headers (IETF draft ratelimit-headers) and `Retry-After`."""

    is_admitted: bool
    limit: int
    """Permits per window: `q` of RateLimit-Policy."""
    remaining: int
    """Requests that would be admitted right now."""
    reset_seconds: float
    """Until the bucket is full again."""
    retry_after_seconds: float
    """Until the next request is admitted; 0 when one would be now."""


class RateLimiter:
    """One limit for many clients. Times are seconds, monotonic. O(1) per request; one event loop."""

    __slots__ = ("_burst", "_limit", "_max_clients", "_old", "_shared", "_span", "_step", "_turn_at", "_young")

    def __init__(
        self, permits: int = 100, window_seconds: float = 60.0, burst: int | None = None, max_clients: int = 100_000
    ) -> None:
        """`burst`: how many at once; by default `permits`. Raises ValueError for values without a meaning."""
        burst = permits if burst is None else burst
        if permits < 1 or burst < 1 or max_clients < 0 or not window_seconds > 0:
            raise ValueError("a rate limit needs permits, a burst and a window above 0")
        self._limit = permits
        self._burst = burst
        self._step = window_seconds / permits
        self._span = self._step * burst
        self._max_clients = max_clients
        self._young: dict[str, float] = {}
        self._old: dict[str, float] = {}
        self._shared = [float("-inf")] * SHARED_BUCKETS
        self._turn_at = float("-inf")

    def admit(self, client: str, now: float) -> Decision:
        """Ask for one permit of this client."""
        if now >= self._turn_at:
            self._turn(now)
        young = self._young
        full_at = young.get(client)
        is_shared = False
        if full_at is None:
            full_at = self._old.pop(client, None)
            if full_at is None:
                full_at = now
                if len(young) + len(self._old) >= self._max_clients:
                    is_shared = True
                    full_at = self._shared[hash(client) % SHARED_BUCKETS]
        if full_at < now:
            full_at = now
        step, span = self._step, self._span
        room = now + span - full_at
        is_admitted = room >= step * _NEARLY
        if is_admitted:
            full_at += step
            room -= step
        if is_shared:
            self._shared[hash(client) % SHARED_BUCKETS] = full_at
        else:
            young[client] = full_at
        remaining = int(room / step + _FORGIVEN)
        retry_after_seconds = 0.0 if remaining else step - room
        # What Decision(...) does, without the call: this is on the way of every request.
        return tuple.__new__(Decision, (is_admitted, self._limit, remaining, full_at - now, retry_after_seconds))

    @property
    def clients(self) -> int:
        """How many clients are remembered on their own."""
        return len(self._young) + len(self._old)

    def _turn(self, now: float) -> None:
        """Begin a generation. Whoever is still in the old one was not seen for `span` at least: its bucket is full."""
        self._old = self._young if now < self._turn_at + self._span else {}
        self._young = {}
        self._turn_at = now + self._span

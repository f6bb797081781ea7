"""`ConcurrencyLimit`: how many calls may be under way at once (what Envoy calls a circuit breaker)."""


class ConcurrencyLimit:
    """Counts calls under way. One event loop; `release` once for every `try_acquire` that said yes."""

    __slots__ = ("_limit", "in_flight", "rejected")

    def __init__(self, limit: int) -> None:
        """0 means no limit. Raises ValueError for a negative one."""
        if limit < 0:
            raise ValueError(f"limit {limit} is negative")
        self._limit = limit
        self.in_flight = 0
        self.rejected = 0

    def try_acquire(self) -> bool:
        if self._limit and self.in_flight >= self._limit:
            self.rejected += 1
            return False
        self.in_flight += 1
        return True

    def release(self) -> None:
        """Raises ValueError when nothing is under way: a double release would raise the limit for good."""
        if self.in_flight <= 0:
            raise ValueError("released more often than acquired")
        self.in_flight -= 1

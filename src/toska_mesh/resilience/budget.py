"""`RetryBudget`: retries are a fixed part of the traffic, so that an outage cannot multiply the load (as in Finagle).

Requests and retries of the recent past are counted with weights that fade: every second each count keeps
`1 - 1/window_seconds` of its value. A retry is granted while

    faded retries + 1  ≤  ratio · faded requests + floor_per_second · window_seconds

The floor lets quiet services retry at all. O(1), two floats, no allocation. Owner: whoever sends; one event loop.
"""


class RetryBudget:
    """Counts requests, grants retries. Times are seconds, monotonic."""

    __slots__ = ("_floor", "_keep", "_next_tick", "_ratio", "_requests", "_retries")

    def __init__(self, ratio: float = 0.2, floor_per_second: float = 10.0, window_seconds: float = 10.0) -> None:
        """Raises ValueError for a negative part, a negative floor or a window of a second or less."""
        if ratio < 0 or floor_per_second < 0 or window_seconds <= 1:
            raise ValueError("a retry budget needs a ratio and a floor of 0 or more, and a window above one second")
        self._ratio = ratio
        self._floor = floor_per_second * window_seconds
        self._keep = 1.0 - 1.0 / window_seconds
        self._requests = 0.0
        self._retries = 0.0
        self._next_tick = float("-inf")

    def record_request(self, now: float) -> None:
        """Count one request (not its retries)."""
        if now >= self._next_tick:
            self._fade(now)
        self._requests += 1.0

    def try_spend(self, now: float) -> bool:
        """Take one retry out of the budget; False when it is used up."""
        if now >= self._next_tick:
            self._fade(now)
        if self._retries + 1.0 > self._ratio * self._requests + self._floor:
            return False
        self._retries += 1.0
        return True

    def remaining(self, now: float) -> float:
        """How many retries would be granted now. Changes nothing."""
        keep = self._keep ** (1 + int(now - self._next_tick)) if now >= self._next_tick else 1.0
        return max(0.0, self._floor + keep * (self._ratio * self._requests - self._retries))

    def _fade(self, now: float) -> None:
        if self._next_tick == float("-inf"):
            self._next_tick = now + 1.0
            return
        seconds = 1 + int(now - self._next_tick)
        keep = self._keep**seconds
        self._requests *= keep
        self._retries *= keep
        self._next_tick += seconds

"""No client gets more than its permits, none fewer, and memory stays bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.resilience import Decision, RateLimiter
from toska_mesh.resilience.ratelimit import SHARED_BUCKETS


def admitted(limiter: RateLimiter, client: str, now: float, tries: int) -> int:
    return sum(limiter.admit(client, now).is_admitted for _ in range(tries))


def test_a_full_bucket_admits_all_permits_at_once_and_no_more() -> None:
    limiter = RateLimiter(permits=100, window_seconds=60.0)
    assert admitted(limiter, "a", 1000.0, 150) == 100
    assert admitted(limiter, "b", 1000.0, 150) == 100


def test_permits_come_back_one_by_one() -> None:
    limiter = RateLimiter(permits=60, window_seconds=60.0)
    admitted(limiter, "a", 0.0, 60)
    assert admitted(limiter, "a", 0.99, 5) == 0
    assert admitted(limiter, "a", 1.0, 5) == 1
    assert admitted(limiter, "a", 10.0, 50) == 9
    assert admitted(limiter, "a", 1000.0, 100) == 60


def test_a_burst_of_its_own_size() -> None:
    limiter = RateLimiter(permits=60, window_seconds=60.0, burst=5)
    assert admitted(limiter, "a", 0.0, 20) == 5
    assert admitted(limiter, "a", 1.0, 20) == 1


def test_the_numbers_for_the_headers() -> None:
    limiter = RateLimiter(permits=4, window_seconds=8.0)
    assert [limiter.admit("a", 100.0) for _ in range(5)] == [
        Decision(True, 4, 3, 2.0, 0.0),
        Decision(True, 4, 2, 4.0, 0.0),
        Decision(True, 4, 1, 6.0, 0.0),
        Decision(True, 4, 0, 8.0, 2.0),
        Decision(False, 4, 0, 8.0, 2.0),
    ]
    assert limiter.admit("a", 101.0) == Decision(False, 4, 0, 7.0, 1.0)


@given(st.integers(1, 50), st.floats(0.01, 100), st.floats(0, 1e6))
def test_waiting_as_long_as_told_is_enough(permits: int, window: float, start: float) -> None:
    limiter = RateLimiter(permits=permits, window_seconds=window)
    now = start
    for _ in range(permits):
        decision = limiter.admit("a", now)
        assert decision.is_admitted
    for _ in range(3):
        assert not limiter.admit("a", now).is_admitted
        now += limiter.admit("a", now).retry_after_seconds
        decision = limiter.admit("a", now)
        assert decision.is_admitted


@given(
    st.integers(1, 6),
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3) | st.just(0.0)), max_size=120),
    st.integers(0, 2),
)
def test_no_window_holds_more_than_permits_and_burst(
    permits: int, burst: int, arrivals: list[tuple[str, float]], max_clients: int
) -> None:
    """Also for clients that share a bucket, and across the turns of the generations."""
    window = 6.0
    limiter = RateLimiter(permits, window, burst, max_clients)
    times: dict[str, list[float]] = {"a": [], "b": []}
    now = 0.0
    for client, pause in arrivals:
        now += pause
        if limiter.admit(client, now).is_admitted:
            times[client].append(now)
    for passed in times.values():
        for first in passed:
            assert sum(first <= moment < first + window for moment in passed) <= permits + burst


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 4) | st.just(0.0)), max_size=150),
)
def test_it_decides_as_buckets_that_are_never_forgotten(permits: int, arrivals: list[tuple[str, float]]) -> None:
    """The two generations are only a way to forget what no longer matters."""
    limiter, window = RateLimiter(permits, 4.0), 4.0
    step = window / permits
    full_at, now = dict.fromkeys("abc", float("-inf")), 0.0
    for client, pause in arrivals:
        now += pause
        would_be = max(full_at[client], now) + step
        excess = would_be - (now + window)
        decision = limiter.admit(client, now)
        if abs(excess) > 0.002 * step:
            assert decision.is_admitted is (excess < 0)
        if decision.is_admitted:
            full_at[client] = would_be


def test_the_turns_of_others_forget_nobody_too_early() -> None:
    limiter = RateLimiter(permits=10, window_seconds=10.0)
    limiter.admit("first", 0.0)
    assert admitted(limiter, "greedy", 9.9, 20) == 10
    for now in (10.0, 15.0, 19.0):
        limiter.admit("other", now)
    assert admitted(limiter, "greedy", 19.0, 20) == 9


def test_silent_clients_are_forgotten() -> None:
    limiter = RateLimiter(permits=10, window_seconds=10.0)
    for index in range(1000):
        limiter.admit(f"client {index}", 0.0)
    assert limiter.clients == 1000
    limiter.admit("late", 10.0)
    limiter.admit("later", 20.0)
    assert limiter.clients <= 2


def test_memory_has_a_bound_under_a_flood_of_addresses() -> None:
    limiter = RateLimiter(permits=10, window_seconds=10.0, max_clients=100)
    for index in range(20_000):
        limiter.admit(f"client {index}", index / 1000)
    assert limiter.clients <= 100
    assert len(limiter._shared) == SHARED_BUCKETS


def test_a_flood_of_addresses_gives_a_limited_client_nothing_back() -> None:
    limiter = RateLimiter(permits=10, window_seconds=10.0, max_clients=100)
    assert admitted(limiter, "greedy", 0.0, 20) == 10
    for index in range(20_000):
        limiter.admit(f"invented {index}", 0.5)
    assert admitted(limiter, "greedy", 0.5, 20) == 0


def test_a_flood_does_not_take_permits_from_clients_that_are_known() -> None:
    limiter = RateLimiter(permits=10, window_seconds=10.0, max_clients=100)
    assert admitted(limiter, "polite", 0.0, 1) == 1
    for index in range(20_000):
        limiter.admit(f"invented {index}", 0.5)
    assert admitted(limiter, "polite", 1.0, 20) == 10


@pytest.mark.parametrize("values", [{"permits": 0}, {"window_seconds": 0.0}, {"burst": 0}, {"max_clients": -1}])
def test_a_limit_without_a_meaning_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RateLimiter(**values)  # type: ignore[arg-type]

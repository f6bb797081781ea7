"""Retries stay a share of what was asked lately, with a floor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.resilience import RetryBudget


def spend_all(budget: RetryBudget, now: float) -> int:
    granted = 0
    while budget.try_spend(now):
        granted += 1
    return granted


def test_a_quiet_service_has_the_floor() -> None:
    assert spend_all(RetryBudget(floor_per_second=10.0, window_seconds=10.0), 5.0) == 100


def test_a_busy_service_has_a_fifth_of_its_recent_requests_on_top() -> None:
    budget = RetryBudget(ratio=0.2, floor_per_second=0.0)
    for _ in range(1000):
        budget.record_request(5.0)
    assert spend_all(budget, 5.0) == 200


def test_without_ratio_and_floor_nothing_is_granted() -> None:
    budget = RetryBudget(ratio=0.0, floor_per_second=0.0)
    budget.record_request(0.0)
    assert not budget.try_spend(0.0)


def test_requests_of_long_ago_do_not_count() -> None:
    budget = RetryBudget(ratio=0.2, floor_per_second=0.0)
    for _ in range(1000):
        budget.record_request(0.0)
    assert spend_all(budget, 100.0) == 0


def test_a_spent_budget_recovers() -> None:
    budget = RetryBudget()
    assert spend_all(budget, 0.0) == 100
    assert not budget.try_spend(0.9)
    assert 5 <= spend_all(budget, 1.0) <= 15
    assert spend_all(budget, 200.0) >= 99  # what was spent fades, it never quite vanishes


def test_a_steady_outage_gets_a_fifth_of_the_traffic_and_the_floor() -> None:
    budget = RetryBudget(ratio=0.2, floor_per_second=10.0, window_seconds=10.0)
    granted = []
    for second in range(120):
        now = float(second)
        for _ in range(500):
            budget.record_request(now)
        granted.append(spend_all(budget, now))
    assert all(100 <= each <= 120 for each in granted[60:])


def test_what_remains_is_what_would_be_granted() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.record_request(0.0)
    for now in (0.0, 0.5, 3.2, 50.0):
        remaining = budget.remaining(now)
        assert remaining == budget.remaining(now)
        assert abs(spend_all(budget, now) - remaining) <= 1


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=200))
def test_retries_never_exceed_their_part_of_the_faded_past(history: list[tuple[bool, float]]) -> None:
    """Against the definition: each event weighs 0.9 to the number of whole seconds (of the budget) since."""
    budget = RetryBudget(ratio=0.5, floor_per_second=0.2, window_seconds=10.0)
    now, start = 0.0, None
    requests: list[int] = []
    retries: list[int] = []
    for is_request, pause in history:
        now += pause
        start = now if start is None else start
        tick = int(now - start)
        if is_request:
            budget.record_request(now)
            requests.append(tick)
        elif budget.try_spend(now):
            retries.append(tick)
            faded_retries = sum(0.9 ** (tick - then) for then in retries)
            faded_requests = sum(0.9 ** (tick - then) for then in requests)
            assert faded_retries <= 0.5 * faded_requests + 0.2 * 10.0 + 0.6


@pytest.mark.parametrize("values", [{"ratio": -0.1}, {"floor_per_second": -1.0}, {"window_seconds": 1.0}])
def test_a_budget_without_a_meaning_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RetryBudget(**values)

"""A deadline is shared by everything below it and only ever gets shorter."""

from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.resilience import NEVER, Deadline

moments = st.floats(0, 1e9)


def test_it_counts_down_to_zero_and_stays_there() -> None:
    deadline = Deadline.after(100.0, 5.0)
    assert [deadline.remaining(now) for now in (100.0, 104.0, 105.0, 200.0)] == [5.0, 1.0, 0.0, 0.0]
    assert [deadline.has_expired(now) for now in (100.0, 104.9, 105.0)] == [False, False, True]


def test_a_wait_that_cannot_pay_off_is_not_allowed() -> None:
    deadline = Deadline.after(0.0, 1.0)
    assert deadline.allows(0.5, 0.4)
    assert not deadline.allows(0.5, 0.5)


def test_none_means_never() -> None:
    deadline = Deadline.after(0.0, None)
    assert deadline == NEVER
    assert not deadline.has_expired(1e18)
    assert deadline.remaining(1e18) == float("inf")


@given(st.lists(moments, min_size=1), moments)
def test_the_earliest_leaves_the_least_time(points: list[float], now: float) -> None:
    deadlines = [Deadline(at) for at in points]
    assert deadlines[0].earliest(*deadlines[1:]).remaining(now) == min(each.remaining(now) for each in deadlines)

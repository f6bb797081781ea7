"""The rate limit that workers share: the same decisions as the limit of one process, in bounded memory."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toska_mesh.gateway import sharedlimit
from toska_mesh.gateway.sharedlimit import SharedRateLimiter, create_table
from toska_mesh.resilience import RateLimiter


@pytest.fixture
def table() -> Iterator[int]:
    descriptor = create_table()
    yield descriptor
    os.close(descriptor)


@example(permits=10, requests=[("a", 0.0), ("a", 0.99999)])  # within what rounding is forgiven
@given(
    permits=st.integers(1, 20),
    requests=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 20)), max_size=60),
)
def test_it_decides_as_the_limit_of_one_process_does(permits: int, requests: list[tuple[str, float]]) -> None:
    descriptor = create_table()
    shared, alone = SharedRateLimiter(descriptor, permits, 10.0), RateLimiter(permits, 10.0)
    now = 100.0
    for client, pause in requests:
        now += pause
        ours, theirs = shared.admit(client, now), alone.admit(client, now)
        assert ours.is_admitted is theirs.is_admitted
        assert ours.remaining == theirs.remaining
        assert ours.retry_after_seconds == pytest.approx(theirs.retry_after_seconds, abs=1e-6)
    os.close(descriptor)


def test_two_processes_that_share_a_table_share_the_permits(table: int) -> None:
    one, other = SharedRateLimiter(table, 10, 60.0), SharedRateLimiter(table, 10, 60.0)
    admitted = sum(limiter.admit("client", 5.0).is_admitted for _ in range(10) for limiter in (one, other))
    assert admitted == 10


def test_a_bucket_that_is_full_again_makes_room_for_another_client(table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharedlimit, "SLOTS", sharedlimit.WAYS)
    limiter = SharedRateLimiter(table, 1, 10.0)
    for number in range(sharedlimit.WAYS):
        assert limiter.admit(f"client-{number}", 0.0).is_admitted
    assert limiter.admit("late", 10.5).is_admitted


def test_a_flood_of_addresses_gives_nobody_permits_back(table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharedlimit, "SLOTS", sharedlimit.WAYS)
    limiter = SharedRateLimiter(table, 2, 10.0)
    assert limiter.admit("victim", 0.0).is_admitted
    assert limiter.admit("victim", 0.0).is_admitted
    for number in range(1000):
        limiter.admit(f"invented-{number}", 0.0)
    assert not limiter.admit("victim", 0.0).is_admitted


def test_routes_have_buckets_of_their_own_in_one_table_of_theirs(table: int) -> None:
    limiter = SharedRateLimiter(table, 1, 60.0)
    orders, same, other = (limiter.for_route(name, 2, 60.0) for name in ("orders", "orders", "billing"))
    elsewhere = SharedRateLimiter(table, 5, 60.0).for_route("orders", 2, 60.0)  # as another worker makes it
    assert orders.admit("client", 0.0).remaining == 1
    assert same.admit("client", 0.0).is_admitted
    assert not elsewhere.admit("client", 0.0).is_admitted
    assert other.admit("client", 0.0).remaining == 1
    assert orders.admit("somebody", 0.0).is_admitted
    assert limiter.admit("client", 0.0).is_admitted
    assert not limiter.admit("client", 0.0).is_admitted


def test_a_changed_limit_of_a_route_begins_anew(table: int) -> None:
    limiter = SharedRateLimiter(table, 1, 1.0)
    assert limiter.for_route("orders", 1, 3600.0).admit("client", 0.0).is_admitted
    assert limiter.for_route("orders", 1, 1.0).admit("client", 0.0).is_admitted


def test_routes_with_long_windows_take_no_slot_of_the_gateways_own_limit(
    table: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharedlimit, "SLOTS", sharedlimit.WAYS)
    limiter = SharedRateLimiter(table, 1, 10.0)
    route = limiter.for_route("orders", 1, 3600.0)
    for number in range(1000):
        route.admit(f"invented-{number}", 0.0)
    for number in range(sharedlimit.WAYS):
        assert limiter.admit(f"client-{number}", 0.0).is_admitted

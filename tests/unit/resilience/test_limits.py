"""A concurrency limit admits so many at once and takes each place back once."""

import pytest

from toska_mesh.resilience import ConcurrencyLimit


def test_it_admits_up_to_the_limit_and_counts_the_rest() -> None:
    limit = ConcurrencyLimit(2)
    assert [limit.try_acquire() for _ in range(4)] == [True, True, False, False]
    assert (limit.in_flight, limit.rejected) == (2, 2)
    limit.release()
    assert limit.try_acquire()


def test_zero_means_no_limit() -> None:
    limit = ConcurrencyLimit(0)
    assert all(limit.try_acquire() for _ in range(1000))


def test_a_double_release_is_a_bug_that_shows() -> None:
    limit = ConcurrencyLimit(1)
    assert limit.try_acquire()
    limit.release()
    with pytest.raises(ValueError, match="more often"):
        limit.release()


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        ConcurrencyLimit(-1)

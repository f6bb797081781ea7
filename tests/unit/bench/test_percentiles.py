"""What the benchmarks compute from what they measured."""

import random

import pytest
from bench.support.openloop import complete, reduce_latencies, schedule
from bench.support.results import percentile, percentiles
from bench.support.rounds import medians, ratio, rotated


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [
        pytest.param(200, 0.99, 198, id="second largest of 200"),
        pytest.param(1000, 0.999, 999, id="largest of 1,000"),
        pytest.param(101, 0.5, 50, id="median of an odd number"),
        pytest.param(1, 0.999, 0, id="one value is every percentile"),
    ],
)
def test_a_percentile_is_the_value_that_the_fraction_is_below(count: int, fraction: float, expected: int) -> None:
    assert percentile(range(count), fraction) == expected


def test_percentiles_do_not_depend_on_the_order() -> None:
    values = [float(number) for number in range(100)]
    random.Random(1).shuffle(values)
    assert percentiles(values) == {"median": 50.0, "p90": 90.0, "p99": 99.0, "max": 99.0, "count": 100}


def test_medians_shrug_off_one_bad_round_but_count_its_failures() -> None:
    rounds = [{"rate": 10.0, "failed": 0}, {"rate": 2.0, "failed": 3}, {"rate": 12.0, "failed": 0}]
    assert medians(rounds) == {"rate": 10.0, "failed": 3}


def test_a_ratio_to_nothing_is_none_that_passes() -> None:
    assert ratio({"rate": 5.0}, {"rate": 2.0}, "rate") == 2.5
    assert ratio({"rate": 5.0}, {"rate": 0.0}, "rate") == 0.0


def test_each_contestant_begins_a_round_and_none_is_left_out() -> None:
    names = ["a", "b", "c"]
    orders = [rotated(names, turn) for turn in range(3)]
    assert {order[0] for order in orders} == set(names)
    assert all(sorted(order) == names for order in orders)


def test_moments_of_the_open_loop_keep_the_rate_and_repeat() -> None:
    moments = schedule(5000, 2.0, seed=7)
    assert moments == schedule(5000, 2.0, seed=7) != schedule(5000, 2.0, seed=8)
    assert moments == sorted(moments)
    assert moments[-1] < 2.0
    assert len(moments) == pytest.approx(10_000, rel=0.05)


def test_failed_requests_count_as_requests_and_have_no_latency() -> None:
    found = reduce_latencies([0.001] * 999 + [0.5], [0.0], failed=4)
    assert (found.requests, found.failed) == (1004, 4)
    assert (found.p50_ms, found.p999_ms, found.max_ms) == (1.0, 500.0, 500.0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", True, id="complete"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length:2\r\nX: y\r\n\r\nok", True, id="other spelling"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", None, id="half a head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", None, id="half a body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokay", False, id="more than asked for"),
        pytest.param(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno", False, id="refused"),
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok", False, id="no length"),
    ],
)
def test_an_answer_counts_only_when_it_is_whole_and_good(data: bytes, expected: bool | None) -> None:
    assert complete(data) is expected

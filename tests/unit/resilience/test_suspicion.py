"""How long silence has to last before it counts, by what the service usually takes."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.resilience import RecentLatency, SuspicionPolicy, is_suspect

POLICY = SuspicionPolicy()


def latency_of(*seconds: float) -> RecentLatency:
    latency = RecentLatency()
    for each in seconds:
        latency.observe(each)
    return latency


@given(st.lists(st.floats(0.0001, 100), min_size=1, max_size=500), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_at_most_a_fifth_too_high_and_never_too_low(seconds: list[float], fraction: float) -> None:
    exact = sorted(seconds)[ceil(fraction * len(seconds) - 1e-9) - 1]
    estimate = latency_of(*seconds).quantile(fraction)
    assert estimate is not None
    assert exact <= estimate * (1 + 1e-9)
    assert estimate <= exact * 1.2


def test_without_answers_there_is_no_p99() -> None:
    assert RecentLatency().p99() is None


def test_answers_beyond_every_bucket_count_as_endless() -> None:
    assert latency_of(1e6).p99() == float("inf")


def test_the_p99_follows_a_service_that_became_faster() -> None:
    latency = latency_of(*[5.0] * 3000)
    for _ in range(20_000):
        latency.observe(0.01)
    p99 = latency.p99()
    assert p99 is not None
    assert p99 < 0.02


def test_the_p99_follows_a_service_that_became_slower() -> None:
    latency = latency_of(*[0.01] * 50_000)
    for _ in range(200):
        latency.observe(2.0)
    p99 = latency.p99()
    assert p99 is not None
    assert p99 > 1.9


def test_it_remembers_no_more_than_asked() -> None:
    latency = RecentLatency(memory=128)
    for _ in range(10_000):
        latency.observe(0.01)
    assert latency.samples < 128


@pytest.mark.parametrize(
    ("usual_seconds", "answers", "threshold"),
    [
        pytest.param(0.005, 100, 1.0, id="a fast service: one second"),
        pytest.param(0.5, 100, 10.0, id="a slow service: twenty times its p99"),
        pytest.param(0.005, 3, 2.0, id="hardly known"),
        pytest.param(4.0, 1, 12.0, id="hardly known, and slow"),
        pytest.param(0.0, 0, 2.0, id="not known at all"),
    ],
)
def test_how_long_silence_may_last(usual_seconds: float, answers: int, threshold: float) -> None:
    latency = latency_of(*[usual_seconds] * answers)
    assert threshold <= POLICY.threshold_seconds(latency) <= threshold * 1.2


@pytest.mark.parametrize(
    ("usual_seconds", "answers", "patience", "threshold"),
    [
        pytest.param(0.005, 100, 30.0, 1.0, id="time enough: as ever"),
        pytest.param(0.005, 100, 1.5, 0.5, id="a third of what the request has"),
        pytest.param(0.005, 100, 0.1, 0.25, id="but not at once"),
        pytest.param(0.5, 100, 3.0, 1.5, id="nor before three times the p99 of a slow service"),
        pytest.param(0.0, 0, 3.0, 1.0, id="a third also where nothing is known"),
        pytest.param(0.0, 0, 30.0, 2.0, id="with time enough: as ever where nothing is known"),
    ],
)
def test_a_request_with_little_time_suspects_sooner(
    usual_seconds: float, answers: int, patience: float, threshold: float
) -> None:
    latency = latency_of(*[usual_seconds] * answers)
    assert threshold <= POLICY.threshold_seconds(latency, patience) <= threshold * 1.2


@pytest.mark.parametrize(("patience", "threshold"), [(30.0, 1.0), (5.0, 1.0), (1.5, 0.5), (0.3, 0.25)])
def test_how_long_a_dial_may_take_does_not_depend_on_the_service(patience: float, threshold: float) -> None:
    assert POLICY.dial_threshold_seconds(patience) == pytest.approx(threshold)


@pytest.mark.parametrize(
    ("sent_at", "now", "expected"),
    [(None, 100.0, False), (99.5, 100.0, False), (99.0, 100.0, True), (50.0, 100.0, True)],
)
def test_silence_beyond_the_threshold_is_suspect(sent_at: float | None, now: float, expected: bool) -> None:
    assert is_suspect(sent_at, now, 1.0) is expected


def test_values_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError):
        SuspicionPolicy(min_seconds=0.0)
    with pytest.raises(ValueError):
        SuspicionPolicy(dial_seconds=0.0)
    with pytest.raises(ValueError):
        RecentLatency(memory=10)

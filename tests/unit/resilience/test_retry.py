"""What is tried again, after which pause, and what never is."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.resilience import Failure, RetryPolicy, Try, is_idempotent, may_repeat

POLICY = RetryPolicy()


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
def test_idempotent_methods_as_text_and_as_bytes(method: str) -> None:
    assert is_idempotent(method)
    assert is_idempotent(method.encode())


@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "get", "PROPFIND", ""])
def test_all_other_methods_are_not(method: str) -> None:
    assert not is_idempotent(method)
    assert not is_idempotent(method.encode())


@pytest.mark.parametrize(
    ("failure", "method", "bytes_sent", "is_safe"),
    [
        pytest.param(Failure.CONNECT, "GET", False, True, id="GET, nobody reached"),
        pytest.param(Failure.CONNECT, "POST", False, True, id="POST, nobody reached"),
        pytest.param(Failure.RESET, "GET", True, True, id="GET, reset"),
        pytest.param(Failure.RESET, "POST", True, False, id="POST, reset: it may have been done"),
        pytest.param(Failure.RESET, "POST", False, True, id="POST, reset before a byte left"),
        pytest.param(Failure.TIMEOUT, "PUT", True, True, id="PUT, no answer"),
        pytest.param(Failure.TIMEOUT, "PATCH", True, False, id="PATCH, no answer"),
        pytest.param(Failure.STATUS, "DELETE", True, True, id="DELETE, 503"),
        pytest.param(Failure.STATUS, "POST", True, False, id="POST, 503"),
    ],
)
def test_what_may_be_repeated(failure: Failure, method: str, bytes_sent: bool, is_safe: bool) -> None:
    attempt = Try(failure, is_idempotent(method), bytes_sent)
    assert may_repeat(attempt) is is_safe
    assert (POLICY.next_pause(attempt, 0, True, Random(1)) is not None) is is_safe


@given(st.sampled_from(Failure), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_nothing_is_repeated_once_an_answer_has_begun_or_the_body_is_gone(
    failure: Failure, idempotent: bool, bytes_sent: bool, answer_begun: bool, body_kept: bool
) -> None:
    attempt = Try(failure, idempotent, bytes_sent, answer_begun, body_kept)
    if answer_begun or not body_kept:
        assert not may_repeat(attempt)
    if may_repeat(attempt):
        assert idempotent or not bytes_sent


def test_another_instance_is_asked_at_once() -> None:
    assert POLICY.next_pause(Try(Failure.CONNECT, True, False), 2, True, Random(1)) == 0.0


def test_the_same_instance_is_asked_after_a_growing_pause() -> None:
    policy = RetryPolicy(jitter_seconds=0.0)
    attempt = Try(Failure.RESET, True, True)
    pauses = [policy.next_pause(attempt, done, False, Random(1)) for done in range(4)]
    assert pauses == [0.2, 0.4, 0.8, None]


def test_a_count_of_zero_never_retries() -> None:
    assert RetryPolicy(count=0).next_pause(Try(Failure.CONNECT, True, False), 0, True, Random(1)) is None


@given(st.integers(0, 10_000), st.integers())
def test_pauses_stay_within_their_bounds(done: int, seed: int) -> None:
    pause = POLICY.pause_seconds(done, Random(seed))
    least = min(0.2 * 2.0 ** min(done, 64), 10.0)
    assert least <= pause <= least + 0.2


def test_the_jitter_differs_between_clients() -> None:
    assert len({POLICY.pause_seconds(0, Random(seed)) for seed in range(20)}) == 20


@pytest.mark.parametrize("values", [{"count": -1}, {"base_seconds": -0.1}, {"jitter_seconds": -1}, {"factor": 0.5}])
def test_a_policy_without_a_meaning_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RetryPolicy(**values)  # type: ignore[arg-type]

"""When a breaker opens, how long, who makes the trial, and what an outcome from before says."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.resilience import Breaker, BreakerPolicy, Circuit, Outcome, Permit, State, Transition

POLICY = BreakerPolicy(failure_threshold=3, open_seconds=20.0, window_seconds=60.0, trial_seconds=30.0)
FRESH = Breaker(POLICY)
SUCCESS, FAILURE, CANCELLED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.CANCELLED


def after(outcomes: list[Outcome], now: float = 0.0, breaker: Breaker = FRESH) -> Breaker:
    """Make one call after the other, all at the same moment; rejected ones are not made."""
    for outcome in outcomes:
        breaker, permit = breaker.admit(now)
        if permit is not None:
            breaker = breaker.settle(permit, outcome, now)
    return breaker


def trial(breaker: Breaker, now: float) -> tuple[Breaker, Permit]:
    breaker, permit = breaker.admit(now)
    assert permit is not None
    return breaker, permit


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        pytest.param([FAILURE] * 2, State.CLOSED, id="too few failures"),
        pytest.param([FAILURE] * 3, State.OPEN, id="enough failures"),
        pytest.param([FAILURE, FAILURE, SUCCESS, FAILURE, FAILURE], State.CLOSED, id="not in a row"),
        pytest.param(
            [FAILURE, CANCELLED, FAILURE, CANCELLED, FAILURE], State.OPEN, id="cancelled calls do not interrupt"
        ),
        pytest.param([CANCELLED] * 10, State.CLOSED, id="cancelled calls do not count"),
    ],
)
def test_failures_in_a_row_open_it(outcomes: list[Outcome], state: State) -> None:
    assert after(outcomes).state is state


def test_open_it_rejects_until_its_time_and_then_admits_one_trial() -> None:
    breaker = after([FAILURE] * 3, now=100.0)
    assert breaker.retry_at == 120.0
    assert breaker.admit(119.999) == (breaker, None)
    breaker, _ = trial(breaker, 120.0)
    assert breaker.state is State.HALF_OPEN
    assert breaker.admit(120.0)[1] is None


def test_a_good_trial_closes_it_and_a_bad_one_opens_it_again() -> None:
    breaker, permit = trial(after([FAILURE] * 3), 20.0)
    assert breaker.settle(permit, SUCCESS, 21.0).state is State.CLOSED
    reopened = breaker.settle(permit, FAILURE, 21.0)
    assert (reopened.state, reopened.retry_at) == (State.OPEN, 41.0)


def test_a_cancelled_trial_gives_its_slot_back_at_once() -> None:
    breaker, permit = trial(after([FAILURE] * 3), 20.0)
    breaker = breaker.settle(permit, CANCELLED, 21.0)
    assert not breaker.is_open(21.0)
    breaker, second = trial(breaker, 21.0)
    assert breaker.settle(second, SUCCESS, 22.0).state is State.CLOSED


def test_a_lost_trial_gives_its_slot_back_after_its_time() -> None:
    breaker, lost = trial(after([FAILURE] * 3), 20.0)
    assert breaker.is_open(49.9)
    breaker, second = trial(breaker, 50.0)
    assert breaker.settle(lost, FAILURE, 51.0) is breaker
    assert breaker.settle(second, SUCCESS, 51.0).state is State.CLOSED


@pytest.mark.parametrize("outcome", Outcome)
def test_calls_from_before_it_opened_say_nothing_afterwards(outcome: Outcome) -> None:
    early = Permit(FRESH.epoch)
    breaker = after([FAILURE] * 3)
    assert breaker.settle(early, outcome, 1.0) is breaker
    half_open, _ = trial(breaker, 20.0)
    assert half_open.settle(early, outcome, 20.0) is half_open


def test_failures_spread_over_days_are_no_series() -> None:
    breaker = FRESH
    for day in range(10):
        breaker = after([FAILURE], now=day * 86400.0, breaker=breaker)
    assert breaker.state is State.CLOSED
    assert after([FAILURE] * 2, now=9 * 86400.0 + 60.0, breaker=breaker).state is State.OPEN


def test_a_success_on_a_clean_circuit_gives_the_same_object() -> None:
    same, permit = FRESH.admit(5.0)
    assert permit is not None
    assert same is FRESH
    assert same.settle(permit, SUCCESS, 6.0) is FRESH


@pytest.mark.parametrize("now", [0.0, 19.0, 20.0, 1000.0])
def test_questions_change_nothing(now: float) -> None:
    for breaker in (FRESH, after([FAILURE] * 3), trial(after([FAILURE] * 3), 20.0)[0]):
        copy = replace(breaker)
        _ = breaker.is_open(now), breaker.is_clean
        assert breaker == copy
        assert breaker.is_open(now) is (breaker.admit(now)[1] is None)


histories = st.lists(st.tuples(st.sampled_from(Outcome), st.floats(0, 60)))


@given(histories)
def test_it_never_rejects_longer_than_the_open_time(history: list[tuple[Outcome, float]]) -> None:
    breaker, now = FRESH, 0.0
    for outcome, pause in history:
        now += pause
        breaker = after([outcome], now, breaker)
    assert breaker.admit(now + POLICY.open_seconds)[1] is not None


@given(st.lists(st.tuples(st.none() | st.sampled_from(Outcome), st.floats(0, 60))))
def test_not_even_lost_calls_block_it_for_ever(history: list[tuple[Outcome | None, float]]) -> None:
    breaker, now = FRESH, 0.0
    for outcome, pause in history:
        now += pause
        breaker, permit = breaker.admit(now)
        if permit is not None and outcome is not None:
            breaker = breaker.settle(permit, outcome, now)
    assert breaker.admit(now + max(POLICY.open_seconds, POLICY.trial_seconds))[1] is not None


steps = st.lists(
    st.tuples(st.sampled_from(["admit", "settle"]), st.integers(0, 4), st.sampled_from(Outcome), st.floats(0, 30)),
    max_size=60,
)


@given(steps)
def test_the_holder_decides_as_the_value_does(history: list[tuple[str, int, Outcome, float]]) -> None:
    """Calls overlap and settle in any order; the short cut of a hot path is taken wherever it is allowed."""
    breaker, circuit, now = FRESH, Circuit(POLICY), 0.0
    out: list[tuple[Permit, Permit]] = []
    for step, which, outcome, pause in history:
        now += pause
        if step == "admit":
            breaker, permit = breaker.admit(now)
            taken = circuit.epoch if circuit.is_clean else circuit.admit(now)
            assert taken == permit
            if permit is not None and taken is not None:
                out.append((permit, taken))
        elif out:
            permit, taken = out.pop(which % len(out))
            before, breaker = breaker, breaker.settle(permit, outcome, now)
            transition = None
            if outcome is Outcome.FAILURE or not circuit.is_clean:
                transition = circuit.settle(taken, outcome, now)
            expected = Transition(before.state, breaker.state, breaker.retry_at)
            assert transition == (expected if breaker.state is not before.state else None)
        assert circuit.breaker == breaker
        assert (circuit.state, circuit.retry_at) == (breaker.state, breaker.retry_at)
        assert circuit.is_open(now) is breaker.is_open(now)


def test_the_holder_tells_when_the_state_changed() -> None:
    circuit = Circuit(POLICY)
    told = []
    for now, outcome in [(0.0, FAILURE), (1.0, FAILURE), (2.0, FAILURE), (22.0, SUCCESS), (23.0, SUCCESS)]:
        permit = circuit.admit(now)
        assert permit is not None
        told.append(circuit.settle(permit, outcome, now))
    assert told == [
        None,
        None,
        Transition(State.CLOSED, State.OPEN, 22.0),
        Transition(State.HALF_OPEN, State.CLOSED, 0.0),
        None,
    ]


@pytest.mark.parametrize(
    "values",
    [{"failure_threshold": 0}, {"open_seconds": 0.0}, {"window_seconds": -1.0}, {"trial_seconds": float("nan")}],
)
def test_a_policy_without_a_meaning_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        BreakerPolicy(**values)  # type: ignore[arg-type]

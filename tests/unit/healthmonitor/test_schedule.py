"""Slots, phases and the one heap behind them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from toska_mesh.healthmonitor.schedule import Schedule, next_slot, phase_of

PHASES = st.floats(0, 1, exclude_max=True)
INTERVALS = st.floats(0.1, 3600)
MOMENTS = st.floats(0, 1e7)


@given(phase=PHASES, interval=INTERVALS, after=MOMENTS)
def test_the_next_slot_is_later_and_at_most_one_interval_away(phase, interval, after):
    slot = next_slot(phase, interval, after)
    assert slot > after
    assert slot - after <= interval * (1 + 1e-6) + 1e-6


@given(phase=PHASES, interval=INTERVALS, after=MOMENTS)
def test_slots_asked_for_half_an_interval_ahead_never_drift(phase, interval, after):
    first = next_slot(phase, interval, after)
    slot = first
    for _ in range(20):
        slot = next_slot(phase, interval, slot + interval / 2)
    assert slot == pytest.approx(first + 20 * interval, rel=1e-9, abs=1e-6)


def test_phases_are_fixed_and_spread_evenly():
    phases = [phase_of("orders", f"orders-{number}") for number in range(10_000)]
    assert phases == [phase_of("orders", f"orders-{number}") for number in range(10_000)]
    tenths = [sum(tenth / 10 <= phase < (tenth + 1) / 10 for phase in phases) for tenth in range(10)]
    assert min(tenths) > 850
    assert max(tenths) < 1150


def test_two_services_with_the_same_instance_id_have_phases_of_their_own():
    assert phase_of("a", "bc") != phase_of("ab", "c")


class ScheduleModel(RuleBasedStateMachine):
    """The schedule against a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule: Schedule[str] = Schedule()
        self.model: dict[str, float] = {}

    @rule(key=st.sampled_from("abcdefgh"), due=st.floats(0, 100))
    def add(self, key: str, due: float) -> None:
        self.schedule.add(key, due)
        self.model[key] = due

    @rule(key=st.sampled_from("abcdefgh"))
    def remove(self, key: str) -> None:
        self.schedule.remove(key)
        self.model.pop(key, None)

    @rule(now=st.floats(0, 100))
    def pop(self, now: float) -> None:
        popped = list(self.schedule.pop_due(now))
        assert [due for _, due in popped] == sorted(due for _, due in popped)
        assert dict(popped) == {key: due for key, due in self.model.items() if due <= now}
        for key, _ in popped:
            del self.model[key]

    @invariant()
    def agrees(self) -> None:
        assert len(self.schedule) == len(self.model)
        assert self.schedule.next_due() == (min(self.model.values()) if self.model else None)


TestSchedule = ScheduleModel.TestCase


def test_moving_and_removing_keys_does_not_grow_the_heap():
    schedule: Schedule[int] = Schedule()
    for turn in range(10_000):
        schedule.add(turn % 10, float(turn))
    assert len(schedule) == 10
    assert len(schedule._heap) <= 100
    for key in range(10):
        schedule.remove(key)
    assert schedule.next_due() is None
    assert len(schedule._heap) == 0

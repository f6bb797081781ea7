"""Slots for probes, and who waits for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.healthmonitor.lanes import Lanes


def test_suspects_never_hold_more_than_half_of_the_slots():
    lanes: Lanes[str] = Lanes(8)
    for number in range(20):
        lanes.push(f"hangs-{number}", is_suspect=True)
    started = [lanes.pop() for _ in range(10)]
    assert [item for item in started if item] == [(f"hangs-{number}", True) for number in range(4)]
    lanes.push("answers", is_suspect=False)
    assert lanes.pop() == ("answers", False)
    assert lanes.pop() is None
    lanes.release(is_suspect=True)
    assert lanes.pop() == ("hangs-4", True)


def test_one_slot_serves_suspects_too():
    lanes: Lanes[str] = Lanes(1)
    lanes.push("hangs", is_suspect=True)
    assert lanes.pop() == ("hangs", True)


def test_no_slot_at_all_is_refused():
    with pytest.raises(ValueError):
        Lanes(0)


@given(capacity=st.integers(1, 9), steps=st.lists(st.sampled_from(["push", "push suspect", "pop", "release"])))
def test_the_bound_holds_and_nothing_is_lost(capacity, steps):
    lanes: Lanes[int] = Lanes(capacity)
    running: list[tuple[int, bool]] = []
    pushed: list[int] = []
    popped: list[int] = []
    for number, step in enumerate(steps):
        match step:
            case "pop":
                found = lanes.pop()
                if found is not None:
                    running.append(found)
                    popped.append(found[0])
            case "release":
                if running:
                    lanes.release(is_suspect=running.pop(0)[1])
            case _:
                lanes.push(number, is_suspect=step == "push suspect")
                pushed.append(number)
        assert lanes.in_flight == len(running) <= capacity
        assert sum(is_suspect for _, is_suspect in running) <= max(1, capacity // 2)
        assert lanes.waiting == len(pushed) - len(popped)

"""Random choices are even, prefer the less loaded where they should, and never hit who is blocked."""

from collections import Counter
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.router.build import ids, picker, targets

from toska_mesh.router.sampled import WINDOW


def test_random_reaches_everyone_about_equally() -> None:
    among = targets("A", "B", "C", "D")
    pick = picker("Random", among, seed=7).pick
    counted = Counter(pick(0.0) for _ in range(4000))
    assert all(800 < counted[target] < 1200 for target in among)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=WINDOW))
def test_least_connections_is_exact_up_to_the_window(loads: list[int]) -> None:
    among = targets(*(f"i{index:02}" for index in range(len(loads))))
    for target, load in zip(among, loads, strict=True):
        target.in_flight = load
    pick = picker("LeastConnections", among).pick
    for _ in range(len(loads)):
        chosen = pick(0.0)
        assert chosen is not None
        assert chosen.in_flight == min(loads)


def test_least_connections_lets_equals_take_turns() -> None:
    among = targets("A", "B", "C")
    pick = picker("LeastConnections", among).pick
    for load in (0, 2):
        for target in among:
            target.in_flight = load
        assert Counter(pick(0.0) for _ in range(9)) == dict.fromkeys(among, 3)


def test_least_connections_keeps_many_instances_level() -> None:
    among = targets(*(f"i{index:03}" for index in range(200)))
    pick = picker("LeastConnections", among).pick
    for _ in range(2000):
        chosen = pick(0.0)
        assert chosen is not None
        chosen.in_flight += 1
    assert max(target.in_flight for target in among) - min(target.in_flight for target in among) <= 2


def test_least_connections_passes_a_whole_window_of_blocked_ones() -> None:
    among = targets(*(f"i{index:03}" for index in range(WINDOW + 5)))
    for target in among[:-1]:
        target.is_blocked = True
    pick = picker("LeastConnections", among).pick
    assert {pick(0.0) for _ in among} == {among[-1]}


def test_p2c_never_takes_the_most_loaded_of_all() -> None:
    among = targets("A", "B", "C")
    among[1].in_flight = 1
    among[2].in_flight = 5
    pick = picker("P2C", among).pick
    assert "C" not in {ids([pick(0.0)]) for _ in range(300)}


def test_p2c_meets_every_pair() -> None:
    among = targets("A", "B", "C", "D")
    pick = picker("P2C", among).pick
    for pair in combinations(among, 2):
        for target in among:
            target.in_flight = 0 if target in pair else 9
        assert {pick(0.0) for _ in range(200)} >= set(pair)


def test_p2c_keeps_many_instances_nearly_level() -> None:
    among = targets(*(f"i{index:03}" for index in range(100)))
    pick = picker("P2C", among).pick
    for _ in range(10_000):
        chosen = pick(0.0)
        assert chosen is not None
        chosen.in_flight += 1
    assert all(90 <= target.in_flight <= 106 for target in among)

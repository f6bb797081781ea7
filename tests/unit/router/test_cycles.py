"""Turns are even, weights come out exact and smooth, and a change of the table does not favour anybody."""

from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.router.build import ids, picker, targets

from toska_mesh.router.cycles import LONGEST_STORED_CYCLE, smooth_order


@pytest.mark.parametrize(
    ("weights", "order"),
    [
        pytest.param([3, 1, 1], "A B A C A", id="one heavy, two light"),
        pytest.param([1, 1, 1], "A B C", id="all equal"),
        pytest.param([5, 1, 1], "A B A A A C A", id="very heavy"),
        pytest.param([4, 2, 1], "A B A C A B A", id="powers of two"),
        pytest.param([2, 2, 2], "A B C A B C", id="equal weights above one"),
        pytest.param([1, 3], "B B A B", id="the heavy one last"),
    ],
)
def test_the_smooth_order_spreads_each_weight(weights: list[int], order: str) -> None:
    cycle = islice(smooth_order(targets(*"ABC"[: len(weights)]), weights), sum(weights))
    assert ids(list(cycle)) == order


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 4))
def test_weights_come_out_exact_in_every_cycle(weights: list[int], cycles: int) -> None:
    among = targets(*(f"i{index:02}" for index in range(len(weights))))
    order = smooth_order(among, weights)
    for _ in range(cycles):
        counted = Counter(islice(order, sum(weights)))
        assert [counted[target] for target in among] == weights


@given(st.lists(st.integers(1, 30), min_size=2, max_size=8))
def test_nobody_waits_much_longer_than_its_weight_allows(weights: list[int]) -> None:
    among = targets(*(f"i{index:02}" for index in range(len(weights))))
    total = sum(weights)
    order = list(islice(smooth_order(among, weights), 2 * total))
    for target, weight in zip(among, weights, strict=True):
        places = [place for place, other in enumerate(order) if other is target]
        gaps = [later - earlier for earlier, later in pairwise(places)]
        # Two neighbours of a class of n are 1/w of a cycle apart, give or take the rounding of each other class.
        assert max(gaps, default=0) <= total / weight + len(set(weights)) + 1


@given(st.integers(1, 9), st.integers(1, 5))
def test_whole_rounds_of_round_robin_are_even(count: int, rounds: int) -> None:
    among = targets(*(f"i{index}" for index in range(count)))
    pick = picker("RoundRobin", among).pick
    counted = Counter(pick(0.0) for _ in range(count * rounds))
    assert counted == dict.fromkeys(among, rounds)


def test_two_instances_alternate() -> None:
    pick = picker("RoundRobin", targets("A", "B")).pick
    assert ids([pick(0.0) for _ in range(4)]) == "A B A B"


@pytest.mark.parametrize("strategy", ["RoundRobin", "WeightedRoundRobin"])
def test_a_successor_goes_on_where_its_predecessor_was(strategy: str) -> None:
    among = targets("A", "B", "C", "D")
    first = picker(strategy, among)
    assert ids([first.pick(0.0) for _ in range(2)]) == "A B"
    second = picker(strategy, [among[0], among[1], among[3]], previous=first)
    assert ids([second.pick(0.0) for _ in range(3)]) == "D A B"


def test_the_turn_of_a_blocked_instance_goes_to_the_next_without_doubling_it() -> None:
    among = targets("A", "B", "C")
    among[0].is_blocked = True
    pick = picker("RoundRobin", among).pick
    assert Counter(ids([pick(0.0)]) for _ in range(20)) == {"B": 10, "C": 10}


def test_common_divisors_of_weights_do_not_lengthen_the_cycle() -> None:
    among = targets("A", "B", weights=[1000, 500])
    pick = picker("WeightedRoundRobin", among).pick
    assert Counter(ids([pick(0.0)]) for _ in range(3)) == {"A": 2, "B": 1}


def test_a_cycle_too_long_to_store_has_exact_weights_as_well() -> None:
    weights = [1000, 999, 997, 991, 983]
    assert sum(weights) > LONGEST_STORED_CYCLE
    among = targets("A", "B", "C", "D", "E", weights=weights)
    pick = picker("WeightedRoundRobin", among).pick
    counted = Counter(pick(0.0) for _ in range(sum(weights)))
    assert [counted[target] for target in among] == weights


def test_a_light_instance_is_found_when_the_heavy_ones_are_blocked() -> None:
    among = targets("A", "B", "C", weights=[1000, 1000, 1])
    among[0].is_blocked = among[1].is_blocked = True
    pick = picker("WeightedRoundRobin", among).pick
    assert ids([pick(0.0) for _ in range(3)]) == "C C C"

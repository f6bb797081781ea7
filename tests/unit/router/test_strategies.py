"""What every strategy promises, whatever else it does."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.router.build import ids, picker, targets

from toska_mesh.router import STRATEGIES, Target, parse_strategy

NAMES = [strategy.name for strategy in STRATEGIES.values()]
every_strategy = pytest.mark.parametrize("name", NAMES)
KEYS = st.one_of(st.none(), st.text(max_size=8))


@pytest.fixture(params=["pick", "pick_ramping"])
def way(request: pytest.FixtureRequest) -> str:
    """The ordinary pick and the one during slow start keep the same promises."""
    return str(request.param)


def chooser(name: str, among: list[Target], way: str, seed: int = 1) -> Callable[..., Target | None]:
    choose: Callable[..., Target | None] = getattr(picker(name, among, seed=seed), way)
    return choose


@every_strategy
@given(data=st.data())
def test_a_pick_is_never_blocked_and_never_a_tried_one_without_need(name: str, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 20))
    among = targets(*(f"i{index:02}" for index in range(count)), weights=data.draw(st.lists(st.integers(1, 9))))
    for target in among:
        target.is_blocked = data.draw(st.booleans())
        target.in_flight = data.draw(st.integers(0, 3))
        if data.draw(st.booleans()):
            target.start_ramp(0.0, 10.0)
    tried = data.draw(st.lists(st.sampled_from(among), unique=True))
    choose = chooser(name, among, data.draw(st.sampled_from(["pick", "pick_ramping"])))
    for _ in range(3):
        chosen = choose(data.draw(st.floats(0, 20)), data.draw(KEYS), tried)
        unblocked = [target for target in among if not target.is_blocked]
        untried = [target for target in unblocked if target not in tried]
        if not unblocked:
            assert chosen is None
        elif untried:
            assert chosen in untried
        else:
            assert chosen in unblocked


@every_strategy
def test_nobody_is_picked_where_nobody_is(name: str, way: str) -> None:
    assert chooser(name, [], way)(0.0, "key", ()) is None


@every_strategy
def test_a_single_instance_is_always_picked(name: str, way: str) -> None:
    choose = chooser(name, targets("A"), way)
    assert ids([choose(0.0, key) for key in (None, "a", "b")]) == "A A A"


@every_strategy
def test_an_instance_that_is_free_again_is_picked_again(name: str, way: str) -> None:
    among = targets("A", "B")
    among[0].is_blocked = True
    choose = chooser(name, among, way)
    assert {ids([choose(0.0, str(key))]) for key in range(50)} == {"B"}
    among[0].is_blocked = False
    assert {ids([choose(0.0, str(key))]) for key in range(50)} == {"A", "B"}


@every_strategy
def test_a_newcomer_gets_its_first_request_soon_and_its_share_grows(name: str) -> None:
    among = targets("A", "B", "C", "D")
    newcomer = among[3]
    newcomer.start_ramp(0.0, 10.0)
    choose = chooser(name, among, "pick_ramping")

    def part(now: float) -> float:
        """Of 2,000 requests, each of which is in flight while the next four come."""
        counted: Counter[Target] = Counter()
        open_requests: list[Target] = []
        for key in range(2000):
            chosen = choose(now, str(key))
            assert chosen is not None
            chosen.in_flight += 1
            counted[chosen] += 1
            open_requests.append(chosen)
            if len(open_requests) > 40:
                open_requests.pop(0).in_flight -= 1
        for target in open_requests:
            target.in_flight -= 1
        return counted[newcomer] / 2000

    start, middle, end = part(0.0), part(5.0), part(10.0)
    assert 0 < start < 0.1
    assert start < middle < 0.2
    assert 0.2 < end < 0.3


@every_strategy
def test_newcomers_alone_are_picked_without_waiting_for_their_share(name: str) -> None:
    among = targets("A", "B")
    for target in among:
        target.start_ramp(0.0, 10.0)
    choose = chooser(name, among, "pick_ramping")
    assert {ids([choose(0.0, str(key))]) for key in range(50)} == {"A", "B"}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("RoundRobin", "RoundRobin"),
        ("round_robin", "RoundRobin"),
        ("ROUND-ROBIN", "RoundRobin"),
        ("least_connections", "LeastConnections"),
        ("Random", "Random"),
        (" weightedroundrobin ", "WeightedRoundRobin"),
        ("weighted_round_robin", "WeightedRoundRobin"),
        ("ip_hash", "IPHash"),
        ("IPHash", "IPHash"),
        ("p2c", "P2C"),
    ],
)
def test_names_of_strategies_are_forgiving(written: str, name: str) -> None:
    strategy = parse_strategy(written)
    assert strategy is not None
    assert strategy.name == name


@pytest.mark.parametrize("written", ["", "0", "Fastest", "roundrobinx"])
def test_unknown_names_are_not_guessed(written: str) -> None:
    assert parse_strategy(written) is None

"""What the shrink guard believes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.model import Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.registry.consul.codec import Entry, ServiceReading
from toska_mesh.registry.consul.guard import ShrinkGuard

ORDERS = ServiceName("orders")
UNKNOWN, HEALTHY, UNHEALTHY, DEGRADED = HealthStatus


def instance(letter: str, status: HealthStatus = HEALTHY, created: int = 1) -> Instance:
    return Instance(ORDERS, InstanceId(letter), Endpoint("h", 80), status, create_index=created)


def reading(letters: str, silent: str = "", failed: str = "", created: int = 1) -> ServiceReading:
    entries = [Entry(instance(one, HEALTHY, created), "n", 1, False) for one in letters]
    entries += [Entry(instance(one, UNHEALTHY, created), "n", 1, True) for one in silent]
    entries += [Entry(instance(one, UNHEALTHY, created), "n", 1, False) for one in failed]
    return ServiceReading(tuple(sorted(entries, key=lambda entry: entry.instance.id)))


def text(instances: tuple[Instance, ...]) -> str:
    """Letters of what is shown, small when unhealthy."""
    return "".join(one.id if one.status is HEALTHY else one.id.lower() for one in instances)


def after_outage(
    letters: str, *, is_wiped: bool = False, seconds: float = 30
) -> tuple[ShrinkGuard, tuple[Instance, ...]]:
    guard = ShrinkGuard(60)
    shown = tuple(map(instance, letters))
    guard.outage_began({ORDERS: shown}, 100.0 - seconds)
    if is_wiped:
        guard.index_went_back({ORDERS: shown}, 100.0)
    guard.outage_ended(100.0)
    return guard, shown


@pytest.mark.parametrize(
    ("before", "is_wiped", "readings", "shown"),
    [
        pytest.param("A", False, [reading("")], "A", id="the only one"),
        pytest.param("ABC", False, [reading("AB")], "AB", id="one of three may go"),
        pytest.param("ABC", False, [reading("AB"), reading("A")], "AB", id="but not two, one after the other"),
        pytest.param("AB", False, [reading("A")], "AB", id="half is too much"),
        pytest.param("ABC", False, [reading("")], "ABC", id="not all"),
        pytest.param("ABC", False, [reading(""), reading("AB", created=2)], "ABC", id="who was held stays held"),
        pytest.param("AB", False, [reading("", failed="AB")], "ab", id="a reported failure is news"),
        pytest.param("AB", False, [reading("", silent="AB")], "AB", id="silence is none"),
        pytest.param("ABC", False, [reading("AB", silent="C")], "ABc", id="one silent of three passes"),
        pytest.param("A", False, [reading("B")], "AB", id="additions pass"),
        pytest.param("AB", False, [reading("AB", created=2), reading("")], "", id="registered anew since: believed"),
        pytest.param("ABCD", True, [reading("ABC")], "ABCD", id="after a wipe nobody goes"),
        pytest.param("ABCD", True, [reading("A"), reading("")], "BCD", id="but who was seen since"),
        pytest.param("AB", True, [reading("", silent="AB")], "AB", id="wiped and born critical"),
    ],
)
def test_after_an_outage(before: str, is_wiped: bool, readings: list[ServiceReading], shown: str) -> None:
    guard, instances = after_outage(before, is_wiped=is_wiped)
    for one in readings:
        instances = guard.merge(ORDERS, instances, one)
    assert text(instances) == shown


@pytest.mark.parametrize("is_wiped", [False, True])
def test_who_was_draining_before_the_outage_or_after_it_has_left_when_it_is_gone(is_wiped: bool) -> None:
    leaving = Instance(ORDERS, InstanceId("A"), Endpoint("h", 80), DEGRADED, output="draining: shutting down")
    guard = ShrinkGuard(60)
    guard.outage_began({ORDERS: (leaving, instance("B"))}, 70.0)
    if is_wiped:
        guard.index_went_back({ORDERS: (leaving, instance("B"))}, 100.0)
    guard.outage_ended(100.0)
    assert text(guard.merge(ORDERS, (leaving, instance("B")), reading("B"))) == "B"
    drains_now = Instance(ORDERS, InstanceId("B"), Endpoint("h", 80), DEGRADED, output="draining: shutting down")
    assert text(guard.merge(ORDERS, (drains_now,), reading(""))) == ""
    assert not guard.held


def test_without_an_outage_everything_is_believed() -> None:
    guard = ShrinkGuard(60)
    assert guard.merge(ORDERS, (instance("A"),), reading("")) == ()
    guard.outage_ended(5.0)
    assert guard.ends_at is None


def test_after_a_brief_outage_absence_is_believed_and_silence_is_not() -> None:
    guard, shown = after_outage("AB", seconds=1)
    shown = guard.merge(ORDERS, shown, reading("", silent="B"))
    assert text(shown) == "B"


def test_a_brief_outage_after_a_long_one_forgives_nothing() -> None:
    guard, shown = after_outage("AB")
    guard.outage_began({ORDERS: shown}, 110.0)
    guard.outage_ended(110.5)
    assert text(guard.merge(ORDERS, shown, reading(""))) == "AB"


def test_a_brief_outage_with_a_wipe_is_a_wipe() -> None:
    guard, shown = after_outage("AB", is_wiped=True, seconds=1)
    assert text(guard.merge(ORDERS, shown, reading(""))) == "AB"


def test_during_an_outage_nothing_is_believed_yet() -> None:
    guard = ShrinkGuard(60)
    shown = (instance("A"),)
    guard.outage_began({ORDERS: shown}, 100.0)
    assert text(guard.merge(ORDERS, shown, reading(""))) == "A"


def test_a_held_instance_is_the_object_that_was_shown() -> None:
    guard, shown = after_outage("A")
    assert guard.merge(ORDERS, shown, reading("", silent="A"))[0] is shown[0]
    assert guard.held == {ORDERS: {"A"}}


def test_the_grace_period_starts_when_the_registry_is_back_and_ends() -> None:
    guard, shown = after_outage("A")
    assert guard.ends_at == 160.0
    guard.merge(ORDERS, shown, reading(""))
    assert not guard.is_over(159.9)
    assert guard.is_over(160.0)
    assert guard.close() == {ORDERS}
    assert guard.held == {}
    assert guard.merge(ORDERS, shown, reading("")) == ()


def test_another_outage_starts_the_grace_period_anew() -> None:
    guard, shown = after_outage("AB")
    guard.outage_began({ORDERS: shown}, 110.0)
    assert guard.ends_at is None
    assert not guard.is_over(1000.0)
    guard.outage_ended(1000.0)
    assert guard.ends_at == 1060.0


@given(st.sets(st.sampled_from("ABCDEFGH"), min_size=1), st.lists(st.sets(st.sampled_from("ABCDEFGH")), max_size=6))
def test_a_service_never_loses_half_of_itself_in_a_grace_period(before: set[str], answers: list[set[str]]) -> None:
    guard, shown = after_outage("".join(sorted(before)))
    for answer in answers:
        shown = guard.merge(ORDERS, shown, reading("".join(sorted(answer))))
        present = {str(one.id) for one in shown}
        assert answer <= present, "additions pass"
        assert 2 * len(before - present) < len(before)


@given(st.sets(st.sampled_from("ABCD")), st.lists(st.sets(st.sampled_from("ABCD")), max_size=6))
def test_after_a_wipe_only_who_was_seen_since_may_go(before: set[str], answers: list[set[str]]) -> None:
    guard, shown = after_outage("".join(sorted(before)), is_wiped=True)
    seen: set[str] = set()
    for answer in answers:
        shown = guard.merge(ORDERS, shown, reading("".join(sorted(answer)), created=2))
        seen |= answer
        assert {str(one.id) for one in shown} == answer | (before - seen)

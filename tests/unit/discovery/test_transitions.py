"""Events are the difference between two states: whoever applies them arrives at the same state."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.discovery.fakes import short

from toska_mesh.discovery.transitions import (
    EXPIRED,
    REMOVED,
    Announced,
    Event,
    Stamp,
    announced_of,
    departure_reason,
    difference_of,
    events_between,
    summary_of,
)
from toska_mesh.model import (
    Endpoint,
    HealthStatus,
    Instance,
    InstanceDeregistered,
    InstanceHealthChanged,
    InstanceId,
    InstanceRegistered,
    ServiceName,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
A = Announced(ServiceName("orders"), InstanceId("a"), "10.0.0.1", 80, {"zone": "x"}, HealthStatus.HEALTHY)
SICK = replace(A, status=HealthStatus.UNHEALTHY)


def stamp(correlation_id: str | None = None) -> Stamp:
    numbers: Iterator[int] = iter(range(1, 1000))
    return Stamp(lambda: UUID(int=next(numbers)), lambda: NOW, correlation_id)


def applied(state: Announced | None, event: Event) -> Announced | None:
    """What a consumer knows after an event; a new instance is taken for healthy."""
    match event:
        case InstanceDeregistered():
            assert state is not None
            return None
        case InstanceRegistered():
            status = state.status if state else HealthStatus.HEALTHY
            return Announced(event.service, event.instance_id, event.address, event.port, dict(event.metadata), status)
        case InstanceHealthChanged():
            assert state is not None
            assert state.status is event.previous
            return replace(state, status=event.current)


states = st.none() | st.builds(
    Announced,
    st.sampled_from([ServiceName("orders"), ServiceName("carts")]),
    st.just(InstanceId("a")),
    st.sampled_from(["10.0.0.1", "10.0.0.2"]),
    st.sampled_from([80, 81]),
    st.dictionaries(st.sampled_from("xy"), st.sampled_from("12"), max_size=2),
    st.sampled_from(HealthStatus),
)


@given(states, states)
def test_the_events_lead_from_one_state_to_the_other(before: Announced | None, after: Announced | None) -> None:
    state = before
    for event in events_between(before, after, stamp()):
        state = applied(state, event)
    assert state == after


@given(states, states)
def test_no_events_exactly_when_nothing_changed(before: Announced | None, after: Announced | None) -> None:
    assert (events_between(before, after, stamp()) == ()) == (before == after)


@given(states, states)
def test_every_event_has_an_id_of_its_own_and_the_callers_correlation(
    before: Announced | None, after: Announced | None
) -> None:
    events = events_between(before, after, stamp("abc"))
    assert len({event.event_id for event in events}) == len(events)
    assert all(event.correlation_id == "abc" and event.timestamp == NOW for event in events)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param(None, A, [("registered", "a")], id="new"),
        pytest.param(A, A, [], id="the same again"),
        pytest.param(A, replace(A, port=81), [("registered", "a")], id="other port"),
        pytest.param(A, None, [("deregistered", "a", "because")], id="gone"),
        pytest.param(
            A, replace(A, status=HealthStatus.DEGRADED), [("health", "a", "Healthy", "Degraded")], id="degraded"
        ),
        pytest.param(
            None,
            replace(A, status=HealthStatus.UNHEALTHY),
            [("registered", "a"), ("health", "a", "Healthy", "Unhealthy")],
            id="new and unhealthy",
        ),
        pytest.param(
            A,
            replace(A, service=ServiceName("carts")),
            [("deregistered", "a", "The id was registered again for service carts"), ("registered", "a")],
            id="other service",
        ),
    ],
)
def test_what_is_told(before: Announced | None, after: Announced | None, told: list[tuple[str, ...]]) -> None:
    assert [short(event) for event in events_between(before, after, stamp(), "because")] == told


def test_output_travels_with_the_status() -> None:
    (event,) = events_between(A, replace(A, status=HealthStatus.UNHEALTHY), stamp(), output="TTL expired")
    assert isinstance(event, InstanceHealthChanged)
    assert event.output == "TTL expired"


def test_bookkeeping_in_the_registry_is_no_difference() -> None:
    metadata = {"zone": "x", "toska-registered-at": "2026-01-02T00:00:00Z", "toska-ttl-seconds": "35"}
    instance = Instance(A.service, A.id, Endpoint(A.address, A.port), A.status, metadata)
    assert announced_of(instance) == A
    assert difference_of(A.id, A, instance) is None
    assert difference_of(A.id, None, None) is None
    gone = difference_of(A.id, A, None)
    assert gone is not None
    assert gone.after is None


def test_the_registry_itself_removes_only_what_was_unhealthy() -> None:
    assert departure_reason(replace(A, status=HealthStatus.UNHEALTHY)) == EXPIRED
    assert departure_reason(A) == REMOVED


@pytest.mark.parametrize(
    ("before", "after", "change", "reason"),
    [
        pytest.param(A, None, "deregistered", REMOVED, id="gone while healthy"),
        pytest.param(SICK, None, "deregistered", EXPIRED, id="gone while unhealthy"),
        pytest.param(None, A, "registered", "announced late", id="new"),
        pytest.param(A, SICK, "Healthy to Unhealthy", "TTL expired", id="sick"),
        pytest.param(SICK, A, "Unhealthy to Healthy", "TTL expired", id="well"),
        pytest.param(A, replace(A, port=1), "content", "announced late", id="moved"),
        pytest.param(A, replace(A, service=ServiceName("b")), "registered for b", "before for", id="another service"),
    ],
)
def test_each_kind_of_change_is_summed_up_with_its_own_reason(
    before: Announced | None, after: Announced | None, change: str, reason: str
) -> None:
    words = summary_of(before, after, "TTL expired")
    assert words[0] == change
    assert reason in words[1]

"""A daemon's health: what its checks make of live, ready and the whole."""

from itertools import count

import pytest

from toska_mesh.admin import Health, HealthState


def test_a_daemon_without_checks_is_live_and_ready() -> None:
    health = Health()
    assert health.live().status == 200
    assert health.ready().status == 200
    assert health.ready().body["status"] == "Healthy"


def test_what_is_awaited_keeps_it_from_being_ready_until_it_is_set() -> None:
    health = Health(awaited=["routes"])
    report = health.ready()
    assert report.status == 503
    assert report.body["status"] == "Unhealthy"
    assert report.body["checks"][0]["description"] == "not known yet"  # type: ignore[index]
    health.set("routes", HealthState.HEALTHY)
    assert health.ready().status == 200


@pytest.mark.parametrize(
    ("states", "status", "word"),
    [
        pytest.param([HealthState.HEALTHY], 200, "Healthy", id="healthy"),
        pytest.param([HealthState.HEALTHY, HealthState.DEGRADED], 200, "Degraded", id="degraded is served"),
        pytest.param([HealthState.DEGRADED, HealthState.UNHEALTHY], 503, "Unhealthy", id="the worst decides"),
    ],
)
def test_the_worst_check_decides(states: list[HealthState], status: int, word: str) -> None:
    health = Health()
    for number, state in enumerate(states):
        health.set(f"check {number}", state)
    assert (health.ready().status, health.ready().body["status"]) == (status, word)
    assert (health.overall().status, health.overall().body["status"]) == (status, word)
    assert health.is_ready is (status == 200)


def test_a_check_carries_its_reason_and_data() -> None:
    health = Health(clock=lambda: 7.0)
    health.set("registry", HealthState.DEGRADED, "stale since 12:00", {"seconds": 5})
    assert health.ready().body["checks"] == [
        {
            "name": "registry",
            "status": "Degraded",
            "duration": 0.0,
            "description": "stale since 12:00",
            "exception": None,
            "data": {"seconds": 5},
        }
    ]


def test_durations_are_what_a_report_and_its_checks_took_in_milliseconds() -> None:
    ticks = count(100.0, 0.0025)
    health = Health(clock=lambda: next(ticks))
    assert health.live().body["duration"] == 2.5
    health.set("registry", HealthState.HEALTHY)
    for report in (health.ready(), health.overall()):
        assert report.body["duration"] == 7.5
        assert report.body["checks"][0]["duration"] == 2.5  # type: ignore[index]


def test_setting_a_check_again_replaces_it() -> None:
    health = Health()
    health.set("registry", HealthState.UNHEALTHY, "down")
    health.set("registry", HealthState.HEALTHY)
    assert health.is_ready
    assert len(health.ready().body["checks"]) == 1  # type: ignore[arg-type]


def test_draining_is_live_and_not_ready_and_says_so() -> None:
    health = Health()
    health.start_draining()
    assert health.is_draining
    assert health.live().status == 200
    assert health.ready().status == 503
    assert health.ready().body["checks"][0]["name"] == "drain"  # type: ignore[index]


def test_no_check_ends_a_drain() -> None:
    health = Health()
    health.start_draining()
    health.set("registry", HealthState.HEALTHY)
    assert not health.is_ready

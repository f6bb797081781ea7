"""Transitions remembered, and transitions to be announced."""

from dataclasses import replace

import pytest
from tests.unit.healthmonitor.builders import START

from toska_mesh.healthmonitor.history import Announcements, History, Transition, remember
from toska_mesh.model import HealthStatus, InstanceId, ServiceName

DOWN = Transition(
    ServiceName("orders"), InstanceId("orders-1"), HealthStatus.HEALTHY, HealthStatus.UNHEALTHY, START, "http", "x"
)


def numbered(number: int) -> Transition:
    return replace(DOWN, message=str(number))


def test_the_history_keeps_the_newest():
    history: History = ()
    for number in range(10):
        history = remember(history, numbered(number), 3)
    assert [transition.message for transition in history] == ["7", "8", "9"]


@pytest.mark.parametrize(
    ("previous", "current", "is_first", "expected"),
    [
        pytest.param(HealthStatus.UNKNOWN, HealthStatus.HEALTHY, True, False, id="what everyone assumed"),
        pytest.param(HealthStatus.UNKNOWN, HealthStatus.UNHEALTHY, True, True, id="down from the start"),
        pytest.param(HealthStatus.UNKNOWN, HealthStatus.HEALTHY, False, True, id="judged anew"),
        pytest.param(HealthStatus.HEALTHY, HealthStatus.UNHEALTHY, False, True, id="fell"),
        pytest.param(HealthStatus.UNHEALTHY, HealthStatus.HEALTHY, False, True, id="rose"),
        pytest.param(HealthStatus.UNHEALTHY, HealthStatus.UNKNOWN, False, True, id="no longer probed"),
    ],
)
def test_everything_but_the_first_healthy_is_news(previous, current, is_first, expected):
    assert replace(DOWN, previous=previous, current=current, is_first=is_first).is_news is expected


def test_announcements_come_in_order_and_stay_until_confirmed():
    announcements = Announcements()
    for number in range(3):
        announcements.add(numbered(number))
    assert announcements.next() == numbered(0)
    assert announcements.next() == numbered(0)
    seen = []
    while (transition := announcements.next()) is not None:
        seen.append(transition.message)
        announcements.confirm(transition)
    assert seen == ["0", "1", "2"]


def test_a_follower_forgets_what_the_leader_had_time_to_announce():
    announcements = Announcements(hand_over_seconds=60)
    announcements.add(numbered(0))
    announcements.follow(100.0, is_leader_known=True)
    announcements.follow(150.0, is_leader_known=True)
    announcements.add(numbered(1))
    assert len(announcements) == 2
    announcements.follow(161.0, is_leader_known=True)
    assert announcements.next() == numbered(1)


def test_while_nobody_can_say_who_leads_nothing_is_forgotten():
    announcements = Announcements(hand_over_seconds=60)
    announcements.add(numbered(0))
    for second in range(0, 3600, 10):
        announcements.follow(float(second), is_leader_known=False)
    announcements.lead()
    assert announcements.next() == numbered(0)


def test_the_bound_pushes_out_the_oldest_and_counts_it():
    announcements = Announcements(limit=2)
    first = numbered(0)
    for transition in (first, numbered(1), numbered(2)):
        announcements.add(transition)
    assert (len(announcements), announcements.dropped) == (2, 1)
    announcements.confirm(first)  # was being published while it was pushed out
    assert announcements.next() == numbered(1)

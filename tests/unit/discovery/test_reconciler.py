"""What nobody asked for is announced once, by the leader; what was cut short is announced by whom it was asked of."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.unit.discovery.fakes import UNAVAILABLE, World
from tests.unit.discovery.test_registrar import A, asked

from toska_mesh.discovery.judgement import HOLD_SECONDS, SETTLE_SECONDS, Action, Circumstances, judge
from toska_mesh.discovery.reconciler import RECORD_SECONDS
from toska_mesh.discovery.transitions import Announced, Difference
from toska_mesh.model import CatalogSnapshot, Endpoint, HealthStatus, Instance, InstanceId, ServiceName

HEALTHY = Announced(ServiceName("orders"), A, "10.0.0.1", 80, {}, HealthStatus.HEALTHY)
SICK = Announced(ServiceName("orders"), A, "10.0.0.1", 80, {}, HealthStatus.UNHEALTHY)
MOVED = Announced(ServiceName("orders"), A, "10.0.0.2", 80, {}, HealthStatus.HEALTHY)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        yield world


@pytest.mark.parametrize(
    ("before", "after", "now", "action"),
    [
        pytest.param(None, HEALTHY, Circumstances(0, True), Action.ADOPT, id="appeared: told by who registered it"),
        pytest.param(None, HEALTHY, Circumstances(0, False, True), Action.ANNOUNCE, id="appeared: ours, cut short"),
        pytest.param(HEALTHY, MOVED, Circumstances(9, True), Action.ADOPT, id="moved by another replica"),
        pytest.param(HEALTHY, SICK, Circumstances(0, True), Action.WAIT, id="sick: still settling"),
        pytest.param(HEALTHY, SICK, Circumstances(SETTLE_SECONDS, True), Action.ANNOUNCE, id="sick: leader"),
        pytest.param(HEALTHY, SICK, Circumstances(9, False), Action.WAIT, id="sick: not the leader"),
        pytest.param(HEALTHY, SICK, Circumstances(HOLD_SECONDS, False), Action.ADOPT, id="sick: told long ago"),
        pytest.param(SICK, None, Circumstances(9, True), Action.ANNOUNCE, id="reaped: leader"),
        pytest.param(SICK, None, Circumstances(9, True, False, 30), Action.ANNOUNCE, id="reaped: beats do not matter"),
        pytest.param(HEALTHY, None, Circumstances(9, True, False, 30), Action.WAIT, id="lost while it beats"),
        pytest.param(HEALTHY, None, Circumstances(9, True), Action.ANNOUNCE, id="lost and silent"),
        pytest.param(HEALTHY, None, Circumstances(9, False), Action.WAIT, id="lost: not the leader"),
        pytest.param(HEALTHY, None, Circumstances(0, False, True), Action.ANNOUNCE, id="left: ours, cut short"),
    ],
)
def test_judgement(before: Announced | None, after: Announced | None, now: Circumstances, action: Action) -> None:
    assert judge(Difference(A, before, after), now) is action


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    fields = [vars(line)["fields"] for line in caplog.records if vars(line)["event"] == "difference_announced"]
    return [(said["change"], said["reason"]) for said in fields]


async def test_the_log_says_what_happened_and_why(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await world.registrar.register(world.call(), asked())
    world.registry.change(A, status=HealthStatus.UNHEALTHY, output="TTL expired")
    await world.observe()
    await world.observe()
    world.registry.change(A, status=HealthStatus.HEALTHY, output="back")
    await world.observe()
    world.registry.change(A, status=HealthStatus.UNHEALTHY, output="TTL expired")
    await world.observe()
    world.registry.registered.clear()
    await world.observe()
    assert logged(caplog) == [
        ("Healthy to Unhealthy", "TTL expired"),
        ("Unhealthy to Healthy", "back"),
        ("Healthy to Unhealthy", "TTL expired"),
        ("deregistered", "Expired: removed by the registry"),
    ]


async def test_expiry_and_reaping_are_told_by_the_leader(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    await world.observe()
    world.registry.change(A, status=HealthStatus.UNHEALTHY, output="TTL expired")
    await world.observe()
    assert world.sink.told()[1:] == [("health", "a", "Healthy", "Unhealthy")]
    assert world.sink.events[1].output == "TTL expired"  # type: ignore[union-attr]
    world.registry.registered.clear()
    await world.observe()
    assert world.sink.told()[2:] == [("deregistered", "a", "Expired: removed by the registry")]
    await world.observe()
    assert len(world.sink.events) == 3


async def test_a_reaped_instance_that_beats_again_is_back_and_told(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    world.registry.change(A, status=HealthStatus.UNHEALTHY)
    await world.observe()
    world.registry.registered.clear()
    await world.observe()
    assert await world.registrar.report_health(world.call(), A, 1, "")
    await world.observe()
    assert [event[0] for event in world.sink.told()] == ["registered", "health", "deregistered", "registered"]


async def test_recovery_seen_by_the_registry_is_told(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    world.registry.change(A, status=HealthStatus.UNHEALTHY, output="TTL expired")
    await world.observe()
    await world.registrar.report_health(world.call(), A, 1, "heartbeat")
    await world.observe()
    assert world.sink.told()[1:] == [("health", "a", "Healthy", "Unhealthy"), ("health", "a", "Unhealthy", "Healthy")]


async def test_a_second_check_that_stays_critical_does_not_make_events_flap(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    world.registry.change(A, status=HealthStatus.UNHEALTHY, output="node is down")
    await world.observe()
    for _ in range(5):
        await world.registrar.report_health(world.call(), A, 1, "heartbeat")
        world.registry.change(A, status=HealthStatus.UNHEALTHY, output="node is down")
        await world.observe()
    assert world.sink.told()[1:] == [("health", "a", "Healthy", "Unhealthy")]


async def test_a_wiped_registry_is_no_event_when_everything_beats(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    await world.registrar.report_health(world.call(), A, 1, "heartbeat")
    world.registry.registered.clear()
    await world.observe()
    assert await world.registrar.report_health(world.call(), A, 1, "heartbeat")
    await world.observe()
    assert world.sink.told() == [("registered", "a")]


async def test_what_was_lost_and_does_not_beat_is_told_after_its_time_to_live(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    await world.registrar.report_health(world.call(), A, 1, "heartbeat")
    world.registry.registered.clear()
    await world.observe()
    assert len(world.sink.events) == 1
    await world.pass_time(35)
    await world.observe()
    assert world.sink.told()[1:] == [("deregistered", "a", "Removed from the registry by somebody else")]


async def test_a_snapshot_from_before_a_registration_is_not_believed(world: World) -> None:
    before = world.registry.snapshot()
    await world.registrar.register(world.call(), asked())
    world.catalog.set(before)
    for _ in range(5):
        await world.reconciler.round()
        await world.pass_time(1)
    assert world.sink.told() == [("registered", "a")]


async def test_a_stale_catalog_says_nothing(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    world.catalog.set(CatalogSnapshot({}, 2, stale_since=1.0, stale_reason="away"))
    for _ in range(5):
        await world.reconciler.round()
        await world.pass_time(60)
    assert world.sink.told() == [("registered", "a")]


async def test_nothing_is_told_on_a_snapshots_word_alone(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    world.registry.registered.clear()
    world.catalog.set(world.registry.snapshot())
    world.registry.trouble = UNAVAILABLE
    for _ in range(5):
        await world.reconciler.round()
        await world.pass_time(1)
    assert len(world.sink.events) == 1
    world.registry.trouble = None
    await world.observe()
    assert len(world.sink.events) == 2


async def test_others_registrations_are_adopted_with_all_that_is_needed_to_restore_them(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one, two = await pair(tmp_path, stack)
        await one.registrar.register(one.call(), asked(metadata={"zone": "x"}))
        await two.observe()
        assert two.sink.told() == []
        one.registry.registered.clear()
        assert await two.registrar.report_health(two.call(), A, 1, "")
        assert one.registry.registered[A].metadata["zone"] == "x"
        assert one.registry.ttl[A] == 35


async def pair(folder: Path, stack: AsyncExitStack) -> tuple[World, World]:
    """A leader and another replica over one registry."""
    leader = await stack.enter_async_context(World(folder / "leader"))
    other = await stack.enter_async_context(
        World(folder / "other", registry=leader.registry, keys=leader.keys, is_leader=False)
    )
    return leader, other


async def test_what_another_replica_served_is_told_by_it_alone(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        leader, other = await pair(tmp_path, stack)
        await other.registrar.register(other.call(), asked())
        await leader.observe()
        await other.registrar.report_health(other.call(), A, 3, "slow")
        await leader.observe()
        await other.registrar.deregister(other.call(), A)
        await leader.observe()
        assert [event[0] for event in other.sink.told()] == ["registered", "health", "deregistered"]
        assert leader.sink.told() == []


async def test_a_note_explains_its_own_change_and_no_later_one(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        leader, other = await pair(tmp_path, stack)
        await other.registrar.register(other.call(), asked())
        await leader.observe()
        await other.registrar.report_health(other.call(), A, 3, "slow")
        await leader.observe()
        leader.registry.change(A, status=HealthStatus.UNHEALTHY, output="TTL expired")
        await leader.observe()
        assert leader.sink.told() == [("health", "a", "Degraded", "Unhealthy")]


async def test_old_notes_explain_nothing_and_are_swept(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        leader, other = await pair(tmp_path, stack)
        await other.registrar.register(other.call(), asked())
        await other.registrar.report_health(other.call(), A, 3, "slow")
        assert len(leader.keys.values) == 1
        await leader.pass_time(61)
        await leader.observe()
        leader.registry.change(A, status=HealthStatus.HEALTHY)
        await leader.observe()
        leader.registry.change(A, status=HealthStatus.DEGRADED)
        await leader.observe()
        assert len(leader.sink.events) == 2
        await leader.pass_time(61)
        await leader.reconciler.tidy()
        assert leader.keys.values == {}


async def test_a_follower_of_the_leader_keeps_quiet_and_can_take_over(world: World) -> None:
    world.is_leader = False
    await world.registrar.register(world.call(), asked())
    world.registry.change(A, status=HealthStatus.UNHEALTHY)
    await world.observe()
    assert len(world.sink.events) == 1
    world.is_leader = True
    await world.observe()
    assert world.sink.told()[1:] == [("health", "a", "Healthy", "Unhealthy")]


async def test_what_the_leader_told_long_ago_is_adopted(world: World) -> None:
    world.is_leader = False
    await world.registrar.register(world.call(), asked())
    world.registry.change(A, status=HealthStatus.UNHEALTHY)
    await world.observe()
    await world.pass_time(HOLD_SECONDS)
    await world.observe()
    world.is_leader = True
    await world.observe()
    assert len(world.sink.events) == 1


async def test_a_registration_cut_short_after_the_registry_took_it_is_told(world: World) -> None:
    world.is_leader = False  # ours to tell, whoever leads
    world.registry.takes_seconds = 0.1
    async with asyncio.TaskGroup() as tasks:
        registering = tasks.create_task(world.registrar.register(world.call(correlation_id="c-1"), asked()))
        await asyncio.sleep(0.05)
        registering.cancel()
    world.registry.takes_seconds = 0
    await world.registrar._registry.register(registration_of_a())
    await world.observe()
    assert world.sink.told() == [("registered", "a")]
    assert world.sink.events[0].correlation_id == "c-1"  # type: ignore[union-attr]


async def test_a_registration_cut_short_before_the_registry_took_it_is_not_told(world: World) -> None:
    world.registry.takes_seconds = 0.1
    async with asyncio.TaskGroup() as tasks:
        registering = tasks.create_task(world.registrar.register(world.call(), asked()))
        await asyncio.sleep(0.05)
        registering.cancel()
    await world.observe()
    assert world.sink.told() == []
    assert world.announcer.owed == {}


async def test_a_deregistration_cut_short_by_a_crash_is_told_after_the_restart(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        await world.registrar.register(world.call(), asked())
        world.sink.is_full = True  # the crash comes between the registry and the outbox
        await world.registrar.deregister(world.call(correlation_id="c-2"), A)
        assert set(world.announcer.owed) == {"a"}
    async with World(tmp_path, is_leader=False) as again:
        await again.observe()
        assert again.sink.told() == [("deregistered", "a", "Manual deregistration")]
        assert again.sink.events[0].correlation_id == "c-2"  # type: ignore[union-attr]
    async with World(tmp_path) as third:
        await third.observe()
        assert third.sink.told() == []


async def test_what_happened_while_nobody_ran_is_told_at_the_next_start(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        await world.registrar.register(world.call(), asked())
        await world.registrar.register(world.call(), asked(id=InstanceId("b")))
    async with World(tmp_path) as again:
        await again.registrar._registry.register(registration_of_a())
        again.registry.change(A, status=HealthStatus.UNHEALTHY)
        await again.observe()
        assert sorted(again.sink.told()) == [
            ("deregistered", "b", "Removed from the registry by somebody else"),
            ("health", "a", "Healthy", "Unhealthy"),
        ]


async def test_services_that_are_no_members_of_the_mesh_are_none_of_our_business(world: World) -> None:
    postgres = Instance(ServiceName("postgres"), InstanceId("pg"), Endpoint("10.0.0.9", 5432), HealthStatus.HEALTHY)
    world.registry.registered[postgres.id] = postgres
    await world.observe()
    world.registry.registered.clear()
    await world.observe()
    assert world.sink.told() == []
    assert world.announcer.announced == {}


async def test_records_of_what_is_long_gone_are_forgotten(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    world.registry.change(A, status=HealthStatus.UNHEALTHY)
    await world.observe()
    world.registry.registered.clear()
    await world.observe()
    await world.reconciler.tidy()
    await world.pass_time(RECORD_SECONDS + 1)
    await world.reconciler.tidy()
    assert world.registrar.records == {}
    assert not await world.registrar.report_health(world.call(), A, 1, "")


def registration_of_a():  # type: ignore[no-untyped-def]
    from toska_mesh.registry.api import Registration

    metadata = {"toska-registered-at": "2026-01-02T03:04:05Z", "toska-ttl-seconds": "35"}
    return Registration(ServiceName("orders"), A, "10.0.0.1", 80, metadata)

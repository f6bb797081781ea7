"""Registering, beating, deregistering: what the registry holds, what callers hear, what the world is told."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.discovery.fakes import START, UNAVAILABLE, World

from toska_mesh.discovery.auth import Identity, NotOwnerError
from toska_mesh.discovery.known import parse_time
from toska_mesh.discovery.validation import InvalidArgumentError, RegisterInstance
from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName

A = InstanceId("a")
ORDERS = ServiceName("orders")


def asked(**fields: Any) -> RegisterInstance:
    return RegisterInstance(**{"service": ORDERS, "id": A, "address": "10.0.0.1", "port": 80, **fields})


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as world:
        yield world


async def test_registering_writes_the_registry_and_tells_the_world(world: World) -> None:
    assert await world.registrar.register(world.call(correlation_id="c-1"), asked(metadata={"zone": "x"})) == A
    instance = world.registry.registered[A]
    assert (instance.endpoint.authority, instance.status) == ("10.0.0.1:80", HealthStatus.HEALTHY)
    assert instance.metadata["zone"] == "x"
    assert world.registry.ttl[A] == 35
    assert world.sink.told() == [("registered", "a")]
    assert world.sink.events[0].correlation_id == "c-1"  # type: ignore[union-attr]
    assert world.sink.events[0].metadata == {"zone": "x"}  # type: ignore[union-attr]


async def test_the_same_registration_again_is_no_event_and_keeps_its_time(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    await world.pass_time(3600)
    await world.registrar.register(world.call(), asked())
    assert world.sink.told() == [("registered", "a")]
    assert world.registry.registered[A].registered_at == START
    await world.registrar.register(world.call(), asked(port=81))
    assert world.sink.told() == [("registered", "a")] * 2
    assert world.registry.registered[A].registered_at == START


def warnings(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [vars(line)["fields"] for line in caplog.records if line.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("other", "service", "address"),
    [
        pytest.param({"port": 81}, "orders", "10.0.0.1:81", id="port"),
        pytest.param({"address": "10.0.0.2"}, "orders", "10.0.0.2:80", id="address"),
        pytest.param({"service": ServiceName("billing")}, "billing", "10.0.0.1:80", id="service"),
    ],
)
@pytest.mark.parametrize("has_beaten", [False, True])
async def test_an_id_that_lives_elsewhere_is_warned_of_with_both(
    world: World, caplog: pytest.LogCaptureFixture, other: dict[str, Any], service: str, address: str, has_beaten: bool
) -> None:
    await world.registrar.register(world.call(), asked())
    if has_beaten:
        await world.pass_time(60)
        await world.registrar.report_health(world.call(), A, 1, "")
    await world.pass_time(3)
    await world.registrar.register(world.call(), asked(**other))
    (told,) = warnings(caplog)
    assert (told["instance"], told["service"], told["address"]) == ("a", service, address)
    assert (told["former_service"], told["former_address"]) == ("orders", "10.0.0.1:80")
    assert told["heard_seconds_ago"] == 3.0


async def test_who_comes_back_to_his_place_or_after_a_silence_or_a_leave_is_no_twin(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.registrar.register(world.call(), asked())
    await world.registrar.register(world.call(), asked(metadata={"zone": "b"}))
    await world.pass_time(36)  # the time to live is over
    await world.registrar.register(world.call(), asked(port=81))
    await world.registrar.deregister(world.call(), A)
    await world.registrar.register(world.call(), asked(port=82))
    assert warnings(caplog) == []


async def test_an_id_is_made_of_name_and_uuid(world: World) -> None:
    made = await world.registrar.register(world.call(), asked(id=InstanceId("")))
    assert made.startswith("orders-")
    assert len(made) == len("orders-") + 32


async def test_the_callers_address_stands_in(world: World) -> None:
    call = world.call(ip=ipaddress.ip_address("10.9.9.9"))
    await world.registrar.register(call, asked(address="0.0.0.0"))
    assert world.registry.registered[A].endpoint.host == "10.9.9.9"


async def test_what_is_invalid_never_reaches_the_registry(world: World) -> None:
    with pytest.raises(InvalidArgumentError):
        await world.registrar.register(world.call(), asked(port=0))
    assert world.registry.calls == []
    assert world.sink.told() == []


async def test_a_hiccup_is_outlasted_within_the_deadline(world: World) -> None:
    world.registry.trouble = UNAVAILABLE

    async def heal() -> None:
        await asyncio.sleep(2)
        world.registry.trouble = None

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(heal())
        await world.registrar.register(world.call(5), asked())
    assert world.sink.told() == [("registered", "a")]


async def test_the_deadline_is_kept(world: World) -> None:
    world.registry.trouble = UNAVAILABLE
    started = asyncio.get_running_loop().time()
    with pytest.raises(RegistryUnavailableError):
        await world.registrar.register(world.call(3), asked())
    assert asyncio.get_running_loop().time() - started <= 3
    assert world.sink.told() == []


async def test_a_registration_that_met_an_outage_is_made_up_for_by_the_first_beat(world: World) -> None:
    world.registry.trouble = UNAVAILABLE
    with pytest.raises(RegistryUnavailableError):
        await world.registrar.register(world.call(1), asked())
    world.registry.trouble = None
    assert await world.registrar.report_health(world.call(), A, 1, "heartbeat")
    assert A in world.registry.registered
    assert world.sink.told() == [("registered", "a")]


async def failed_registration(world: World, **fields: Any) -> None:
    world.registry.trouble = UNAVAILABLE
    with pytest.raises(RegistryUnavailableError):
        await world.registrar.register(world.call(1), asked(**fields))
    world.registry.trouble = None


async def test_who_was_told_that_it_failed_and_never_beats_is_not_registered_by_anything_else(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        await failed_registration(world)
        for _ in range(5):
            await world.observe()
            await world.pass_time(60)
        assert not await world.registrar.replace_metadata(world.call(), A, {"zone": "x"})
        assert await world.registrar.find(world.call(), A) is None
    async with World(tmp_path) as again:
        await again.observe()
        assert again.registry.registered == {}
        assert again.sink.told() == []
        assert again.announcer.owed == {}


async def test_a_later_registration_counts_from_when_it_succeeded(world: World) -> None:
    await failed_registration(world)
    await world.pass_time(600)
    await world.registrar.register(world.call(), asked())
    success = world.registry.registered[A].registered_at
    assert success is not None
    assert success >= START + timedelta(seconds=600)
    assert world.registrar.records[A].registered_at == success
    assert world.sink.told() == [("registered", "a")]
    await failed_registration(world)  # an outage later does not take the time away
    await world.registrar.register(world.call(), asked())
    assert world.registry.registered[A].registered_at == success


async def test_a_beat_that_completes_a_registration_counts_from_then(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        await failed_registration(world)
        await world.pass_time(600)
        assert await world.registrar.report_health(world.call(), A, 1, "heartbeat")
        success = world.registry.registered[A].registered_at
        assert success is not None
        assert success >= START + timedelta(seconds=600)
    async with World(tmp_path) as again:
        assert again.registrar.records[A].registered_at == success


async def test_a_failed_registration_under_an_id_that_nobody_was_told_leaves_nothing(world: World) -> None:
    await failed_registration(world, id=InstanceId(""))
    await world.observe()
    assert world.registrar.records == {}
    assert world.announcer.owed == {}
    assert world.sink.told() == []


async def test_what_the_registry_refuses_is_forgotten(world: World) -> None:
    world.registry.trouble = RegistryError("Invalid service address")
    with pytest.raises(RegistryError, match="Invalid service address"):
        await world.registrar.register(world.call(), asked())
    world.registry.trouble = None
    assert not await world.registrar.report_health(world.call(), A, 1, "")
    assert world.announcer.owed == {}


async def test_a_refused_change_leaves_the_old_registration(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    world.registry.trouble = RegistryError("no")
    with pytest.raises(RegistryError):
        await world.registrar.register(world.call(), asked(port=81))
    assert world.registrar.records[A].port == 80


async def test_a_beat_is_one_call_and_no_event(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    world.registry.calls.clear()
    await world.pass_time(10)
    assert await world.registrar.report_health(world.call(), A, 1, "heartbeat")
    assert world.registry.calls == ["report_health"]
    assert world.sink.told() == [("registered", "a")]
    assert world.registrar.last_beat(A) == START + timedelta(seconds=10)


async def test_a_changed_status_is_told_once(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    for _ in range(2):
        await world.registrar.report_health(world.call(), A, 3, "slow")
    await world.registrar.report_health(world.call(), A, 1, "fine")
    assert world.sink.told()[1:] == [("health", "a", "Healthy", "Degraded"), ("health", "a", "Degraded", "Healthy")]


@pytest.mark.parametrize("status", [0, 9])
async def test_a_beat_that_says_nothing_is_refused(world: World, status: int) -> None:
    await world.registrar.register(world.call(), asked())
    world.registry.calls.clear()
    with pytest.raises(InvalidArgumentError):
        await world.registrar.report_health(world.call(), A, status, "")
    assert world.registry.calls == []


async def test_a_stranger_is_refused(world: World) -> None:
    assert not await world.registrar.report_health(world.call(), A, 1, "")


async def test_what_the_registry_lost_is_back_with_a_beat_and_its_status(world: World) -> None:
    await world.registrar.register(world.call(), asked(metadata={"zone": "x"}))
    world.registry.registered.clear()
    assert await world.registrar.report_health(world.call(), A, 3, "slow")
    instance = world.registry.registered[A]
    assert (instance.status, instance.metadata["zone"], instance.registered_at) == (HealthStatus.DEGRADED, "x", START)
    assert world.sink.told() == [("registered", "a"), ("health", "a", "Healthy", "Degraded")]


async def test_what_was_deregistered_on_purpose_does_not_come_back(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    assert await world.registrar.deregister(world.call(), A)
    assert not await world.registrar.report_health(world.call(), A, 1, "")
    assert not await world.registrar.deregister(world.call(), A)
    assert world.sink.told() == [("registered", "a"), ("deregistered", "a", "Manual deregistration")]


async def test_deregistering_what_the_registry_has_lost_is_done_and_told(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    world.registry.registered.clear()
    assert await world.registrar.deregister(world.call(), A)
    assert not await world.registrar.report_health(world.call(), A, 1, "")
    assert world.sink.told()[1:] == [("deregistered", "a", "Manual deregistration")]


async def test_a_beat_that_waits_behind_a_deregistration_restores_nothing(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    world.registry.takes_seconds = 0.1
    async with asyncio.TaskGroup() as tasks:
        leaving = tasks.create_task(world.registrar.deregister(world.call(), A))
        await asyncio.sleep(0.05)
        late = tasks.create_task(world.registrar.report_health(world.call(), A, 1, ""))
        later = tasks.create_task(world.registrar.report_health(world.call(), A, 3, ""))
    assert leaving.result()
    assert not late.result() or A not in world.registry.registered
    assert not later.result()
    assert A not in world.registry.registered
    assert world.sink.told()[-1] == ("deregistered", "a", "Manual deregistration")


async def test_changes_of_one_instance_are_told_in_the_order_the_registry_saw_them(world: World) -> None:
    world.registry.takes_seconds = 0.1
    async with asyncio.TaskGroup() as tasks:
        for work in (
            world.registrar.register(world.call(), asked()),
            world.registrar.deregister(world.call(), A),
            world.registrar.register(world.call(), asked(port=81)),
        ):
            tasks.create_task(work)
    assert [event[0] for event in world.sink.told()] == ["registered", "deregistered", "registered"]
    assert world.registry.registered[A].endpoint.port == 81


async def test_memory_survives(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        await world.registrar.register(world.call(), asked(metadata={"zone": "x"}))
        await world.registrar.register(world.call(), asked(id=InstanceId("b")))
        await world.registrar.deregister(world.call(), InstanceId("b"))
    async with World(tmp_path) as again:
        assert set(again.registrar.records) == {"a"}
        assert set(again.announcer.announced) == {"a"}
        assert again.announcer.owed == {}
        assert again.registrar.records[A].registered_at == START
        assert await again.registrar.report_health(again.call(), A, 1, "")
        assert again.sink.told() == []


async def test_a_full_outbox_fails_no_call_and_loses_no_event(world: World) -> None:
    world.sink.is_full = True
    assert await world.registrar.register(world.call(), asked()) == A
    assert world.sink.told() == []
    world.sink.is_full = False
    await world.observe()
    assert world.sink.told() == [("registered", "a")]


async def test_lookups_fall_back_to_the_last_known_state_and_say_so(world: World) -> None:
    await world.registrar.register(world.call(), asked())
    world.catalog.set(world.registry.snapshot())
    world.registry.trouble = UNAVAILABLE
    found = await world.registrar.instances(world.call(), ORDERS)
    assert ([instance.id for instance in found.instances], found.stale_reason) == (["a"], "nobody answers")
    names = await world.registrar.service_names(world.call())
    assert (names.names, names.stale_reason) == (("orders",), "nobody answers")


async def test_an_outage_is_never_an_empty_answer(world: World) -> None:
    world.registry.trouble = UNAVAILABLE
    with pytest.raises(RegistryUnavailableError):
        await world.registrar.instances(world.call(), ORDERS)
    with pytest.raises(RegistryUnavailableError):
        await world.registrar.service_names(world.call())
    world.catalog.set(world.registry.snapshot())
    with pytest.raises(RegistryUnavailableError):
        await world.registrar.instances(world.call(), ORDERS)


async def test_an_instance_belongs_to_who_registered_it(tmp_path: Path) -> None:
    async with World(tmp_path, auth="required") as world:
        owner, other = world.call(identity=Identity("orders")), world.call(identity=Identity("carts"))
        admin = world.call(identity=Identity("ops", is_admin=True))
        await world.registrar.register(owner, asked())
        for attempt in (
            world.registrar.register(other, asked(port=81)),
            world.registrar.report_health(other, A, 2, ""),
            world.registrar.deregister(other, A),
            world.registrar.replace_metadata(other, A, {}),
        ):
            with pytest.raises(NotOwnerError, match="another identity"):
                await attempt
        with pytest.raises(NotOwnerError, match="this call has none"):
            await world.registrar.deregister(world.call(), A)
        assert world.registry.registered[A].metadata["toska-owner"] == "orders"
        await world.registrar.register(admin, asked(port=82))
        assert world.registrar.records[A].owner == "orders"
        assert await world.registrar.report_health(owner, A, 1, "")
        assert await world.registrar.deregister(admin, A)


async def test_replacing_metadata_keeps_health_and_time(world: World) -> None:
    await world.registrar.register(world.call(), asked(metadata={"zone": "x"}))
    await world.registrar.report_health(world.call(), A, 3, "slow")
    await world.pass_time(60)
    assert await world.registrar.replace_metadata(world.call(), A, {"zone": "y"})
    instance = world.registry.registered[A]
    assert (instance.metadata["zone"], instance.status) == ("y", HealthStatus.DEGRADED)
    assert parse_time(instance.metadata["toska-registered-at"]) == START
    assert world.sink.told()[-1] == ("registered", "a")
    assert not await world.registrar.replace_metadata(world.call(), InstanceId("nobody"), {})

"""What every way into the mesh does for one instance."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import orjson
import pytest
from tests.contract.enrolment.conftest import Ground, OverGo, OverRegistry, Seen, enter_enrolment, in_seconds
from tests.support.wait import eventually

from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import HealthStatus
from toska_mesh.model.metadata import own_metadata
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.sdk.enrolment import Enrolment, Member
from toska_mesh.sdk.options import ConnectOptions


async def seen_when(ground: Ground, member: Member, predicate: Callable[[Seen], bool]) -> Seen:
    """The instance as soon as it looks so: a real Consul tells its servers a moment after it has answered."""

    async def look() -> Seen | None:
        found = (await ground.seen(member.service)).get(member.id)
        return found if found and predicate(found) else None

    found = await eventually(look)
    assert found is not None
    return found


async def until_gone(ground: Ground, member: Member) -> None:
    async def is_gone() -> bool:
        return member.id not in await ground.seen(member.service)

    await eventually(is_gone)


async def test_a_registered_instance_is_found_as_it_said(enrolment: Enrolment, ground: Ground, member: Member) -> None:
    assert await enrolment.register(member, in_seconds(5)) == member.id
    found = await seen_when(ground, member, lambda one: True)
    assert (found.address, found.port) == ("10.1.2.3", 8080)
    assert found.status == "Healthy"
    assert own_metadata(found.metadata) == dict(member.metadata)


async def test_registering_again_replaces_what_was_said(enrolment: Enrolment, ground: Ground, member: Member) -> None:
    await enrolment.register(member, in_seconds(5))
    changed = replace(member, port=8081, metadata={**member.metadata, "zone": "b"})
    assert await enrolment.register(changed, in_seconds(5)) == member.id
    found = await seen_when(ground, member, lambda one: one.port == 8081)
    assert own_metadata(found.metadata)["zone"] == "b"


@pytest.mark.parametrize("address", ["0.0.0.0", ""])
async def test_an_address_that_means_me_becomes_one_that_others_reach(
    enrolment: Enrolment, ground: Ground, member: Member, address: str
) -> None:
    await enrolment.register(replace(member, address=address), in_seconds(5))
    found = await seen_when(ground, member, lambda one: True)
    assert found.address == "127.0.0.1"  # where we call from, or where the agent on this machine is


async def test_what_is_reported_is_shown(enrolment: Enrolment, ground: Ground, member: Member) -> None:
    await enrolment.register(member, in_seconds(5))
    for status, words in (
        (HealthStatus.DEGRADED, "draining: SIGTERM"),
        (HealthStatus.UNHEALTHY, "no database – 100 % “down” & out"),
        (HealthStatus.HEALTHY, "serving"),
    ):
        assert await enrolment.report(member.id, status, words, in_seconds(5)) is True
        found = await seen_when(ground, member, lambda one, label=status.label: one.status == label)  # type: ignore[misc]
        if status is not HealthStatus.HEALTHY:  # whose words nobody needs
            assert words in found.output


async def test_very_long_words_are_no_reason_to_refuse_a_beat(enrolment: Enrolment, member: Member) -> None:
    await enrolment.register(member, in_seconds(5))
    assert await enrolment.report(member.id, HealthStatus.DEGRADED, "ä" * 100_000, in_seconds(5)) is True


async def test_a_beat_for_an_id_that_was_never_registered_is_refused(enrolment: Enrolment, member: Member) -> None:
    assert await enrolment.report(member.id, HealthStatus.HEALTHY, "serving", in_seconds(5)) is False


async def test_a_beat_for_an_instance_that_was_lost_brings_it_back_or_is_refused(
    enrolment: Enrolment, ground: Ground, member: Member
) -> None:
    await enrolment.register(member, in_seconds(5))
    await seen_when(ground, member, lambda one: True)
    await ground.lose(member.id)
    if await enrolment.report(member.id, HealthStatus.HEALTHY, "serving", in_seconds(5)):
        await seen_when(ground, member, lambda one: one.status == "Healthy")
    else:
        await enrolment.register(member, in_seconds(5))
        await seen_when(ground, member, lambda one: one.status == "Healthy")


async def test_a_deregistered_instance_is_gone_and_no_beat_brings_it_back(
    enrolment: Enrolment, ground: Ground, member: Member
) -> None:
    await enrolment.register(member, in_seconds(5))
    await seen_when(ground, member, lambda one: True)
    assert await enrolment.deregister(member.id, in_seconds(5)) is True
    await until_gone(ground, member)
    assert await enrolment.report(member.id, HealthStatus.HEALTHY, "serving", in_seconds(5)) is False
    assert await enrolment.deregister(member.id, in_seconds(5)) is False
    assert member.id not in await ground.seen(member.service)


async def test_what_cannot_be_registered_is_refused_with_a_reason(enrolment: Enrolment, member: Member) -> None:
    impossible = replace(member, metadata={**member.metadata, "no.dots": "x"})
    with pytest.raises(RegistryError, match=r"(?i)key|meta") as refused:
        await enrolment.register(impossible, in_seconds(5))
    assert not isinstance(refused.value, RegistryUnavailableError)


async def test_without_gateways_nobody_is_waited_for(enrolment: Enrolment, ground: Ground, member: Member) -> None:
    await enrolment.register(member, in_seconds(5))
    applied = await enrolment.wait_applied(member.service, in_seconds(5))
    if isinstance(ground, OverGo):
        assert not applied.is_supported
        assert not applied.is_complete
        assert applied.reason
    else:
        assert applied.is_complete, applied.reason
        assert applied.is_supported
        assert applied.gateways == ()


async def test_a_gateway_that_stays_behind_is_named_before_the_deadline(
    enrolment: Enrolment, ground: Ground, member: Member
) -> None:
    if not isinstance(ground, OverRegistry):
        assert not (await enrolment.wait_applied(member.service, in_seconds(5))).is_supported
        return
    call = ground.client.call
    session = parse_json((await call("PUT", "/v1/session/create", body=b'{"TTL":"60s"}')).body, "session")["ID"]
    try:
        state = orjson.dumps({"gateway": "slow", "applied": 0, "behind": {}})
        await call("PUT", "/v1/kv/toska/gateways/slow", {"acquire": session}, body=state)
        await enrolment.register(member, in_seconds(5))
        deadline = in_seconds(1.5)
        applied = await enrolment.wait_applied(member.service, deadline)
        assert asyncio.get_running_loop().time() <= deadline
        assert not applied.is_complete
        assert applied.is_supported
        assert applied.gateways == ("slow",)
        assert applied.missing == ("slow",)
        assert "slow" in applied.reason
    finally:
        await call("DELETE", "/v1/kv/toska/gateways/slow")
        await call("PUT", f"/v1/session/destroy/{session}")


CALLS: dict[str, Callable[[Enrolment, Member, float], Awaitable[object]]] = {
    "register": lambda it, member, deadline: it.register(member, deadline),
    "report": lambda it, member, deadline: it.report(member.id, HealthStatus.HEALTHY, "serving", deadline),
    "deregister": lambda it, member, deadline: it.deregister(member.id, deadline),
}


@pytest.mark.parametrize("provider", ["discovery", "consul"])
@pytest.mark.parametrize("call", CALLS)
async def test_when_nobody_listens_it_says_so_at_once(
    provider: str, call: str, member: Member, closed_port: int
) -> None:
    async with AsyncExitStack() as stack:
        enrolment = await enter_enrolment(stack, options_for(provider, closed_port))
        async with asyncio.timeout(4):
            with pytest.raises(RegistryUnavailableError):
                await CALLS[call](enrolment, member, in_seconds(30))


@pytest.mark.parametrize("provider", ["discovery", "consul"])
@pytest.mark.parametrize("call", CALLS)
async def test_who_does_not_answer_is_not_waited_for_beyond_the_deadline(
    provider: str, call: str, member: Member, silent_port: int
) -> None:
    async with AsyncExitStack() as stack:
        enrolment = await enter_enrolment(stack, options_for(provider, silent_port))
        async with asyncio.timeout(5):
            with pytest.raises(RegistryUnavailableError):
                await CALLS[call](enrolment, member, in_seconds(0.3))


@pytest.mark.parametrize("call", CALLS)
async def test_a_deadline_that_is_over_is_an_outage_and_not_a_hang(
    call: str, enrolment: Enrolment, member: Member
) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(RegistryUnavailableError):
            await CALLS[call](enrolment, member, in_seconds(-1))


@pytest.mark.parametrize("provider", ["discovery", "consul"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_call_can_be_cancelled(provider: str, call: str, member: Member, silent_port: int) -> None:
    async with AsyncExitStack() as stack:
        enrolment = await enter_enrolment(stack, options_for(provider, silent_port))
        async with asyncio.TaskGroup() as tasks:
            calling = tasks.create_task(anything(CALLS[call](enrolment, member, in_seconds(60))))
            await asyncio.sleep(0.05)
            calling.cancel()
        assert calling.cancelled()


async def anything(call: Awaitable[object]) -> None:
    await call


def options_for(provider: str, port: int) -> ConnectOptions:
    if provider == "consul":
        return ConnectOptions(provider="consul", consul_address=f"http://127.0.0.1:{port}")
    return ConnectOptions(discovery_address=f"127.0.0.1:{port}")

"""A registry of a fake mesh that is away or frozen is to its callers what a closed or a silent port is."""

import asyncio

import pytest
from tests.contract.enrolment.conftest import OverFake, in_seconds
from tests.contract.enrolment.test_enrolment import CALLS, anything

from toska_mesh.errors import RegistryUnavailableError
from toska_mesh.sdk.enrolment import Member


@pytest.fixture
async def fake() -> OverFake:
    return OverFake()


@pytest.mark.parametrize("call", CALLS)
async def test_when_it_is_away_it_says_so_at_once(fake: OverFake, call: str, member: Member) -> None:
    fake.registry.goes_away()
    async with asyncio.timeout(4):
        with pytest.raises(RegistryUnavailableError):
            await CALLS[call](fake.enrolment(), member, in_seconds(30))


@pytest.mark.parametrize("call", CALLS)
async def test_when_it_is_frozen_nobody_waits_beyond_the_deadline(fake: OverFake, call: str, member: Member) -> None:
    fake.registry.freezes()
    async with asyncio.timeout(5):
        with pytest.raises(RegistryUnavailableError):
            await CALLS[call](fake.enrolment(), member, in_seconds(0.3))


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_to_a_frozen_one_can_be_cancelled(fake: OverFake, call: str, member: Member) -> None:
    fake.registry.freezes()
    async with asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(anything(CALLS[call](fake.enrolment(), member, in_seconds(60))))
        await asyncio.sleep(0.05)
        calling.cancel()
    assert calling.cancelled()

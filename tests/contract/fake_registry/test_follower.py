"""What holds for followers of every registry holds for those in a fake mesh: the very same tests."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.contract.registry.test_follower import (  # noqa: F401  # collected here
    Catalog,
    reports,
    test_an_instance_without_any_check_is_noticed,
    test_beats_publish_nothing,
    test_changed_metadata_and_port_arrive_although_no_check_changed,
    test_of_many_changes_at_once_none_is_missed,
    test_registration_report_and_deregistration_arrive,
    test_what_did_not_change_stays_the_identical_object,
)

from toska_mesh.registry.api import RefreshReport
from toska_mesh.registry.consul import ConsulClient, ConsulFollower, FollowerOptions


@pytest.fixture
async def catalog(client: ConsulClient, reports: list[RefreshReport]) -> AsyncIterator[Catalog]:  # noqa: F811
    catalog = Catalog()
    async with asyncio.TaskGroup() as tasks:
        follower = ConsulFollower(client, FollowerOptions(wait_seconds=5), on_refresh=reports.append)
        following = tasks.create_task(follower.follow(catalog), name="follow")
        await asyncio.wait_for(catalog.first(), 10)
        yield catalog
        following.cancel()

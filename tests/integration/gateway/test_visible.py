"""When the gateway may say that a change is applied."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.integration.gateway.harness import Backend, running_gateway
from tests.integration.gateway.test_dialling import Names, named
from tests.support.wait import eventually

from toska_mesh.gateway.visible import dials_over
from toska_mesh.model import HealthStatus
from toska_mesh.router import Service


@pytest.fixture
def names() -> Iterator[Names]:
    made = Names({"hanging.test": ["127.0.0.1"]})
    yield made
    made.go.set()  # no thread of a failed test outlives it


async def test_a_request_that_is_about_to_be_sent_to_a_draining_instance_is_waited_for(names: Names) -> None:
    async with Backend() as leaving, Backend() as staying, running_gateway(options=names.options) as gateway:
        one = named("hanging.test", leaving.port, 1)
        gateway.route({"orders": [one]})
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(gateway.get())
            await eventually(lambda: names.lookups)
            draining = replace(one, status=HealthStatus.DEGRADED, output="draining")
            gateway.route({"orders": [draining, named("127.0.0.1", staying.port, 2)]})
            assert gateway.proxy.table is not None
            service = gateway.proxy.table.service("orders")
            assert isinstance(service, Service)
            over = tasks.create_task(dials_over(service))
            assert (await gateway.get()).status == 200
            assert not over.done()
            names.go.set()
            await over
            assert (await asked).status == 200
        assert len(leaving.requests) == 1
        await dials_over(service)

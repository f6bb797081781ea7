"""The registry of a fake mesh in the place of the servers of `tests/contract/registry`, here on a real clock."""

import asyncio
from collections.abc import Callable
from itertools import count
from random import Random

import pytest

from toska_mesh.model import InstanceId, ServiceName
from toska_mesh.registry.consul import ConsulClient, ConsulRegistry
from toska_mesh.testing import Events, FakeRegistry

_numbers = count(1)


@pytest.fixture
async def fake() -> FakeRegistry:
    return FakeRegistry(Events(asyncio.get_running_loop().time), Random(0))


@pytest.fixture
def client(fake: FakeRegistry) -> ConsulClient:
    return fake.client()


@pytest.fixture
def registry(client: ConsulClient) -> ConsulRegistry:
    return ConsulRegistry(client)


@pytest.fixture
def service() -> ServiceName:
    return ServiceName(f"orders-{next(_numbers)}")


@pytest.fixture
def new_id(service: ServiceName) -> Callable[[], InstanceId]:
    return lambda: InstanceId(f"{service}-instance-{next(_numbers)}")

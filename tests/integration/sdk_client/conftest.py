"""A faulty mesh for each test, and the two ways to it."""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from tests.integration.faults.mesh import Mesh, Pool
from tests.integration.sdk_client.ways import WAYS, Ways
from tests.support.servers import ConsulServer

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Gateways and instances for the tests of one module."""
    made = Pool()
    yield made
    made.close()


@pytest.fixture
def mesh(consul: ConsulServer, pool: Pool) -> Iterator[Mesh]:
    """A service with a name of its own; start instances in the test."""
    with Mesh(consul, f"called{next(_numbers)}", pool) as made:
        yield made


@pytest.fixture(params=WAYS)
async def ways(request: pytest.FixtureRequest, mesh: Mesh) -> AsyncIterator[Ways]:
    """Each test runs once through the gateway and once through the client."""
    async with AsyncExitStack() as stack:
        yield Ways(request.param, mesh, stack)

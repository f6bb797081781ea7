"""A mesh for each test, on the shared Consul."""

import itertools
from collections.abc import Iterator

import pytest
from tests.integration.faults.mesh import Mesh, Pool
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
    """A service with a name of its own; start instances and gateway in the test."""
    with Mesh(consul, f"fault{next(_numbers)}", pool) as made:
        yield made

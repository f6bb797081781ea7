"""One suite, two servers: a real Consul and the embedded registry."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from itertools import count

import pytest
from tests.support.servers import ConsulServer, RegistryServer

from toska_mesh.model import InstanceId, ServiceName
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry

_numbers = count(1)


@pytest.fixture(scope="module", params=["consul", "toska-registry"])
def server(request: pytest.FixtureRequest) -> Iterator[ConsulServer | RegistryServer]:
    """A running registry, shared by the tests of a module: use names of your own in it."""
    with ExitStack() as stack:
        if request.param == "consul":
            yield request.getfixturevalue("consul")
        else:
            yield stack.enter_context(RegistryServer())


@pytest.fixture
async def client(server: ConsulServer | RegistryServer) -> AsyncIterator[ConsulClient]:
    async with ConsulClient(ConsulOptions(server.url)) as client:
        yield client


@pytest.fixture
def registry(client: ConsulClient) -> ConsulRegistry:
    return ConsulRegistry(client)


@pytest.fixture
def service() -> ServiceName:
    """A name that no other test uses."""
    return ServiceName(f"orders-{next(_numbers)}")


@pytest.fixture
def new_id(service: ServiceName) -> Callable[[], InstanceId]:
    return lambda: InstanceId(f"{service}-instance-{next(_numbers)}")

"""Both registries, started once for this suite: it registers checks on the node, which a shared Consul must not see."""

import uuid
from collections.abc import Iterator

import pytest
from tests.contract.registry_http.client import Registry
from tests.support.servers import ConsulServer, RegistryServer


@pytest.fixture(scope="session")
def reference() -> Iterator[Registry]:
    """Real Consul: what it says is right."""
    with ConsulServer() as server:
        yield Registry(server.url, "consul")


@pytest.fixture(scope="session")
def embedded() -> Iterator[Registry]:
    with RegistryServer() as server:
        yield Registry(server.url, "toska-registry")


@pytest.fixture(params=["reference", "embedded"], ids=["consul", "toska-registry"])
def registry(request: pytest.FixtureRequest) -> Registry:
    """The same case, once for each."""
    found: Registry = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def name() -> str:
    """A service name, key or check id that no other test uses."""
    return f"t-{uuid.uuid4().hex[:10]}"

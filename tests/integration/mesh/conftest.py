"""Both meshes, one per kind of registry, for the whole folder: what a test breaks it puts right again."""

import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import ModuleType

import pytest
from bench.support.contract import generate
from tests.integration.mesh.mesh import Mesh, Sdk
from tests.support.servers import RabbitMQServer

KINDS = ("consul", "toska-registry")

_numbers = itertools.count(1)


@pytest.fixture(scope="package")
def meshes(rabbitmq: RabbitMQServer) -> Iterator[Mapping[str, Mesh]]:
    """Both, started side by side."""
    with ExitStack() as stack, ThreadPoolExecutor(len(KINDS)) as threads:
        made = {kind: Mesh(kind, rabbitmq.url) for kind in KINDS}
        for mesh in made.values():
            stack.push(mesh)
        list(threads.map(Mesh.__enter__, made.values()))
        yield made


@pytest.fixture(params=KINDS)
def mesh(request: pytest.FixtureRequest, meshes: Mapping[str, Mesh]) -> Iterator[Mesh]:
    """The mesh of one kind, whole before and after the test."""
    one = meshes[request.param]
    one.assert_unharmed()
    yield one
    one.assert_unharmed()


@pytest.fixture(scope="session")
def generated() -> tuple[ModuleType, ModuleType]:
    """Messages and stubs that protoc makes of the contract, and nothing of ours."""
    return generate()


@pytest.fixture
async def sdk(mesh: Mesh, generated: tuple[ModuleType, ModuleType]) -> AsyncIterator[Sdk]:
    async with mesh.connect(generated) as client:
        yield client


@pytest.fixture
def service() -> str:
    """A name that no other test uses."""
    return f"svc{next(_numbers)}"

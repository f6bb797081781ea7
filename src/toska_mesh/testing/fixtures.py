"""The fixtures, for runs that have pytest-asyncio. What they are made of is imported by the tests that use them."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from toska_mesh.testing.plugin import REPORT

if TYPE_CHECKING:
    from toska_mesh.testing.mesh import FakeMesh
    from toska_mesh.testing.registry import EmbeddedRegistry


@pytest.fixture
def _toska_mesh_virtual_clock() -> None:
    """Tests that use it, themselves or through other fixtures, are collected for the virtual clock: see `plugin`."""


@pytest_asyncio.fixture(loop_scope="function")
async def fake_mesh(request: pytest.FixtureRequest, _toska_mesh_virtual_clock: None) -> "AsyncIterator[FakeMesh]":
    """A mesh without sockets, on a virtual clock: see `toska_mesh.testing.FakeMesh`."""
    from toska_mesh.testing.mesh import FakeMesh

    async with FakeMesh() as mesh:
        request.node.stash[REPORT] = mesh
        yield mesh


@pytest.fixture
def _toska_mesh_real_sockets() -> None:
    """Async tests that use it are run by pytest-asyncio also in its strict mode: see `plugin`."""


@pytest_asyncio.fixture
async def mesh_registry(_toska_mesh_real_sockets: None) -> "AsyncIterator[EmbeddedRegistry]":
    """A registry on a free port of the test's own loop: see `toska_mesh.testing.EmbeddedRegistry`."""
    from toska_mesh.testing.registry import EmbeddedRegistry

    async with EmbeddedRegistry() as registry:
        yield registry

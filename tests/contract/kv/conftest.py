"""One suite, three stores: SQLite, a real Redis, and the stand-in for ToskaStore."""

from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest
from tests.contract.kv.stores import Place, RedisPlace, SqlitePlace, ToskaStorePlace
from tests.support.servers import RedisServer, ToskaStoreServer

from toska_mesh.sdk.kv.api import KeyValueStore
from toska_mesh.sdk.kv.open import open_store

_numbers = count(1)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Shared: use names of your own in it and do not stop it."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def toska_store_server() -> Iterator[ToskaStoreServer]:
    """Shared, too."""
    with ToskaStoreServer() as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", "redis", "toska-store"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    if request.param == "sqlite":
        return SqlitePlace(tmp_path_factory.mktemp("kv"))
    if request.param == "redis":
        return RedisPlace(request.getfixturevalue("redis_server"))
    return ToskaStorePlace(request.getfixturevalue("toska_store_server"))


@pytest.fixture
def service() -> str:
    """A name that no other test uses."""
    return f"service-{next(_numbers)}"


@pytest.fixture
async def store(place: Place, service: str) -> AsyncIterator[KeyValueStore]:
    async with open_store(service, place.environ, timeout_seconds=10) as store:
        yield store

"""The list of keys that the C# runtime keeps in ToskaStore when its EnableKeyIndex is on."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from tests.contract.kv.stores import ToskaStorePlace
from tests.support.servers import ToskaStoreServer
from tests.support.wait import eventually

from toska_mesh.errors import KeyValueError
from toska_mesh.sdk.kv.api import KeyValueStore
from toska_mesh.sdk.kv.open import open_store


@pytest.fixture
def place(toska_store_server: ToskaStoreServer) -> ToskaStorePlace:
    return ToskaStorePlace(toska_store_server)


@pytest.fixture
async def store(place: ToskaStorePlace, service: str) -> AsyncIterator[KeyValueStore]:
    async with open_store(service, place.environ, toskastore_enable_key_index=True) as store:
        yield store


async def test_it_follows_writes_and_deletes(store: KeyValueStore, place: ToskaStorePlace, service: str) -> None:
    place.raw_write(f"{service}:__keys", '["csharp"]')
    await store.set("b", 1)
    await store.add("a", 1)
    await store.add("a", 2)
    await store.set("b", 2)
    assert json.loads(place.raw_read(f"{service}:__keys") or "") == ["csharp", "b", "a"]
    await store.delete("b")
    await store.delete("never")
    assert json.loads(place.raw_read(f"{service}:__keys") or "") == ["csharp", "a"]


async def test_writers_at_once_lose_no_entry(store: KeyValueStore, place: ToskaStorePlace, service: str) -> None:
    environ = {**place.environ, "MESH_KV_TOSKASTORE_ENABLE_KEY_INDEX": "true"}
    async with open_store(service, environ) as other, asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task((store, other)[number % 2].set(f"{number}", number))
    assert sorted(json.loads(place.raw_read(f"{service}:__keys") or "")) == [str(number) for number in range(8)]


async def test_it_is_no_key_of_the_service(store: KeyValueStore, place: ToskaStorePlace, service: str) -> None:
    await store.set("a", 1)
    assert await store.list_keys() == ["a"]
    for call in (store.set("__keys", 1), store.delete("__keys"), store.add("__keys", 1)):
        with pytest.raises(KeyValueError, match="list of all keys"):
            await call
    async with open_store(service, place.environ) as without:  # a neighbour of C# services that keep it
        assert await without.list() == [1]


async def test_without_the_option_no_list_is_kept(place: ToskaStorePlace, service: str) -> None:
    async with open_store(service, place.environ) as store:
        await store.set("a", 1)
    assert place.raw_read(f"{service}:__keys") is None


async def test_a_server_that_cannot_list_is_listed_by_it() -> None:
    with ToskaStoreServer("--without-listing") as server:
        environ = ToskaStorePlace(server).environ
        async with open_store("x", environ, toskastore_enable_key_index=True) as store:
            for number in range(5):
                await store.set(f"todo:{number}", number)
            await store.set("other", 9)
            await store.delete("todo:0")
            assert await store.list("todo:") == [1, 2, 3, 4]
            assert await store.list_keys() == ["other", "todo:1", "todo:2", "todo:3", "todo:4"]
            await store.set("other", 9, ttl_seconds=0.001)

            async def is_gone() -> bool:
                return "other" not in await store.list_keys()

            await eventually(is_gone)
        async with open_store("x", environ) as store:
            with pytest.raises(KeyValueError, match="EnableKeyIndex"):
                await store.list_keys()


async def test_something_else_in_its_place_is_said(store: KeyValueStore, place: ToskaStorePlace, service: str) -> None:
    place.raw_write(f"{service}:__keys", "oops")
    with pytest.raises(KeyValueError, match="no list of keys"):
        await store.set("a", 1)

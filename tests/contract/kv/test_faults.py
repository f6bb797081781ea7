"""A server that is down, dies, hangs or comes back: a clear error in time, and recovery by itself."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from tests.contract.kv.stores import RedisPlace, ToskaStorePlace
from tests.support.ports import free_port
from tests.support.servers import RedisServer, ToskaStoreServer
from tests.support.wait import eventually

from toska_mesh.errors import ConfigError, KeyValueError, KeyValueUnavailableError
from toska_mesh.sdk.kv.api import KeyValueStore
from toska_mesh.sdk.kv.open import open_store

IN_TIME = 5
"""Seconds: far above the store's own deadline in these tests, far below its default."""

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=["redis", "toska-store"])
def place(request: pytest.FixtureRequest) -> Iterator[RedisPlace | ToskaStorePlace]:
    """A server of this module, to be mistreated."""
    if request.param == "redis":
        with RedisServer() as server:
            yield RedisPlace(server)
    else:
        with ToskaStoreServer() as stand_in:
            yield ToskaStorePlace(stand_in)


@pytest.fixture
async def store(place: RedisPlace | ToskaStorePlace) -> AsyncIterator[KeyValueStore]:
    if not place.server.is_running:
        await asyncio.to_thread(place.server.start)
    async with open_store(f"faults-{next(_numbers)}", place.environ, timeout_seconds=0.5) as store:
        yield store


async def answers(store: KeyValueStore) -> bool:
    try:
        await store.get("key")
    except KeyValueUnavailableError:
        return False
    return True


async def test_a_server_that_is_down_is_an_error_and_not_an_empty_store(
    store: KeyValueStore, place: RedisPlace | ToskaStorePlace
) -> None:
    await store.set("key", 1)
    await asyncio.to_thread(place.server.kill)
    async with asyncio.timeout(IN_TIME):
        for call in (
            store.get("key", "default"),
            store.set("key", 2),
            store.delete("key"),
            store.list(),
            store.add("k", 1),
        ):
            with pytest.raises(KeyValueUnavailableError, match=r"127\.0\.0\.1"):
                await call


async def test_a_write_that_never_left_says_that_it_did_not_happen(
    store: KeyValueStore, place: RedisPlace | ToskaStorePlace
) -> None:
    await asyncio.to_thread(place.server.kill)
    with pytest.raises(KeyValueUnavailableError) as raised:
        await store.add("key", 1)
    assert not raised.value.may_have_happened


async def test_a_store_may_be_opened_before_its_server_is_there(place: RedisPlace | ToskaStorePlace) -> None:
    await asyncio.to_thread(place.server.kill)
    async with open_store("early", place.environ, timeout_seconds=0.5) as store:
        assert not await answers(store)
        await asyncio.to_thread(place.server.start)
        await store.set("key", 1)
        assert await store.get("key") == 1


async def test_what_was_stored_is_there_again_after_a_crash(
    store: KeyValueStore, place: RedisPlace | ToskaStorePlace
) -> None:
    await store.set("key", {"kept": True})
    async with asyncio.TaskGroup() as group:  # several connections, all of them cut
        for number in range(5):
            group.create_task(store.set(f"{number}", number))
    await asyncio.to_thread(place.server.kill)
    await asyncio.to_thread(place.server.start)
    async with asyncio.TaskGroup() as group:
        reads = [group.create_task(store.get(f"{number}")) for number in range(5)]
    assert [read.result() for read in reads] == [0, 1, 2, 3, 4]
    assert await store.get("key") == {"kept": True}
    assert await store.delete("key")


async def test_a_server_that_hangs_ends_calls_in_time_and_is_used_again_later(
    store: KeyValueStore, place: RedisPlace | ToskaStorePlace
) -> None:
    for number in range(3):
        await store.set(f"{number}", number)
    await asyncio.to_thread(place.server.pause)
    try:
        async with asyncio.timeout(IN_TIME):
            with pytest.raises(KeyValueUnavailableError, match=r"did not answer within 0\.5 s to: get '0'"):
                await store.get("0")
            with pytest.raises(KeyValueUnavailableError, match="did not answer") as raised:
                await store.set("1", "late")
            assert raised.value.may_have_happened
    finally:
        place.server.resume()
    await eventually(lambda: answers(store))
    # The late answers of the calls that were given up are not taken for those of the next.
    assert [await store.get(f"{number}") for number in (2, 0, 2)] == [2, 0, 2]


async def test_a_listing_that_loses_its_server_does_not_end_as_if_it_were_whole(
    store: KeyValueStore, place: RedisPlace | ToskaStorePlace
) -> None:
    for number in range(30):
        await store.set(f"{number}", number)
    if isinstance(place, RedisPlace):  # it takes larger steps
        with redis.Redis(port=place.server.port) as client:
            client.mset({f"other:{number}": 0 for number in range(3000)})
    keys = store.keys(page_size=5)
    await anext(keys)
    await asyncio.to_thread(place.server.kill)
    with pytest.raises(KeyValueUnavailableError):
        async for _ in keys:
            pass


# Refusals


async def test_a_wrong_password_is_a_refusal() -> None:
    with RedisServer("--requirepass", "right") as server:
        for password in ("", ",password=wrong"):
            string = f"{server.address}{password}"
            async with open_store("x", {}, provider="redis", redis_connection_string=string) as store:
                with pytest.raises(KeyValueError, match="password are missing or wrong") as raised:
                    await store.get("key")
                assert not isinstance(raised.value, KeyValueUnavailableError)
        string = f"{server.address},password=right,defaultDatabase=3,name=todo,abortConnect=false"
        async with open_store("x", {}, provider="redis", redis_connection_string=string) as store:
            await store.set("key", 1)
        url = f"redis://:right@{server.address}/3"
        async with open_store("x", {}, provider="redis", redis_connection_string=url) as store:
            assert await store.get("key") == 1
        string = f"{server.address},password=right"
        async with open_store("x", {}, provider="redis", redis_connection_string=string) as store:
            assert await store.get("key") is None  # another database
        async with open_store("x", {}, provider="redis", redis_connection_string=string, redis_database=3) as store:
            assert await store.get("key") == 1


async def test_a_replica_that_takes_no_writes_is_a_refusal(redis_server: RedisServer) -> None:
    with RedisServer("--replicaof", "127.0.0.1", str(redis_server.port)) as replica:
        async with open_store("x", RedisPlace(replica).environ) as store:
            with pytest.raises(KeyValueError, match="name the primary"):
                await store.set("key", 1)


async def test_something_that_is_no_text_is_a_refusal(redis_server: RedisServer) -> None:
    async with open_store("lists", RedisPlace(redis_server).environ) as store:
        with redis.Redis(port=redis_server.port) as client:
            client.lpush("lists:key", "x")
        with pytest.raises(KeyValueError, match="WRONGTYPE"):
            await store.get("key")


async def test_the_token_of_toska_store_is_sent_and_a_wrong_one_refused() -> None:
    with ToskaStoreServer("--token", "right") as server:
        environ = ToskaStorePlace(server).environ
        async with open_store("x", environ, toskastore_auth_token="right") as store:
            await store.set("key", 1)
        for token in ("", "wrong"):
            async with open_store("x", environ, toskastore_auth_token=token) as store:
                with pytest.raises(KeyValueError, match="token is missing or wrong") as raised:
                    await store.get("key")
                assert not isinstance(raised.value, KeyValueUnavailableError)


async def test_a_follower_of_toska_store_refuses_writes() -> None:
    with ToskaStoreServer("--read-only") as server:
        async with open_store("x", ToskaStorePlace(server).environ) as store:
            assert await store.get("key") is None
            with pytest.raises(KeyValueError, match="name the leader"):
                await store.set("key", 1)


async def test_a_wrong_path_of_toska_store_is_not_an_empty_store(toska_store_server: ToskaStoreServer) -> None:
    async with open_store(
        "x", {}, provider="toskastore", toskastore_base_url=f"{toska_store_server.url}/base"
    ) as store:
        with pytest.raises(KeyValueError, match="is the base URL right"):
            await store.get("key")


async def test_a_key_that_toska_store_would_lose_is_refused(toska_store_server: ToskaStoreServer) -> None:
    async with open_store("x", ToskaStorePlace(toska_store_server).environ) as store:
        with pytest.raises(KeyValueError, match="not ASCII"):
            await store.set("schlüssel", 1)
        assert await store.get("schlüssel") is None


async def test_a_port_that_nobody_listens_on_names_the_address() -> None:
    port = free_port()
    async with open_store("x", {}, provider="redis", redis_connection_string=f"127.0.0.1:{port}") as store:
        with pytest.raises(KeyValueUnavailableError, match=str(port)):
            await store.get("key")


async def test_a_setting_that_is_wrong_keeps_the_store_from_opening() -> None:
    for wrong in (
        {"MESH_KV_PROVIDER": "Mongo"},
        {"MESH_KV_REDIS_CONNECTION_STRING": "a:1,b:2"},
        {"MESH_KV_PROVIDER": "ToskaStore", "MESH_KV_TOSKASTORE_BASE_URL": "localhost:4000"},
    ):
        with pytest.raises(ConfigError):
            async with open_store("x", wrong):
                pass

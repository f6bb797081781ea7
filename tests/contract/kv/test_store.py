"""What every store promises, whatever is behind it."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.contract.kv.stores import Place
from tests.support.wait import eventually

from toska_mesh.errors import KeyValueError, KeyValueFormatError
from toska_mesh.sdk.kv.api import KeyValueStore
from toska_mesh.sdk.kv.open import open_store

ODD_KEYS = [
    "a/b",
    "a%2Fb",
    "a b",
    "a?b=c&d#e",
    "..",
    "../../x",
    "keys",
    "watch",
    "mget",
    "txn",
    "quote\"'\\",
    "tab\tline\n",
    ":",
    "nul\x00",
    "x" * 400,
]


@dataclass(frozen=True)
class Todo:
    title: str
    created_at: datetime
    is_done: bool = False


TODO = Todo("Milk & <bread>", datetime(2024, 5, 6, 7, 8, 9, 120000, tzinfo=UTC))
TODO_TEXT = (
    r'{"title":"Milk \u0026 \u003Cbread\u003E","createdAt":"2024-05-06T07:08:09.12Z","isDone":false}'  # as .NET has it
)


async def taken(keys: Any) -> list[Any]:
    return [item async for item in keys]


# One value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a": [1, 2.5, True, None, "x"]}, id="object"),
        pytest.param([], id="empty list"),
        pytest.param("", id="empty text"),
        pytest.param("Ünïcödé 😀\u2028\x00", id="text outside ASCII"),
        pytest.param(0, id="zero"),
        pytest.param(False, id="false"),
        pytest.param(2**53 + 1, id="large integer"),
        pytest.param("x" * 1_000_000, id="a million characters"),
    ],
)
async def test_what_is_set_is_read_back(store: KeyValueStore, value: object) -> None:
    await store.set("key", value)
    assert await store.get("key") == value


async def test_a_value_is_the_text_that_the_csharp_runtime_writes(
    store: KeyValueStore, place: Place, service: str
) -> None:
    await store.set("todo", TODO)
    assert place.raw_read(f"{service}:todo") == TODO_TEXT


async def test_a_value_of_the_csharp_runtime_is_read_as_the_type_asked_for(
    store: KeyValueStore, place: Place, service: str
) -> None:
    place.raw_write(f"{service}:todo", TODO_TEXT)
    assert await store.get("todo", as_type=Todo) == TODO


async def test_a_missing_key_gives_the_default(store: KeyValueStore) -> None:
    assert await store.get("nothing") is None
    assert await store.get("nothing", "default") == "default"
    assert await store.get("nothing", TODO, as_type=Todo) is TODO


async def test_a_stored_none_is_not_missing(store: KeyValueStore) -> None:
    await store.set("key", None)
    assert await store.get("key", "default") is None
    assert await store.list_keys() == ["key"]


async def test_the_last_set_counts(store: KeyValueStore) -> None:
    await store.set("key", 1)
    await store.set("key", {"two": 2})
    assert await store.get("key") == {"two": 2}


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_a_key_may_be_any_text(store: KeyValueStore, key: str) -> None:
    await store.set("neighbour", 0)
    await store.set(key, 1)
    assert await store.get(key) == 1
    assert await store.list_keys() == sorted([key, "neighbour"])
    assert await store.list(key) == [1]
    assert await store.delete(key)
    assert await store.get(key) is None
    assert await store.get("neighbour") == 0


async def test_an_empty_key_and_one_that_is_no_text_are_refused(store: KeyValueStore) -> None:
    with pytest.raises(KeyValueError, match="empty"):
        await store.set("", 1)
    with pytest.raises(KeyValueError, match="lone surrogate"):
        await store.get("\ud800")


async def test_a_value_without_a_json_form_is_refused_and_leaves_the_old_one(store: KeyValueStore) -> None:
    await store.set("key", 1)
    with pytest.raises(KeyValueFormatError, match=r"'key' cannot be stored: value\.a\[0\] is nan"):
        await store.set("key", {"a": [float("nan")]})
    assert await store.get("key") == 1


async def test_a_value_that_is_not_what_was_asked_for_says_so(store: KeyValueStore) -> None:
    await store.set("key", {"title": 7, "createdAt": "2024-01-01T00:00:00Z"})
    with pytest.raises(KeyValueFormatError, match=r"'key' cannot be read: stored value\.title is 7; text"):
        await store.get("key", as_type=Todo)


async def test_text_that_is_no_json_says_so(store: KeyValueStore, place: Place, service: str) -> None:
    place.raw_write(f"{service}:key", "hello")
    with pytest.raises(KeyValueFormatError, match="no JSON"):
        await store.get("key")


# Times to live


async def test_a_value_is_gone_after_its_time_to_live(store: KeyValueStore) -> None:
    await store.set("short", 1, ttl_seconds=0.2)
    await store.set("long", 2, ttl_seconds=timedelta(hours=1))

    async def is_gone() -> bool:
        return await store.get("short") is None

    await eventually(is_gone)
    assert await store.get("long") == 2
    assert await store.list_keys() == ["long"]
    assert not await store.delete("short")


async def test_a_set_without_a_time_to_live_ends_the_old_one(store: KeyValueStore) -> None:
    await store.set("kept", 1, ttl_seconds=0.2)
    await store.set("kept", 2)
    await store.set("later", 3, ttl_seconds=0.4)

    async def is_gone() -> bool:
        return await store.get("later") is None

    await eventually(is_gone)
    assert await store.get("kept") == 2


@pytest.mark.parametrize("ttl", [0, -1, 0.0009, float("nan"), float("inf"), 10**12, timedelta(0)])
async def test_a_time_to_live_that_no_store_can_keep_is_refused(store: KeyValueStore, ttl: float) -> None:
    await store.set("key", 1)
    with pytest.raises(KeyValueError, match=r"at least 0\.001"):
        await store.set("key", 2, ttl_seconds=ttl)
    assert await store.get("key") == 1


async def test_the_shortest_and_the_longest_time_to_live_are_taken(store: KeyValueStore) -> None:
    await store.set("short", 1, ttl_seconds=0.001)
    await store.set("long", 2, ttl_seconds=999 * 365 * 86_400)
    assert await store.get("long") == 2

    async def is_gone() -> bool:
        return await store.get("short") is None

    await eventually(is_gone)


# Add and delete


async def test_add_stores_only_where_nothing_is(store: KeyValueStore) -> None:
    assert await store.add("key", 1)
    assert not await store.add("key", 2)
    assert await store.get("key") == 1
    await store.delete("key")
    assert await store.add("key", 3)
    assert await store.get("key") == 3


async def test_add_takes_the_place_of_what_has_expired(store: KeyValueStore) -> None:
    assert await store.add("key", 1, ttl_seconds=60)
    assert not await store.add("key", 2)
    await store.set("key", 1, ttl_seconds=0.1)

    async def is_added() -> bool:
        return await store.add("key", 3)

    await eventually(is_added)
    assert await store.get("key") == 3


async def test_of_many_that_add_at_once_one_succeeds(store: KeyValueStore, place: Place, service: str) -> None:
    async with open_store(service, place.environ) as other, asyncio.TaskGroup() as group:
        tasks = [group.create_task((store, other)[n % 2].add("key", n)) for n in range(20)]
    winners = [number for number, task in enumerate(tasks) if task.result()]
    assert len(winners) == 1
    assert await store.get("key") == winners[0]


async def test_delete_says_whether_there_was_something(store: KeyValueStore) -> None:
    await store.set("key", 1)
    assert await store.delete("key")
    assert not await store.delete("key")
    assert not await store.delete("never")
    assert await store.get("key") is None


# Many values


@pytest.mark.parametrize("page_size", [1, 3, 25, 5000])
async def test_every_key_is_listed_once_whatever_the_page(store: KeyValueStore, page_size: int) -> None:
    wanted = [f"todo:{number:02}" for number in range(25)]
    for key in wanted:
        await store.set(key, key)
    await store.set("other", 0)
    found = await taken(store.keys("todo:", page_size=page_size))
    assert sorted(found) == wanted
    items = await taken(store.items("todo:", page_size=page_size))
    assert sorted(items) == [(key, key) for key in wanted]
    assert await store.list("todo:", page_size=page_size) == wanted


async def test_more_keys_than_a_page_of_the_server_are_all_listed(store: KeyValueStore) -> None:
    wanted = {f"key-{number}" for number in range(1100)}
    async with asyncio.TaskGroup() as group:
        for part in range(4):
            group.create_task(_set_all(store, sorted(wanted)[part::4]))
    assert set(await store.list_keys(page_size=2000)) == wanted
    assert len(await store.list(page_size=2000)) == len(wanted)


async def _set_all(store: KeyValueStore, keys: list[str]) -> None:
    for key in keys:
        await store.set(key, 1)


@pytest.mark.parametrize("prefix", ["a*", "a?", "a[bc]", "a\\", "a^", "a-", "[^a]", "%", "a_"])
async def test_a_prefix_is_taken_literally(store: KeyValueStore, prefix: str) -> None:
    for key in ("ab", "ac", "a", "b", "aXc", prefix, f"{prefix}x"):
        await store.set(key, 1)
    wanted = sorted({key for key in ("ab", "ac", "a", "b", "aXc", prefix, f"{prefix}x") if key.startswith(prefix)})
    assert await store.list_keys(prefix) == wanted


async def test_services_do_not_see_each_other(store: KeyValueStore, place: Place, service: str) -> None:
    async with (
        open_store(f"{service}x", place.environ) as longer,
        open_store(service, place.environ, key_prefix=f"{service}x:sub") as below,
    ):
        await store.set("key", 1)
        await longer.set("key", 2)
        await below.set("key", 3)
        assert await store.list_keys() == ["key"]
        assert await longer.list_keys() == ["key", "sub:key"]  # a prefix of the other's prefix
        assert await below.list_keys() == ["key"]
        assert [await one.get("key") for one in (store, longer, below)] == [1, 2, 3]


async def test_two_that_share_a_prefix_share_their_state(store: KeyValueStore, place: Place, service: str) -> None:
    async with open_store("another", place.environ, key_prefix=service) as other:
        await other.set("key", 1)
        assert await store.get("key") == 1
        assert await store.delete("key")
        assert await other.get("key") is None


async def test_values_are_listed_as_the_type_asked_for_in_the_order_of_their_keys(store: KeyValueStore) -> None:
    todos = [Todo(str(number), TODO.created_at) for number in range(5)]
    for number in (3, 0, 4, 1, 2):
        await store.set(f"{number}", todos[number])
    assert await store.list(as_type=Todo) == todos
    assert dict(await taken(store.items(as_type=Todo))) == {todo.title: todo for todo in todos}


async def test_a_listing_is_whole_or_an_error(store: KeyValueStore) -> None:
    for number in range(4):
        await store.set(str(number), number)
    assert await store.list(at_most=4) == [0, 1, 2, 3]
    with pytest.raises(KeyValueError, match="more than at_most=3"):
        await store.list(at_most=3)
    with pytest.raises(KeyValueError, match="more than at_most=3"):
        await store.list_keys(at_most=3)


async def test_a_store_with_nothing_in_it_lists_nothing(store: KeyValueStore) -> None:
    assert await store.list_keys() == []
    assert await store.list("x") == []


async def test_a_page_of_nothing_is_a_mistake(store: KeyValueStore) -> None:
    with pytest.raises(ValueError, match="page_size=0"):
        await store.list_keys(page_size=0)


# Tasks


async def test_more_tasks_than_connections_wait_their_turn(store: KeyValueStore) -> None:
    await store.set("key", 1)
    async with asyncio.TaskGroup() as group:
        reads = [group.create_task(store.get("key")) for _ in range(400)]
    assert {read.result() for read in reads} == {1}


async def test_many_tasks_share_a_store(store: KeyValueStore) -> None:
    async def round_trip(number: int) -> None:
        await store.set(f"key-{number}", number)
        assert await store.get(f"key-{number}") == number

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(round_trip(number))
    assert await store.list() == [int(key.removeprefix("key-")) for key in sorted(f"key-{n}" for n in range(50))]


async def test_a_call_that_is_cancelled_anywhere_leaves_the_store_in_order(store: KeyValueStore) -> None:
    for number in range(40):
        await store.set(f"{number}", number)
    for steps in range(40):
        task = asyncio.get_running_loop().create_task(store.get(f"{steps}"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.result() == steps
        # An answer that nobody took must not be taken for that of the next question.
        assert await store.get(f"{39 - steps}") == 39 - steps


async def test_a_listing_may_be_left_in_the_middle(store: KeyValueStore) -> None:
    for number in range(10):
        await store.set(f"{number}", number)
    keys = store.keys(page_size=2)
    assert await anext(keys) is not None
    await keys.aclose()  # type: ignore[attr-defined]
    assert len(await store.list_keys()) == 10


async def test_a_closed_store_says_so(place: Place, service: str) -> None:
    async with open_store(service, place.environ) as store:
        await store.set("key", 1)
    with pytest.raises(KeyValueError, match="is closed"):
        await store.get("key")

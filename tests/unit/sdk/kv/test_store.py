"""Deadline, retries and listing of `JsonStore`, over a backend that fails as it is told."""

import asyncio
import random
from collections.abc import Callable, Sequence

import pytest

from toska_mesh.errors import ConfigError, KeyValueError, KeyValueUnavailableError
from toska_mesh.sdk.kv.backend import Page
from toska_mesh.sdk.kv.store import JsonStore

LOST = KeyValueUnavailableError("the answer was lost", may_have_happened=True)
REFUSED = KeyValueUnavailableError("nobody listens", may_have_happened=False)


class Memory:
    """A backend whose next calls fail in the given ways; a float is a wait of so many seconds."""

    name = "memory"

    def __init__(self, *troubles: Exception | float, repeats_keys: bool = False, pages: Sequence[Page] = ()) -> None:
        self.repeats_keys = repeats_keys
        self.texts: dict[str, str] = {}
        self.calls = 0
        self._troubles = list(troubles)
        self._pages = list(pages)

    async def _trouble(self) -> None:
        self.calls += 1
        if self._troubles:
            trouble = self._troubles.pop(0)
            if isinstance(trouble, Exception):
                raise trouble
            await asyncio.sleep(trouble)

    async def write(self, key: str, text: str, ttl_ms: int | None, if_absent: bool) -> bool:
        await self._trouble()
        if if_absent and key in self.texts:
            return False
        self.texts[key] = text
        return True

    async def read(self, key: str) -> str | None:
        await self._trouble()
        return self.texts.get(key)

    async def read_many(self, keys: Sequence[str]) -> Sequence[str | None]:
        await self._trouble()
        return [self.texts.get(key) for key in keys]

    async def remove(self, key: str) -> bool:
        await self._trouble()
        return self.texts.pop(key, None) is not None

    async def page(self, prefix: str, size: int, cursor: str | None) -> Page:
        await self._trouble()
        return self._pages.pop(0)

    async def close(self) -> None:
        pass


def store_over(backend: Memory) -> JsonStore:
    return JsonStore(backend, "x", timeout_seconds=5, rng=random.Random(1))


Call = Callable[[JsonStore], object]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda store: store.set("key", 1), id="set"),
        pytest.param(lambda store: store.get("key"), id="get"),
    ],
)
async def test_what_may_be_done_twice_is_repeated_after_a_lost_answer(call: Call) -> None:
    backend = Memory(LOST, REFUSED, LOST)
    await call(store_over(backend))  # type: ignore[misc]
    assert backend.calls == 4


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda store: store.add("key", 1), id="add"),
        pytest.param(lambda store: store.delete("key"), id="delete"),
    ],
)
async def test_what_says_what_was_there_is_repeated_only_if_it_never_happened(call: Call) -> None:
    backend = Memory(REFUSED, LOST)
    with pytest.raises(KeyValueUnavailableError, match="lost") as raised:
        await call(store_over(backend))  # type: ignore[misc]
    assert raised.value.may_have_happened
    assert backend.calls == 2


async def test_it_gives_up_after_a_few_tries_long_before_the_deadline() -> None:
    backend = Memory(*[REFUSED] * 10)
    with pytest.raises(KeyValueUnavailableError, match="nobody listens"):
        await store_over(backend).get("key")
    assert backend.calls == 4
    assert 1 < asyncio.get_running_loop().time() < 2


async def test_a_refusal_is_not_repeated() -> None:
    backend = Memory(KeyValueError("no"))
    with pytest.raises(KeyValueError, match="no"):
        await store_over(backend).get("key")
    assert backend.calls == 1


async def test_one_call_ends_at_its_deadline_retries_and_all() -> None:
    backend = Memory(3.0, LOST)
    store = store_over(backend)
    assert await store.get("key") is None
    backend = Memory(LOST, 30.0)
    with pytest.raises(KeyValueUnavailableError, match=r"within 5 s to: get 'key'; before that: the answer was lost"):
        await store_over(backend).get("key")
    assert asyncio.get_running_loop().time() == pytest.approx(8)


async def test_no_pause_is_begun_that_the_deadline_would_cut() -> None:
    class Slow(Memory):
        async def _trouble(self) -> None:
            await asyncio.sleep(4.999)
            await super()._trouble()

    backend = Slow(LOST)
    with pytest.raises(KeyValueUnavailableError, match="lost"):
        await store_over(backend).get("key")
    assert asyncio.get_running_loop().time() == pytest.approx(4.999)


async def test_a_cancelled_call_is_not_repeated() -> None:
    backend = Memory(30.0)
    task = asyncio.get_running_loop().create_task(store_over(backend).get("key"))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.calls == 1


async def test_each_page_has_the_whole_time() -> None:
    pages = [Page(("x:a",), "1"), Page((), "2"), Page(("x:b",), None)]
    backend = Memory(4.0, 4.0, 4.0, pages=pages)
    assert [key async for key in store_over(backend).keys()] == ["a", "b"]  # noqa: SIM118
    assert asyncio.get_running_loop().time() == pytest.approx(12)


async def test_a_key_that_comes_twice_is_listed_once() -> None:
    pages = [Page(("x:a", "x:a", "x:b"), "1"), Page(("x:b",), "2"), Page(("x:c", "x:a"), None)]
    backend = Memory(repeats_keys=True, pages=pages)
    assert [key async for key in store_over(backend).keys()] == ["a", "b", "c"]  # noqa: SIM118


async def test_what_goes_between_its_key_and_its_value_is_left_out() -> None:
    backend = Memory(pages=[Page(("x:a", "x:gone", "x:b"), None)])
    backend.texts = {"x:a": "1", "x:b": "2"}
    assert await store_over(backend).list() == [1, 2]


async def test_an_empty_text_counts_as_missing_as_in_the_csharp_runtime() -> None:
    backend = Memory()
    backend.texts = {"x:a": ""}
    assert await store_over(backend).get("a", "default") == "default"


@pytest.mark.parametrize("prefix", ["", "  "])
def test_a_store_needs_a_prefix(prefix: str) -> None:
    with pytest.raises(ConfigError, match="needs a key prefix"):
        JsonStore(Memory(), prefix)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_deadline_is_a_time(seconds: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        JsonStore(Memory(), "x", seconds)


@pytest.mark.parametrize(("prefix", "whole"), [("a", "a:"), ("a:", "a:"), ("a:b", "a:b:")])
async def test_the_prefix_gets_a_colon_when_it_has_none(prefix: str, whole: str) -> None:
    backend = Memory()
    await JsonStore(backend, prefix).set("key", 1)
    assert backend.texts == {f"{whole}key": "1"}

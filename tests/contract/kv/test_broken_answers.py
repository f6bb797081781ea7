"""Servers that answer wrongly, half or not at all, by scripts: what a real one does only on a bad day."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from toska_mesh.errors import KeyValueError, KeyValueUnavailableError
from toska_mesh.sdk.kv.api import KeyValueStore
from toska_mesh.sdk.kv.open import open_store

OK = b'{"ok":true,"key":"x:key","value":"1","metadata":{"version":1}}'


def http(status: int, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, size, body)


class Script:
    """A server that gives the answers in turn, the last one for ever; None closes without one."""

    def __init__(self, *answers: bytes | None) -> None:
        self.asked: list[bytes] = []
        self._answers = list(answers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while asked := await reader.read(65536):
                self.asked.append(asked)
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                if answer is None:
                    return
                writer.write(answer)
                if b"\r\n\r\n" in answer and not _is_whole(answer):
                    return
        except ConnectionError:
            pass
        finally:
            writer.close()


def _is_whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.rpartition(b": ")[2]) == len(body)


@asynccontextmanager
async def toska_store(*answers: bytes | None) -> AsyncIterator[tuple[KeyValueStore, Script]]:
    script = Script(*answers)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    overrides = {"provider": "toskastore", "toskastore_base_url": f"http://127.0.0.1:{port}/base", "timeout_seconds": 2}
    try:
        async with open_store("x", {}, **overrides) as store:
            yield store, script
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(http(200, b"<html>hello</html>"), "is this a ToskaStore", id="html"),
        pytest.param(http(200, b"[]"), "is this a ToskaStore", id="no object"),
        pytest.param(http(200, b'{"value":7}'), "no text", id="no text"),
        pytest.param(http(404, b'{"error":"Not Found","path":"/x"}'), "is the base URL right", id="404 of a route"),
        pytest.param(http(404, b"not found"), "is the base URL right", id="404 of a proxy"),
        pytest.param(http(302, b"{}"), "302", id="redirect"),
        pytest.param(http(500, b'{"error":"boom"}'), "500.*boom", id="bug"),
    ],
)
async def test_an_answer_of_something_else_is_neither_a_value_nor_missing(answer: bytes, said: str) -> None:
    async with toska_store(answer) as (store, script):
        with pytest.raises(KeyValueError, match=said) as raised:
            await store.get("key", "default")
        assert not isinstance(raised.value, KeyValueUnavailableError)
        assert len(script.asked) == 1
        assert script.asked[0].startswith(b"GET /base/kv/x%3Akey HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(http(503, b'{"error":"KV store unavailable"}'), id="503"),
        pytest.param(http(429, b'{"error":"Rate limit exceeded"}'), id="429"),
        pytest.param(http(502, b"bad gateway"), id="502 of a proxy"),
        pytest.param(None, id="closed"),
        pytest.param(http(200, OK[:20], length=len(OK)), id="cut off"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\nLength: 0", id="another protocol"),
    ],
)
async def test_what_may_be_better_in_a_moment_is_asked_again(answer: bytes | None) -> None:
    async with toska_store(answer, http(200, OK)) as (store, script):
        assert await store.get("key") == 1
        assert len(script.asked) == 2


@pytest.mark.parametrize(
    ("call", "method"),
    [
        pytest.param(lambda store: store.delete("key"), b"DELETE", id="delete"),
        pytest.param(lambda store: store.add("key", 1), b"PUT", id="add"),
    ],
)
async def test_a_write_whose_answer_was_lost_is_not_sent_again(
    call: Callable[[KeyValueStore], object], method: bytes
) -> None:
    async with toska_store(http(200, OK), None, http(412, b'{"error":"Condition failed"}')) as (store, script):
        await store.get("key")  # a connection that is kept, for which HTTP clients like to send twice
        with pytest.raises(KeyValueUnavailableError) as raised:
            await call(store)  # type: ignore[misc]
        assert raised.value.may_have_happened
        assert [asked.split()[0] for asked in script.asked] == [b"GET", method]


async def test_a_plain_set_is_sent_again_after_a_lost_answer() -> None:
    async with toska_store(http(200, OK), None, http(200, OK)) as (store, script):
        await store.get("key")
        await store.set("key", 1)
        assert [asked.split()[0] for asked in script.asked] == [b"GET", b"PUT", b"PUT"]


async def test_a_set_that_the_server_took_for_a_delete_is_an_error() -> None:
    async with toska_store(http(200, b'{"key":"x:key"}')) as (store, _):
        with pytest.raises(KeyValueError, match="not how a ToskaStore answers"):
            await store.set("key", 1)


@asynccontextmanager
async def redis(*answers: bytes | None) -> AsyncIterator[tuple[KeyValueStore, Script]]:
    """Redis greets first (CLIENT SETINFO), which any answer satisfies; the script is for what comes after."""
    script = Script(*answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            if b"SETINFO" not in await reader.read(65536):
                break
            writer.write(b"+OK\r\n" * 2)
            break
        await script.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    overrides = {"provider": "redis", "redis_connection_string": f"127.0.0.1:{port}", "timeout_seconds": 2}
    try:
        async with open_store("x", {}, **overrides) as store:
            yield store, script
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answer", "is_later"),
    [
        pytest.param(b"-LOADING Redis is loading the dataset in memory\r\n", True, id="loading"),
        pytest.param(b"-MASTERDOWN Link with MASTER is down\r\n", True, id="replica without a primary"),
        pytest.param(b"-BUSY Redis is busy running a script\r\n", True, id="busy"),
        pytest.param(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", False, id="memory full"),
        pytest.param(b"-MOVED 3999 127.0.0.1:6381\r\n", False, id="cluster"),
        pytest.param(b"-NOPERM this user has no permissions\r\n", False, id="no permission"),
        pytest.param(b"-MISCONF Redis is configured to save RDB snapshots\r\n", False, id="disk"),
    ],
)
async def test_what_redis_refuses_is_told_from_what_it_cannot_do_now(answer: bytes, is_later: bool) -> None:
    async with redis(answer) as (store, script):
        with pytest.raises(KeyValueError) as raised:
            await store.set("key", 1)
        assert isinstance(raised.value, KeyValueUnavailableError) is is_later
        sets = [asked for asked in script.asked if b"x:key" in asked]
        assert len(sets) == (4 if is_later else 1)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda store: store.delete("key"), id="delete"),
        pytest.param(lambda store: store.add("key", 1), id="add"),
    ],
)
async def test_a_write_to_redis_whose_answer_was_lost_is_not_sent_again(
    call: Callable[[KeyValueStore], object],
) -> None:
    async with redis(None) as (store, script):
        with pytest.raises(KeyValueUnavailableError) as raised:
            await call(store)  # type: ignore[misc]
        assert raised.value.may_have_happened
        assert len([asked for asked in script.asked if b"x:key" in asked]) == 1

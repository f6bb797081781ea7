"""The embedded store's file: shared by processes, safe from a kill, and honest about what is wrong with it."""

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.wait import eventually

from toska_mesh.errors import ConfigError, KeyValueError, KeyValueUnavailableError
from toska_mesh.sdk.kv.open import open_store
from toska_mesh.sdk.kv.sqlite import SqliteBackend, default_path
from toska_mesh.sdk.kv.store import JsonStore

WRITER = """
import asyncio, sys
from toska_mesh.sdk.kv.open import open_store

async def main(name, path, count):
    async with open_store("shared", {"MESH_KV_SQLITE_PATH": path}, timeout_seconds=30) as store:
        number = 0
        while number < count:
            await store.set(f"{name}:{number:06}", number)
            print(number, flush=True)
            number += 1

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def writer(name: str, path: Path, count: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, name, str(path), str(count)], stdout=subprocess.PIPE, text=True
    )


async def test_processes_that_start_at_once_share_one_new_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "kv.sqlite3"
    processes = [writer(f"w{number}", path, 100) for number in range(4)]
    for process in processes:
        await asyncio.to_thread(process.communicate)
        assert process.returncode == 0
    async with open_store("shared", {"MESH_KV_SQLITE_PATH": str(path)}) as store:
        assert len(await store.list_keys()) == 400


async def test_a_process_that_is_killed_loses_nothing_it_was_told_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "kv.sqlite3"
    with writer("w", path, 10**6) as process:
        assert process.stdout is not None
        for _ in range(200):
            assert await asyncio.to_thread(process.stdout.readline)
        process.kill()
        told = 200 + len(process.stdout.read().split("\n")[:-1])
    async with open_store("shared", {"MESH_KV_SQLITE_PATH": str(path)}) as store:
        found = await store.list("w:", at_most=10**6)
        assert found[:told] == list(range(told))
        assert len(found) <= told + 1  # the one that was stored and not yet told
        await store.set("after", 1)


async def test_another_process_that_holds_the_file_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "kv.sqlite3"
    async with open_store("x", {"MESH_KV_SQLITE_PATH": str(path)}, timeout_seconds=0.5) as store:
        await store.set("key", 1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with asyncio.timeout(5):
                with pytest.raises(KeyValueUnavailableError, match=r"did not answer within 0\.5 s"):
                    await store.set("key", 2)
            other.execute("ROLLBACK")

        async def is_free() -> bool:
            try:
                await store.set("key", 3)
            except KeyValueUnavailableError:
                return False
            return True

        await eventually(is_free)
        assert await store.get("key") == 3


async def test_reading_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "kv.sqlite3"
    async with open_store("x", {"MESH_KV_SQLITE_PATH": str(path)}) as store:
        await store.set("key", 1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await store.get("key") == 1
            assert await store.list_keys() == ["key"]


async def test_a_file_that_is_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kv.sqlite3"
    path.write_text("this is no database, and long enough to be read as one would be" * 20)
    with pytest.raises(ConfigError, match=r"kv\.sqlite3.*cannot be used.*MESH_KV_SQLITE_PATH"):
        async with open_store("x", {"MESH_KV_SQLITE_PATH": str(path)}):
            pass
    assert path.read_text().startswith("this is no database")


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"):
        async with open_store("x", {"MESH_KV_SQLITE_PATH": str(tmp_path / "file" / "kv.sqlite3")}):
            pass


async def test_the_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kv.sqlite3"
    async with open_store("x", {"MESH_KV_SQLITE_PATH": str(path)}):
        pass
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigError, match="newer version"):
        async with open_store("x", {"MESH_KV_SQLITE_PATH": str(path)}):
            pass


async def test_a_table_that_is_gone_is_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "kv.sqlite3"
    async with open_store("x", {"MESH_KV_SQLITE_PATH": str(path)}) as store:
        with closing(sqlite3.connect(path)) as db:
            db.execute("DROP TABLE entries")
        with pytest.raises(KeyValueError, match="no such table"):
            await store.get("key")


async def test_the_default_is_a_file_of_the_user_alone(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    async with open_store("x", environ) as store:
        await store.set("key", 1)
    path = default_path(environ)
    assert path == tmp_path / "toska" / "kv" / "kv.sqlite3"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_what_has_expired_is_swept_out_of_the_file(tmp_path: Path) -> None:
    path, now = tmp_path / "kv.sqlite3", [datetime(2024, 1, 1, tzinfo=UTC)]
    backend = SqliteBackend(path, lambda: now[0])
    await backend.open()
    store = JsonStore(backend, "x")
    for number in range(600):
        await store.set(f"{number}", number, ttl_seconds=60)
    await store.set("kept", 1)
    now[0] += timedelta(seconds=59.999)
    assert await store.get("0") == 0
    now[0] += timedelta(milliseconds=1)
    assert await store.get("0") is None
    assert await store.list_keys() == ["kept"]
    await store.set("one", 1)  # the writes after sweep a bounded number each
    await store.set("two", 2)
    with closing(sqlite3.connect(path)) as db:
        assert sorted(json.loads(json.dumps(db.execute("SELECT key FROM entries").fetchall()))) == [
            ["x:kept"],
            ["x:one"],
            ["x:two"],
        ]
    await store.close()


async def test_a_clock_that_is_set_back_neither_revives_nor_stops_the_sweep(tmp_path: Path) -> None:
    now = [datetime(2024, 1, 2, tzinfo=UTC)]
    backend = SqliteBackend(tmp_path / "kv.sqlite3", lambda: now[0])
    await backend.open()
    store = JsonStore(backend, "x")
    await store.set("key", 1)
    now[0] -= timedelta(days=1)
    await store.set("short", 1, ttl_seconds=1)
    now[0] += timedelta(seconds=11)
    await store.set("other", 1)
    with closing(sqlite3.connect(tmp_path / "kv.sqlite3")) as db:
        assert db.execute("SELECT count(*) FROM entries").fetchone() == (2,)
    await store.close()

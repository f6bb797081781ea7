"""Discovery's memory on disk."""

import asyncio
import contextlib
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from toska_mesh.discovery import store, store_file
from toska_mesh.discovery.known import Record
from toska_mesh.discovery.store import FILE_NAME, Begun, Store, StoreError
from toska_mesh.discovery.store_file import FORMAT
from toska_mesh.discovery.transitions import Announced
from toska_mesh.errors import ConfigError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName

A = InstanceId("a")
NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
RECORD = Record(ServiceName("orders"), A, "10.0.0.1", 80, {"zone": "ü"}, 35, NOW, "orders")
ANNOUNCED = Announced(ServiceName("orders"), A, "10.0.0.1", 80, {"zone": "ü"}, HealthStatus.DEGRADED)
BEGUN = Begun(A, ServiceName("orders"), True, "c-1")


async def test_everything_comes_back(tmp_path: Path) -> None:
    async with Store(tmp_path) as first:
        await first.write(store.save_record(RECORD), store.save_announced(ANNOUNCED), store.save_begun(BEGUN))
    async with Store(tmp_path) as again:
        assert again.remembered == store.Remembered({A: RECORD}, {A: ANNOUNCED}, {A: BEGUN})
        await again.write(store.forget_record(A), store.forget_announced(A), store.forget_begun(A))
    async with Store(tmp_path) as third:
        assert third.remembered == store.Remembered()


async def test_many_writers_at_once_are_all_served(tmp_path: Path) -> None:
    async with Store(tmp_path) as first, asyncio.TaskGroup() as tasks:
        for number in range(200):
            begun = Begun(InstanceId(f"i-{number}"), ServiceName("orders"))
            tasks.create_task(first.write(store.save_begun(begun)))
    async with Store(tmp_path) as again:
        assert len(again.remembered.begun) == 200


async def test_a_write_that_fails_says_so_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    async with Store(tmp_path) as first:
        with pytest.raises(StoreError, match="no such table"):
            await first.write(store.save_record(RECORD), ("INSERT INTO nowhere VALUES (1)", ()))
        await first.write(store.save_begun(BEGUN))
    async with Store(tmp_path) as again:
        assert again.remembered == store.Remembered({}, {}, {A: BEGUN})


async def test_a_folder_that_is_none_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="DISCOVERY_DATA_DIR"):
        async with Store(tmp_path / "file"):
            pass


def set_aside(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if ".unreadable-" in path.name]


def alter(path: Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


async def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path) -> None:
    content = b"this is no database, but it is long enough to look like a header" * 40
    (tmp_path / FILE_NAME).write_bytes(content)
    async with Store(tmp_path) as first:
        assert first.remembered == store.Remembered()
        await first.write(store.save_record(RECORD))
    assert [path.read_bytes() for path in set_aside(tmp_path)] == [content]
    async with Store(tmp_path) as again:
        assert again.remembered.records == {A: RECORD}


OLD_BEGUN = "CREATE TABLE begun (id TEXT PRIMARY KEY, service TEXT NOT NULL, correlation_id TEXT) WITHOUT ROWID;"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(f"DROP TABLE begun; {OLD_BEGUN} PRAGMA user_version=0;", id="older, without a number"),
        pytest.param(f"DROP TABLE begun; {OLD_BEGUN}", id="our number, other columns"),
        pytest.param("DROP TABLE records; PRAGMA user_version=0;", id="a table is missing"),
        pytest.param("CREATE TABLE more (id TEXT);", id="a table too many"),
        pytest.param("PRAGMA user_version=-1;", id="no number of ours"),
        pytest.param("UPDATE records SET metadata = 'not json';", id="a value that is none"),
        pytest.param("UPDATE announced SET status = 77;", id="a status that is none"),
    ],
)
async def test_a_file_of_another_layout_is_moved_aside_with_all_it_holds(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Store(tmp_path) as first:
        await first.write(store.save_record(RECORD), store.save_announced(ANNOUNCED))
    alter(tmp_path / FILE_NAME, change)
    before = (tmp_path / FILE_NAME).read_bytes()
    async with Store(tmp_path) as again:
        assert again.remembered == store.Remembered()
        await again.write(store.save_begun(BEGUN))
    (kept,) = (path for path in set_aside(tmp_path) if not path.name.endswith(("-wal", "-shm")))
    assert len(kept.read_bytes()) == len(before)
    assert [(line.levelname, vars(line)["event"]) for line in caplog.records] == [("ERROR", "store_unreadable")]
    async with Store(tmp_path) as third:
        assert third.remembered.begun == {A: BEGUN}


async def test_a_file_from_before_the_numbers_is_taken_over(tmp_path: Path) -> None:
    async with Store(tmp_path) as first:
        await first.write(store.save_record(RECORD))
    alter(tmp_path / FILE_NAME, "PRAGMA user_version=0;")
    async with Store(tmp_path) as again:
        assert again.remembered.records == {A: RECORD}
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT,)
    assert not set_aside(tmp_path)


async def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with Store(tmp_path) as first:
        await first.write(store.save_record(RECORD))
    alter(tmp_path / FILE_NAME, "DROP TABLE begun; PRAGMA user_version=99;")
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(ConfigError, match=r"format 99, written by a newer version.*up to format 1"):
        async with Store(tmp_path):
            pass
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert not set_aside(tmp_path)


async def test_a_file_that_another_program_holds_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Store(tmp_path):
        pass
    monkeypatch.setattr(store_file, "BUSY_SECONDS", 0.0)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError, match=r"cannot be used: database is locked$"):
            async with Store(tmp_path):
                pass
    assert not set_aside(tmp_path)

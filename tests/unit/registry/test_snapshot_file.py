"""The table on disk."""

import asyncio
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from toska_mesh.aio import Latest
from toska_mesh.model import CatalogSnapshot, Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.registry.consul import SnapshotFile

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def table(count: int = 1, **more: object) -> Mapping[ServiceName, tuple[Instance, ...]]:
    service = ServiceName('orders "ä"')
    return {
        service: tuple(
            Instance(
                service,
                InstanceId(f"o{number}"),
                Endpoint("::1", 80),
                HealthStatus.DEGRADED,
                {"weight": "3"},
                NOW,
                "hot",
                7,
            )
            for number in range(count)
        )
    }


async def save(path: Path, *snapshots: CatalogSnapshot, seconds: float = 5, registry: str = "") -> None:
    catalog = Latest[CatalogSnapshot]()
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(SnapshotFile(path, registry=registry, utcnow=lambda: NOW).keep(catalog))
        for snapshot in snapshots:
            catalog.set(snapshot)
            await asyncio.sleep(seconds)
        keeping.cancel()


async def test_what_was_saved_is_loaded_with_its_age(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.json"
    await save(path, CatalogSnapshot(table(3)))
    saved = SnapshotFile(path, utcnow=lambda: NOW + timedelta(seconds=90)).load()
    assert saved is not None
    assert saved.age_seconds == 90
    assert saved.services == table(3)
    (service,) = saved.services
    assert saved.services[service][0].output == "hot"
    assert saved.services[service][0].registered_at == NOW
    assert [name for name in os.listdir(path.parent) if name != "table.json"] == []
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_stale_table_does_not_replace_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    await save(path, CatalogSnapshot(table(2)), CatalogSnapshot({}, stale_since=3.0))
    saved = SnapshotFile(path).load()
    assert saved is not None
    assert saved.services == table(2)


async def test_many_changes_are_few_writes(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    writes = 0

    class Counting(SnapshotFile):
        def _write(self, body: bytes) -> None:
            nonlocal writes
            writes += 1
            super()._write(body)

    catalog = Latest[CatalogSnapshot]()
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(Counting(path, debounce_seconds=2).keep(catalog))
        for number in range(100):
            catalog.set(CatalogSnapshot(table(number)))
            await asyncio.sleep(0.1)
        await asyncio.sleep(3)
        keeping.cancel()
    assert writes <= 7
    saved = SnapshotFile(path).load()
    assert saved is not None
    assert saved.services == table(99)


async def test_a_disk_that_refuses_does_not_end_the_follower(tmp_path: Path) -> None:
    folder = tmp_path / "file-in-the-way"
    folder.write_text("")
    await save(folder / "table.json", CatalogSnapshot(table()), CatalogSnapshot(table(2)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 99, "saved_at": "2026-01-01T00:00:00+00:00", "services": {}}',
        b'{"format": 1, "saved_at": "yesterday", "services": {}}',
        b'{"format": 1, "saved_at": "2026-01-01T00:00:00+00:00", "services": {"a": [{"id": "x"}]}}',
        b'{"format": 1, "saved_at": "2026-01-01T00:00:00+00:00", "services": []}',
    ],
)
def test_a_file_that_cannot_be_used_is_passed_over(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(body)
    assert SnapshotFile(path).load() is None


async def test_the_table_of_another_registry_is_passed_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "table.json"
    await save(path, CatalogSnapshot(table()), registry="http://here:8500")
    assert SnapshotFile(path, registry="http://there:8500").load() is None
    assert [vars(line)["event"] for line in caplog.records] == ["snapshot_of_another_registry"]
    same = SnapshotFile(path, registry="http://here:8500").load()
    assert same is not None
    assert same.services == table()


async def test_a_table_that_does_not_say_whose_it_is_is_used(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    await save(path, CatalogSnapshot(table()))
    assert SnapshotFile(path, registry="http://here:8500").load() is not None


def test_no_file_is_no_table(tmp_path: Path) -> None:
    assert SnapshotFile(tmp_path / "none.json").load() is None

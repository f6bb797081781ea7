"""What the monitor says of itself: ready with the first catalog, degraded while the registry is away."""

import asyncio
from types import SimpleNamespace
from typing import Any

from toska_mesh.admin import Health
from toska_mesh.aio import Latest
from toska_mesh.healthmonitor.app import SelfWatch
from toska_mesh.healthmonitor.metrics import MonitorMetrics
from toska_mesh.messaging.api import SinkState
from toska_mesh.model import CatalogSnapshot
from toska_mesh.telemetry import new_metrics_registry


async def test_ready_as_soon_as_the_first_catalog_is_there() -> None:
    health = Health(awaited=("catalog",))
    catalog = Latest[CatalogSnapshot]()
    board: Any = SimpleNamespace(is_leader=False)
    sink: Any = SimpleNamespace(state=SinkState(is_enabled=False))
    watch = SelfWatch(health, MonitorMetrics(new_metrics_registry("test")), catalog, board, sink)
    loop = asyncio.get_running_loop()
    task = loop.create_task(watch.run())
    await asyncio.sleep(2.25)
    assert not health.is_ready
    catalog.set(CatalogSnapshot({}))
    await asyncio.sleep(0.01)
    assert health.is_ready
    task.cancel()

"""After a storm of everything the books are balanced: nothing in flight, nobody waiting, no growing memory."""

import asyncio
import random

from tests.integration.faults.mesh import Mesh, in_thread
from tests.support.load import Client, Load
from tests.support.wait import eventually

PATHS = (
    "/",
    "/",
    "/",
    "/status/503",
    "/status/404",
    "/reset",
    "/truncate",
    "/slow/0.01",
    "/bytes/200000",
    "/events/3/0.001",
)


async def _leave_early(mesh: Mesh, count: int, rng: random.Random) -> None:
    for _ in range(count):
        client = Client(mesh.port)
        try:
            await client.connect()
            assert client.writer is not None
            path = rng.choice(("/slow/1", "/events/100/0.01", "/bytes/3000000", "/stall"))
            client.writer.write(f"GET {mesh.path}{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await asyncio.sleep(rng.random() * 0.02)
        finally:
            client.close()


async def _storm(mesh: Mesh, requests: int, seconds: float, rng: random.Random) -> int:
    loads = [
        Load(mesh.port, f"{mesh.path}{path}", method, connections=1, pause_seconds=0, most_requests=requests // 20)
        for path in PATHS
        for method in ("GET", "POST")
    ]
    async with asyncio.TaskGroup() as tasks:
        for load in loads:
            load.is_fine = lambda answer: True
            tasks.create_task(load.run(seconds))
        tasks.create_task(_leave_early(mesh, requests // 50, rng))
    return sum(load.figures.sent for load in loads)


async def test_after_thousands_of_mixed_requests_nothing_is_left(mesh: Mesh) -> None:
    backends = [mesh.backend(name) for name in ("one", "two", "three")]
    gateway = mesh.start(
        own=True,
        GATEWAY_BREAKER_FAILURE_THRESHOLD=20,
        GATEWAY_RETRY_BASE_MS=1,
        GATEWAY_RETRY_JITTER_MS=1,
        GATEWAY_BREAKER_OPEN_SECONDS=0.3,
        GATEWAY_IDLE_TIMEOUT_SECONDS=2,
    )
    rng = random.Random(7)
    await _storm(mesh, 2000, 1.5, rng)
    before = await in_thread(gateway.memory_bytes)
    sent = await _storm(mesh, 10_000, 5.0, rng)
    assert sent > 1000
    backends[0].pause()
    async with asyncio.TaskGroup() as tasks:  # and some that are left waiting
        for _ in range(20):
            tasks.create_task(_leave_early(mesh, 5, rng))
    backends[0].resume()
    # A client that has closed its side may still read (RFC 9112 section 9.6): on an answer that stands still, that it
    # is gone shows only in the end.
    await eventually(lambda: mesh.metrics()["toska_gateway_requests_in_flight"] == 0)
    for item in mesh.instances().values():
        assert (item["inFlight"], item["waiting"]) == (0, 0), item
    await eventually(lambda: mesh.metrics()["toska_gateway_client_connections"] == 0)
    assert await in_thread(gateway.memory_bytes) - before < 24 * 2**20
    assert not [event for event in gateway.events() if event["level"] == "error"]
    async with mesh.load(connections=4, is_fine=lambda answer: True).running():
        await eventually(lambda: all(item["breaker"] == "closed" for item in mesh.instances().values()))
    (await mesh.load(connections=4).run(0.3)).assert_no_failure()

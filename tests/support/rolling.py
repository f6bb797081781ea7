"""Rolling restarts of a service under load: processes that join through the SDK and are replaced two at a time.

Every request has to be answered: GETs that take a while, and POSTs, which nobody may send twice.
"""

import asyncio
import hashlib
import itertools
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.support.load import Figures, Load
from tests.support.process import ServerProcess, http_get
from tests.support.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
SERVICE = "rolling"
INSTANCES = 4
AT_A_TIME = 2
KINDS = ("aiohttp", "asgi")


class Ports(Protocol):
    """Where the mesh is (`bench.support.mesh.Mesh`)."""

    @property
    def grpc_port(self) -> int: ...
    @property
    def gateway_port(self) -> int: ...
    @property
    def gateway_admin_port(self) -> int: ...


class Member(ServerProcess):
    """One instance: the process of a service, on any free port."""

    ready_seconds = 60.0
    stop_seconds = 60.0

    def __init__(self, instance_id: str, kind: str, grpc_port: int) -> None:
        super().__init__(instance_id)
        self.instance_id = instance_id
        self._kind = kind
        self._grpc_port = grpc_port

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "tests.support.rolling_app", self._kind]

    def environment(self) -> Mapping[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "MESH_SERVICE_NAME": SERVICE,
            "MESH_SERVICE_ID": self.instance_id,
            "MESH_SERVICE_HOST": "127.0.0.1",
            "MESH_SERVICE_PORT": "0",
            "MESH_DISCOVERY_ADDRESS": f"127.0.0.1:{self._grpc_port}",
        }

    def is_ready(self) -> bool:
        return True  # whether it serves is the gateway's word, see `Fleet.until_routed`


class Fleet:
    """The instances of the service that run now, the oldest first."""

    def __init__(self, mesh: Ports) -> None:
        self._mesh = mesh
        self._numbers = itertools.count(1)
        self._stack = ExitStack()
        self._threads = ThreadPoolExecutor(2 * AT_A_TIME)
        self.members: list[Member] = []

    def close(self) -> None:
        self._stack.close()
        self._threads.shutdown()

    async def grow(self, count: int) -> None:
        """Start so many more; returns when they are started, which is before they serve."""
        for _ in range(count):
            number = next(self._numbers)
            member = Member(f"{SERVICE}-{number}", KINDS[number % len(KINDS)], self._mesh.grpc_port)
            self._stack.callback(member.close)
            await asyncio.to_thread(member.start)
            self.members.append(member)

    async def replace(self, meanwhile: Callable[[], Any] | None = None) -> None:
        """SIGTERM to the oldest, and as many new ones beside them; `meanwhile` happens between the two."""
        leaving, self.members = self.members[:AT_A_TIME], self.members[AT_A_TIME:]
        for member in leaving:
            member.terminate()
        if meanwhile is not None:
            await asyncio.to_thread(meanwhile)
        await self.grow(AT_A_TIME)
        await self.until_routed()
        loop = asyncio.get_running_loop()
        for member in leaving:
            # `stop` would signal it again, which means "leave at once".
            code = await loop.run_in_executor(self._threads, member.wait)
            assert code == 0, f"{member.instance_id} ended with {code}:\n{member.tail()}"
            assert "Traceback" not in member.log_text(), member.log_text()
            member.close()

    async def until_routed(self) -> None:
        """All members get requests."""
        wanted = {member.instance_id for member in self.members}

        def routed() -> bool:
            url = f"http://127.0.0.1:{self._mesh.gateway_admin_port}/instances?service={SERVICE}"
            status, body = http_get(url)
            return status == 200 and wanted <= {item["id"] for item in json.loads(body) if item["isEligible"]}

        await eventually(routed, 60, 0.05, what=f"the gateway routes to {wanted}")


def posts(seed: int) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Bodies of up to 100 kB: more than is kept for another try, now and then."""
    rng = random.Random(seed)
    while True:
        body = rng.randbytes(rng.choice((10, 1_000, 100_000)))
        yield body, {"X-Expected": hashlib.sha256(body).hexdigest()}


@asynccontextmanager
async def mixed_load(port: int, connections: int = 4, pause_seconds: float = 0.01) -> Any:
    """GETs and POSTs side by side, each on its own connections; gives both figures."""

    common: dict[str, Any] = {
        "connections": connections,
        "pause_seconds": pause_seconds,
        "most_requests": 10**7,
        "timeout_seconds": 60.0,
    }
    loads = [
        Load(port, f"/api/{SERVICE}/work?ms=0", **common),
        Load(port, f"/api/{SERVICE}/work?ms=150", **common),
        Load(port, f"/api/{SERVICE}/work", method="POST", bodies=posts(1), **common),
    ]
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(load.running()) for load in loads]


def failures(figures: Sequence[Figures]) -> list[str]:
    return [failure for one in figures for failure in one.failures]

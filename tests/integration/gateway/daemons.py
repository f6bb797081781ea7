"""The gateway as a process of its own, in front of one instance of `hello`, under constant load."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from tests.support.ports import free_port
from tests.support.servers import DaemonProcess, RegistryServer, http_get

from toska_mesh.model import InstanceId, ServiceName
from toska_mesh.registry.api import Registration
from toska_mesh.registry.consul import ConsulClient, ConsulOptions, ConsulRegistry


class Gateway:
    """One process, or one after the other, behind the same ports."""

    def __init__(self, daemon: DaemonProcess, port: int, admin_port: int) -> None:
        self.daemon = daemon
        self.port = port
        self.admin_port = admin_port
        self.last_head = b""
        """Of the newest answer under load."""
        self.asked = 0
        """Requests under load that were answered."""

    def admin(self, path: str) -> Any:
        status, body = http_get(f"http://127.0.0.1:{self.admin_port}{path}")
        assert status == 200, body
        return json.loads(body)

    def serving(self) -> list[dict[str, Any]]:
        return [worker for worker in self.admin("/workers") if worker["isReady"] and not worker["isLeaving"]]

    async def load(self, stop: asyncio.Event, lengths: random.Random | None = None) -> Counter[str]:
        """Keep-alive clients that obey `Connection: close`, until told to stop; counts statuses and failures.

        `lengths`: paths of several lengths.
        """
        seen: Counter[str] = Counter()

        async def client() -> None:
            reader = writer = None
            while not stop.is_set():
                try:
                    if writer is None:
                        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    length = lengths.choice((1, 100, 3000)) if lengths is not None else 1
                    writer.write(b"GET /api/hello/%b HTTP/1.1\r\nHost: mesh\r\n\r\n" % (b"x" * length))
                    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                    size = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
                    await reader.readexactly(int(size.split(b":")[1]))
                    seen[head[9:12].decode()] += 1
                    self.last_head = head
                    self.asked += 1
                    if b"connection: close" in head.lower():
                        writer.close()
                        writer = None
                except (OSError, EOFError, TimeoutError) as exc:
                    seen[type(exc).__name__] += 1
                    writer = None
            if writer is not None:
                writer.close()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(client())
        return seen


@pytest.fixture
async def hello(registry_factory: Callable[..., RegistryServer]) -> Any:
    registry = await asyncio.to_thread(registry_factory)
    app = web.Application()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with ConsulClient(ConsulOptions(address=registry.url)) as client:
        await ConsulRegistry(client).register(
            Registration(
                ServiceName("hello"),
                InstanceId("hello-1"),
                "127.0.0.1",
                runner.addresses[0][1],
                {"scheme": "http"},
                3600,
            )
        )
    yield registry
    await runner.cleanup()


@pytest.fixture
def start(hello: RegistryServer) -> Iterator[Callable[..., Gateway]]:
    started: list[DaemonProcess] = []

    def make(beside: Gateway | None = None, **env: str) -> Gateway:
        """Two workers unless told otherwise; `beside` another one, on its ports, without waiting."""
        port, admin_port = (free_port(), free_port()) if beside is None else (beside.port, beside.admin_port)
        daemon = DaemonProcess(
            "toska-gateway",
            {
                "CONSUL_ADDRESS": hello.url,
                "GATEWAY_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(port),
                "GATEWAY_ADMIN_PORT": str(admin_port),
                "GATEWAY_WORKERS": "2",
                "GATEWAY_RATE_LIMIT_ENABLED": "false",
                "GATEWAY_DRAIN_SECONDS": "4",
                **env,
            },
            f"http://127.0.0.1:{admin_port}/health/ready" if beside is None else None,
        )
        started.append(daemon)
        daemon.__enter__()
        return Gateway(daemon, port, admin_port)

    yield make
    for daemon in started:
        daemon.close()

"""What one proxied request costs in our own code: no sockets, no kernel, everything at its default on.

A client connection and an upstream connection are fed bytes by hand over transports that only count. Under
`valgrind --tool=callgrind` or `perf stat -e instructions:u` the result repeats, whatever else the machine is doing.

    python -m bench.micro.exchange --requests 50000 [--profile]
"""

import argparse
import asyncio
import cProfile
import gc
import os
import pstats
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from toska_mesh.admin import Health
from toska_mesh.gateway.accesslog import AccessLog
from toska_mesh.gateway.client import ClientConnection
from toska_mesh.gateway.local import health_handlers
from toska_mesh.gateway.proxy import Proxy
from toska_mesh.gateway.settings import GatewaySettings
from toska_mesh.gateway.upstream import UpstreamConnection
from toska_mesh.model import CatalogSnapshot, Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.router import RouteTable
from toska_mesh.telemetry.lines import LineWriter

REQUEST = (
    b"GET /api/hello/items/1?x=2 HTTP/1.1\r\nHost: localhost:5000\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
    b"Accept: application/json\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en-GB,en;q=0.8\r\n"
    b"Cache-Control: no-cache\r\nCookie: session=0123456789abcdef0123456789abcdef\r\n"
    b"Referer: http://localhost/index.html\r\nX-Custom: bench\r\n\r\n"
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Fri, 20 Nov 2026 18:00:00 GMT\r\n"
    b"Content-Type: application/json\r\n"
    b'Content-Length: 37\r\nConnection: keep-alive\r\n\r\n{"items":[1,2,3],"total":3,"ok":true}'
)


class CountingTransport(asyncio.Transport):
    """Takes what is written and forgets it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 40000)})
        self.written = 0

    def write(self, data: Any) -> None:
        self.written += len(data)

    def writelines(self, parts: Any) -> None:
        for part in parts:
            self.written += len(part)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


@asynccontextmanager
async def relaying() -> AsyncIterator[tuple[Callable[[int], None], CountingTransport]]:
    """Gives what relays so many requests, and the transport that their answers go to."""
    settings = GatewaySettings(rate_limit_permits=10**9)
    sink = os.open(os.devnull, os.O_WRONLY)
    writer = LineWriter(sink)
    async with asyncio.TaskGroup() as tasks:
        proxy = Proxy(settings, tasks, access_log=AccessLog(writer))
        proxy.local = health_handlers(Health())
        name = ServiceName("hello")
        instance = Instance(
            name, InstanceId("hello-1"), Endpoint("127.0.0.1", 9), HealthStatus.HEALTHY, {"scheme": "http"}
        )
        proxy.use_table(RouteTable.build(CatalogSnapshot({name: (instance,)}), make_target=proxy.make_upstream))
        client = ClientConnection(proxy)
        to_client = CountingTransport()
        client.connection_made(to_client)
        (upstream,) = proxy.upstreams()
        connection = UpstreamConnection(upstream, proxy)
        connection.connection_made(CountingTransport())
        upstream.give_back(connection, proxy.clock())
        feed, answer = client.data_received, connection.data_received

        def relay(count: int) -> None:
            for _ in range(count):
                feed(REQUEST)
                answer(RESPONSE)

        try:
            yield relay, to_client
        finally:
            writer.close()
            os.close(sink)


async def run(requests: int, profile: bool) -> None:
    async with relaying() as (relay, to_client):
        relay(1000)
        gc.collect()
        gc.freeze()
        profiler = cProfile.Profile() if profile else None
        if profiler:
            profiler.enable()
        began = time.process_time()
        relay(requests)
        spent = time.process_time() - began
        if profiler:
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
        sent = to_client.written / (requests + 1000)
        print(f"{spent / requests * 1e6:.2f} µs of CPU per request, {sent:.0f} bytes to the client each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    uvloop.run(run(arguments.requests, arguments.profile))


if __name__ == "__main__":
    main()

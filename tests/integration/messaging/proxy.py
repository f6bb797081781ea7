"""A TCP proxy in front of the broker that can hold traffic back, cut it, speak TLS, and raise the broker's alarm."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK = 65536


class Proxy:
    """`hold` keeps what the client says from the broker (a broker that stopped reading) until `pass_on`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open = asyncio.Event()
        self._open.set()
        self._clients: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.port = 0

    def hold(self) -> None:
        self._open.clear()

    def pass_on(self) -> None:
        self._open.set()

    def cut(self) -> None:
        """Reset every connection."""
        for client in tuple(self._clients):
            client.transport.abort()

    def block(self, reason: bytes = b"low on memory") -> None:
        """Send `connection.blocked` as RabbitMQ does in an alarm; the stream must be quiet (between two frames)."""
        self._inject(struct.pack(">HHB", 10, 60, len(reason)) + reason)

    def unblock(self) -> None:
        self._inject(struct.pack(">HH", 10, 61))

    def _inject(self, method: bytes) -> None:
        for client in self._clients:
            client.write(struct.pack(">BHL", 1, 0, len(method)) + method + b"\xce")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._clients.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
            try:
                async with asyncio.TaskGroup() as tasks:
                    answers = tasks.create_task(self._copy(upstream_reader, writer, holding=False))
                    await self._copy(reader, upstream_writer, holding=True)
                    answers.cancel()
            except* OSError:
                pass
            finally:
                upstream_writer.close()
        self._clients.discard(writer)
        writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, holding: bool) -> None:
        while chunk := await reader.read(_CHUNK):
            if holding:
                await self._open.wait()
            writer.write(chunk)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def proxying(host: str, port: int, tls: ssl.SSLContext | None = None, own_port: int = 0) -> AsyncIterator[Proxy]:
    """Listen on `own_port` (0: any) of loopback for the length of the block."""
    proxy = Proxy(host, port)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await proxy.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", own_port, ssl=tls)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)

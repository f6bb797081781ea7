"""A load of HTTP/1.1 requests over keep-alive connections that counts exactly what happened to each of them.

Bounded in time and number. A request counts as failed when it was sent and no whole answer came, or when the answer's
status is none of the expected. A connection that the server closed *between* two requests is no failure: the client
sees the end before it sends, and connects anew.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Answer:
    """One answer that arrived whole."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def instance(self) -> str:
        return self.fields.get("x-instance", "")


@dataclass(slots=True)
class Figures:
    """What the load saw; may be read while it runs."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    instances: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    unsent: int = 0
    """Requests that were never sent because no connection could be had."""
    connections: int = 0
    seconds: list[float] = field(default_factory=list)
    """Durations, in the order of completion."""
    started: list[float] = field(default_factory=list)
    """Moments at which those requests were sent, on the loop's clock."""

    def slowest(self, since: float = 0.0) -> float:
        """The longest duration among requests sent from that moment on."""
        return max((took for took, at in zip(self.seconds, self.started, strict=True) if at >= since), default=0.0)

    def assert_no_failure(self) -> None:
        assert not self.failures, f"{len(self.failures)} of {self.sent} failed: {Counter(self.failures)}"
        assert self.sent, "the load sent nothing"

    def quantile(self, fraction: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else 0.0


class Client:
    """One keep-alive connection. Raises OSError or EOFError when an answer does not arrive whole."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.dials = 0

    async def connect(self) -> None:
        """A connection that is open as far as one can see."""
        if self.reader is not None and (self.reader.at_eof() or self.reader.exception() is not None):
            self.close()
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=2**20)
            self.dials += 1

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        timeout_seconds: float = 60.0,
    ) -> Answer:
        async with asyncio.timeout(timeout_seconds):
            await self.connect()
            return await self.exchange(method, path, body, headers)

    async def exchange(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        """Send on the open connection and read the whole answer."""
        assert self.reader is not None
        assert self.writer is not None
        lines = [f"{method} {path} HTTP/1.1", "Host: gateway.test"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body or method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(body)}")
        try:
            self.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
            answer = await self.read(method)
        except BaseException:
            self.close()
            raise
        if answer.fields.get("connection", "").lower() == "close":
            self.close()
        return answer

    async def read(self, method: str) -> Answer:
        """The next answer on the open connection, to a request with that method."""
        reader = self.reader
        assert reader is not None
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head[:-4].split("\r\n")
            status = int(first.split(" ")[1])
            if status >= 200:
                break
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if method == "HEAD" or status in (204, 304):
            return Answer(status, fields, b"")
        if "content-length" in fields:
            return Answer(status, fields, await reader.readexactly(int(fields["content-length"])))
        assert fields.get("transfer-encoding") == "chunked", fields
        body = b""
        while True:
            size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
            body += (await reader.readexactly(size + 2))[:-2]
            if not size:
                return Answer(status, fields, body)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None


@dataclass(slots=True)
class Load:
    """What to send. Every connection sends one request after the other, with `pause_seconds` between them."""

    port: int
    path: str
    method: str = "GET"
    connections: int = 8
    pause_seconds: float = 0.002
    most_requests: int = 20_000
    timeout_seconds: float = 20.0
    is_fine: Callable[[Answer], bool] = lambda answer: answer.status == 200
    new_connections: bool = False
    """A connection for every request."""
    may_be_refused: bool = False
    """The server goes away: connections that cannot be made are not sent anything and end the worker."""
    bodies: Iterator[tuple[bytes, dict[str, str]]] | None = None
    figures: Figures = field(default_factory=Figures)

    async def run(self, seconds: float) -> Figures:
        """Send for so long; gives the figures."""
        async with self.running():
            await asyncio.sleep(seconds)
        return self.figures

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Figures]:
        """Send while the body of the `with` runs; what is under way at its end is finished."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.connections):
                tasks.create_task(self._work(stop))
            try:
                yield self.figures
            finally:
                stop.set()

    async def _work(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        figures, client = self.figures, Client(self.port)
        try:
            while not stop.is_set() and figures.sent < self.most_requests:
                before = client.dials
                try:
                    async with asyncio.timeout(self.timeout_seconds):
                        await client.connect()
                except (OSError, TimeoutError) as error:
                    figures.unsent += 1
                    if self.may_be_refused:
                        return
                    figures.failures.append(f"no connection: {type(error).__name__}")
                    await asyncio.sleep(0.05)
                    continue
                figures.connections += client.dials - before
                body, headers = next(self.bodies) if self.bodies is not None else (b"", {})
                figures.sent += 1
                started = loop.time()
                try:
                    async with asyncio.timeout(self.timeout_seconds):
                        answer = await client.exchange(self.method, self.path, body, headers)
                except (OSError, EOFError, TimeoutError, ValueError) as error:
                    figures.failures.append(f"no whole answer: {type(error).__name__} {error}")
                    continue
                figures.seconds.append(loop.time() - started)
                figures.started.append(started)
                figures.statuses[answer.status] += 1
                figures.instances[answer.instance] += 1
                if not self.is_fine(answer):
                    figures.failures.append(f"{answer.status} {answer.body[:200]!r}")
                if self.new_connections:
                    client.close()
                if self.pause_seconds:
                    await asyncio.sleep(self.pause_seconds)
        finally:
            client.close()

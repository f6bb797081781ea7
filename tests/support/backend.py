"""A small fast HTTP server in a process of its own: an instance of a service that tests can break in many ways.

Run as a module it serves; imported it gives `Backend`, the process as an object. Every answer names the instance in
`X-Instance`. Faults are switched on for all requests through `/control/mode`, or asked for by one request's path.

    /slow/<seconds>             answers after that time
    /status/<code>              answers with that status
    /reset                      resets the connection instead of answering
    /bytes/<count>[/<seconds>]  that many bytes, spread over that time
    /events/<count>/<seconds>   server-sent events, one after each pause
    /stall                      the head and a part of the body, and then nothing any more
    /truncate                   the head, a part of the body, and a reset
    anything else               JSON about the request

`X-Execution: <id>` on a request is counted when the request is complete; `/control/state` tells how often.
"""

import argparse
import asyncio
import hashlib
import json
import signal
import socket
import struct
import sys
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import httptools
import uvloop
from tests.support.ports import free_port
from tests.support.process import ServerProcess, http_get

MODES = ("ok", "hang", "reset", "truncate", "status", "slow")
HEALTHY_PATH = "/health"


@dataclass
class State:
    """What the instance is told to do, and what it has seen."""

    instance: str
    mode: str = "ok"
    value: str = ""
    covers_health: bool = True
    """Whether the mode also holds for the health path."""
    requests: int = 0
    executions: Counter[str] = field(default_factory=Counter)
    connections: int = 0

    def as_json(self) -> bytes:
        return json.dumps(
            {
                "instance": self.instance,
                "mode": self.mode,
                "requests": self.requests,
                "connections": self.connections,
                "executions": self.executions,
            }
        ).encode()


class Connection(asyncio.Protocol):
    """One connection; a request at a time."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.transport: asyncio.Transport
        self.parser = httptools.HttpRequestParser(self)
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.state.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.state.connections -= 1
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_message_begin(self) -> None:
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.digest = hashlib.sha256()
        self.length = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self.headers.get(b"expect") == b"100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self.digest.update(data)
        self.length += len(data)

    def on_message_complete(self) -> None:
        state = self.state
        url = urlsplit(self.target.decode("latin-1"))
        if url.path.startswith("/control/"):
            self._control(url.path, dict(parse_qsl(url.query)))
            return
        is_health = url.path == HEALTHY_PATH
        if not is_health:
            state.requests += 1
            execution = self.headers.get(b"x-execution")
            if execution:
                state.executions[execution.decode()] += 1
        mode, value = (state.mode, state.value) if state.covers_health or not is_health else ("ok", "")
        if mode == "ok" and not is_health:
            first, *rest = url.path.strip("/").split("/")
            if first == "slow":
                mode, value = "slow", rest[0]
            elif first == "status":
                mode, value = "status", rest[0]
            elif first in ("reset", "stall", "truncate"):
                mode = first
            elif first in ("bytes", "events"):
                self._start(self._bytes(rest) if first == "bytes" else self._events(rest))
                return
        self._act(mode, value)

    def _act(self, mode: str, value: str) -> None:
        if mode == "ok":
            self._answer(200)
        elif mode == "status":
            self._answer(int(value))
        elif mode == "slow":
            self._start(self._answer_later(float(value)))
        elif mode == "reset":
            self._reset()
        elif mode in ("stall", "truncate"):
            self.transport.write(self._head(200, b"Content-Length: 100000\r\n") + b"x" * 1000)
            if mode == "truncate":
                asyncio.get_running_loop().call_later(0.02, self._reset)
        # "hang" is silence

    def _control(self, path: str, query: dict[str, str]) -> None:
        state = self.state
        if path == "/control/reset":
            state.instance = query["instance"]
            state.mode = "ok"
            state.requests = 0
            state.executions.clear()
        elif path == "/control/mode":
            state.mode = query["mode"]
            state.value = query.get("value", "")
            state.covers_health = query.get("health", "1") == "1"
        body = state.as_json()
        self.transport.write(self._head(200, b"Content-Length: %d\r\n" % len(body)) + body)

    def _answer(self, status: int) -> None:
        body = json.dumps(
            {
                "instance": self.state.instance,
                "method": self.parser.get_method().decode(),
                "target": self.target.decode("latin-1"),
                "sha256": self.digest.hexdigest(),
                "length": self.length,
            }
        ).encode()
        head = self._head(status, b"Content-Length: %d\r\nContent-Type: application/json\r\n" % len(body))
        self.transport.write(head if self.parser.get_method() == b"HEAD" else head + body)
        if not self.parser.should_keep_alive():
            self.transport.close()

    def _head(self, status: int, fields: bytes) -> bytes:
        return b"HTTP/1.1 %d Said\r\nX-Instance: %b\r\n%b\r\n" % (status, self.state.instance.encode(), fields)

    def _reset(self) -> None:
        raw = socket.socket(fileno=self.transport.get_extra_info("socket").fileno())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.detach()
        self.transport.abort()

    def _start(self, work: Any) -> None:
        self.task = asyncio.get_running_loop().create_task(work)

    async def _answer_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._answer(200)

    async def _bytes(self, arguments: list[str]) -> None:
        count = int(arguments[0])
        seconds = float(arguments[1]) if len(arguments) > 1 else 0.0
        self.transport.write(self._head(200, b"Content-Length: %d\r\n" % count))
        pieces = max(1, int(seconds / 0.05))
        sent = 0
        for piece in range(1, pieces + 1):
            if seconds:
                await asyncio.sleep(seconds / pieces)
            upto = count * piece // pieces
            self.transport.write(b"y" * (upto - sent))
            sent = upto

    async def _events(self, arguments: list[str]) -> None:
        self.transport.write(self._head(200, b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"))
        for number in range(int(arguments[0])):
            await asyncio.sleep(float(arguments[1]))
            event = b"data: %d\n\n" % number
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.transport.write(b"0\r\n\r\n")


class Backend(ServerProcess):
    """The process. `pause` freezes it, `kill` kills it, `mode` tells it how to behave."""

    def __init__(self, instance: str, port: int | None = None) -> None:
        super().__init__(f"backend-{instance}")
        self.instance = instance
        self.port = port or free_port()

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "tests.support.backend", "--instance", self.instance, "--port", str(self.port)]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(Path(__file__).parents[2])}

    def is_ready(self) -> bool:
        return http_get(f"http://127.0.0.1:{self.port}/control/state")[0] == 200

    def mode(self, mode: str, value: object = "", *, health: bool = True) -> None:
        """One of `MODES`; `health=False` leaves the health path well."""
        assert mode in MODES, mode
        http_get(f"http://127.0.0.1:{self.port}/control/mode?mode={mode}&value={value}&health={int(health)}")

    def reset(self, instance: str) -> None:
        """Make it a new instance: another name, no memory, no faults."""
        self.instance = instance
        http_get(f"http://127.0.0.1:{self.port}/control/reset?instance={instance}")

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/control/state", timeout=5) as answer:
            return cast(dict[str, Any], json.load(answer))

    @property
    def requests(self) -> int:
        """Requests of the service that reached it."""
        return int(self.state()["requests"])


async def serve(instance: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    state = State(instance)
    server = await loop.create_server(lambda: Connection(state), "127.0.0.1", port, backlog=1024)
    async with server:
        await stop.wait()


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--instance", required=True)
    options.add_argument("--port", type=int, required=True)
    chosen = options.parse_args()
    uvloop.run(serve(chosen.instance, chosen.port))

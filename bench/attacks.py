"""What hostile clients and instances cost the gateway: memory above all, and what somebody else notices of it.

Each attack meets a fresh gateway process with a registry, an instance and one well-behaved client beside it, which asks
on a kept connection and on new ones. Timeouts are shortened, so that an attack that only a timeout ends does end here;
everything else is at its default, except that the rate limit is off, as it would end most of them at once, and that
bodies have a least rate.

    python -m bench.attacks --seconds 4
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import socket
import ssl
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import orjson
import trustme
import uvloop
from tests.support.ports import free_port
from tests.support.servers import DaemonProcess, RegistryServer

from bench.support.results import percentiles, save

ATTACKER = "127.0.0.66"
INNOCENT = "127.0.0.1"
SHORT = {
    "GATEWAY_HEADER_TIMEOUT_SECONDS": "2",
    "GATEWAY_IDLE_TIMEOUT_SECONDS": "2",
    "GATEWAY_KEEP_ALIVE_SECONDS": "2",
    "GATEWAY_MIN_BYTES_PER_SECOND": "240",
}
AFTER_SECONDS = 2.0
"""When the memory is looked at once more: time for what lingers to go."""

PAUSE_SECONDS = 0.01
HEAD = b" HTTP/1.1\r\nHost: shop.example\r\n"
POST = b"POST /api/evil/sink" + HEAD
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
HEALTH = b"GET /health" + HEAD + b"\r\n"
SMALL = b"GET /api/hello/small" + HEAD + b"\r\n"


# -- the instance


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection to the instance: what is asked for decides how it misbehaves."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1]
            if path in (b"/small", b"*"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            elif path == b"/sink":
                while await reader.read(65536):
                    pass
                break
            elif path == b"/deaf":
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
                await asyncio.sleep(3600)
            else:
                first, again = ENDLESS[path]
                writer.write(first)
                while True:
                    writer.write(again)
                    await writer.drain()
    writer.close()


ENDLESS = {
    b"/stream": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n", bytes(65536)),
    b"/interim": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 10),
    b"/head": (b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"a" * 1000 + b"\r\n"),
    b"/extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=", b"a" * 4096),
    b"/trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-More: " + b"a" * 1000 + b"\r\n"),
    b"/chat": (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n", bytes(65536)),
}


def instance_process(pipe: Connection) -> None:
    async def main() -> None:
        server = await asyncio.start_server(serve_one, "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.sleep(3600)

    uvloop.run(main())


# -- the innocent client


def innocent_process(pipe: Connection, port: int, over_tls: bool) -> None:
    """Asks until told to stop; then tells latencies in milliseconds and what went wrong."""
    latencies: list[float] = []
    failures: Counter[str] = Counter()
    tls = unverified() if over_tls else None

    async def ask(kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]], again: bool) -> None:
        began = time.perf_counter()
        async with asyncio.timeout(5):
            if not kept:
                kept.append(await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=(INNOCENT, 0)))
            reader, writer = kept[0]
            writer.write(SMALL)
            head = await reader.readuntil(b"\r\n\r\n")
            status = head.split(b" ")[1].decode()
            if status != "200":
                failures[status] += 1
                kept.pop()[1].close()
                return
            await reader.readexactly(2)
        latencies.append(1000 * (time.perf_counter() - began))
        if not again:
            kept.pop()[1].close()

    async def main() -> None:
        kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        fresh: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        while not pipe.poll():
            for connections, again in ((kept, True), (fresh, False)):
                try:
                    await ask(connections, again)
                except (OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
                    failures[type(exc).__name__] += 1
                    for _, writer in connections:
                        writer.close()
                    connections.clear()
            await asyncio.sleep(PAUSE_SECONDS)

    uvloop.run(main())
    pipe.recv()
    pipe.send((latencies, failures))


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# -- attackers


@dataclass
class Field:
    """Where an attack takes place, and what came of it."""

    port: int
    until: float
    """When it is over, on the monotonic clock."""
    sent: int = 0
    received: int = 0
    opened: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    """How the gateway ended connections: the status that it gave, `closed`, `reset`."""
    lasted: list[float] = field(default_factory=list)
    """Seconds until it did."""


class Attacker:
    """One hostile connection: what it does is up to the attack, how it ends is noted."""

    def __init__(self, place: Field) -> None:
        self.place = place
        self.loop = asyncio.get_running_loop()
        self.raw = socket.socket()
        self.raw.setblocking(False)
        self.answers = b""

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.place.until

    async def connect(self, receive_buffer: int = 0) -> None:
        if receive_buffer:
            self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.raw.bind((ATTACKER, 0))
        await self.loop.sock_connect(self.raw, ("127.0.0.1", self.place.port))
        self.place.opened += 1

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.raw, data)
        self.place.sent += len(data)

    async def read(self, size: int = 65536) -> bytes:
        """Raises ConnectionAbortedError at the end of the connection."""
        data = await self.loop.sock_recv(self.raw, size)
        self.place.received += len(data)
        self.answers = (self.answers + data)[-4096:]
        if not data:
            raise ConnectionAbortedError
        return data

    async def read_on(self) -> None:
        while True:
            await self.read()

    async def pour(self, data: bytes, pause_seconds: float = 0.0) -> None:
        """Send the same again and again; what comes is read beside."""

        async def send() -> None:
            while True:
                await self.send(data)
                await asyncio.sleep(pause_seconds)

        sending = self.loop.create_task(send())
        try:
            await self.read_on()
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await sending

    def verdict(self) -> str:
        """The last status that was read."""
        at = self.answers.rfind(b"HTTP/1.1 ")
        return self.answers[at + 9 : at + 12].decode("latin-1") if at >= 0 else ""


Deed = Callable[[Attacker], Awaitable[None]]


async def attack_once(place: Field, deed: Deed) -> None:
    attacker = Attacker(place)
    began = time.monotonic()
    end = ""
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + place.until - began):
            await deed(attacker)
    except ConnectionAbortedError:
        end = "closed"
    except (ConnectionResetError, BrokenPipeError):
        end = "reset"
    except (TimeoutError, OSError):
        pass
    if end:
        status = attacker.verdict()
        place.ends[f"{status}, {end}" if status else end] += 1
        place.lasted.append(time.monotonic() - began)
    attacker.raw.close()


def silent(opening: bytes = b"") -> Deed:
    async def deed(attacker: Attacker) -> None:
        await attacker.connect()
        if opening:
            await attacker.send(opening)
        await attacker.read_on()

    return deed


def pouring(opening: bytes, again: bytes, pause_seconds: float = 0.0) -> Deed:
    async def deed(attacker: Attacker) -> None:
        await attacker.connect()
        await attacker.send(opening)
        await attacker.pour(again, pause_seconds)

    return deed


def not_reading(opening: bytes, again: bytes = b"") -> Deed:
    """Never reads; a connection that the gateway cuts is told by the next thing it sends, or by its state."""

    async def deed(attacker: Attacker) -> None:
        await attacker.connect(receive_buffer=4096)
        await attacker.send(opening)
        while True:
            if again:
                await attacker.send(again)
            if error := attacker.raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise ConnectionResetError(error, "reset")
            await asyncio.sleep(0 if again else 0.1)

    return deed


async def trickling_reader(attacker: Attacker) -> None:
    await attacker.connect(receive_buffer=4096)
    await attacker.send(b"GET /api/evil/stream" + HEAD + b"\r\n")
    while True:
        await attacker.read(20)
        await asyncio.sleep(0.2)


def asking(request: bytes, times: int = 1) -> Deed:
    """Send so many requests at once, read their answers, and again."""

    async def deed(attacker: Attacker) -> None:
        await attacker.connect()
        while True:
            await attacker.send(request * times)
            seen = b""
            while seen.count(b"HTTP/1.1 ") < times or not seen.endswith((b"ok", b"}")):
                seen += await attacker.read()

    return deed


def churning(request: bytes, is_reset: bool) -> Deed:
    async def deed(attacker: Attacker) -> None:
        while not attacker.is_over:
            await attacker.connect()
            await attacker.send(request)
            if is_reset:
                attacker.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            else:
                await attacker.read()
            attacker.raw.close()
            attacker.raw = socket.socket()
            attacker.raw.setblocking(False)

    return deed


async def idle_over_tls(attacker: Attacker) -> None:
    await attacker.connect()
    reader, writer = await asyncio.open_connection(sock=attacker.raw.dup(), ssl=unverified(), server_hostname="a")
    try:
        while await reader.read(65536):
            pass
        raise ConnectionAbortedError
    finally:
        writer.transport.abort()


async def coming_again(attacker: Attacker) -> None:
    """Half a head, and a new connection as soon as it is refused or ended."""
    while not attacker.is_over:
        try:
            await attacker.connect()
            await attacker.send(b"GET / HT")
            await attacker.read_on()
        except OSError as exc:
            status = attacker.verdict()
            end = "closed" if isinstance(exc, ConnectionAbortedError) else "reset"
            attacker.place.ends[f"{status}, {end}" if status else end] += 1
        attacker.raw.close()
        attacker.answers = b""
        attacker.raw = socket.socket()
        attacker.raw.setblocking(False)


def upgrade(path: bytes) -> bytes:
    return b"GET /api/evil" + path + HEAD + b"Connection: Upgrade\r\nUpgrade: chat\r\n\r\n"


def get(path: bytes) -> bytes:
    return b"GET /api/evil" + path + HEAD + b"\r\n"


@dataclass(frozen=True)
class Attack:
    connections: int
    deed: Deed
    settings: Mapping[str, str] = field(default_factory=dict)
    is_tls: bool = False


MANY, SOME = 400, 40
SMALL_HOUSE = {"GATEWAY_MAX_CONNECTIONS": "300", "GATEWAY_MAX_CONNECTIONS_PER_CLIENT": "300"}

ATTACKS: dict[str, Attack] = {
    "connections that say nothing": Attack(MANY, silent()),
    "kept connections, silent after a request": Attack(MANY, silent(SMALL)),
    "heads, a byte every 0.2 s": Attack(MANY, pouring(b"GET / HTTP/1.1\r\nX: ", b"a", 0.2)),
    "header fields without end": Attack(MANY, pouring(b"GET / HTTP/1.1\r\n", b"X-More: " + b"a" * 1000 + b"\r\n")),
    "a target without end": Attack(MANY, pouring(b"GET /", b"a" * 8192)),
    "bodies, a byte every 0.5 s": Attack(MANY, pouring(POST + b"Content-Length: 1000000\r\n\r\n", b"a", 0.5)),
    "chunks of one byte": Attack(SOME, pouring(CHUNKED, b"1\r\na\r\n" * 10_000)),
    "a chunk extension without end": Attack(MANY, pouring(CHUNKED + b"1;", b"a" * 8192)),
    "chunks of a byte with extensions": Attack(SOME, pouring(CHUNKED, (b"1;" + b"a" * 1000 + b"\r\na\r\n") * 60)),
    "trailers without end": Attack(MANY, pouring(CHUNKED + b"0\r\n", b"X-More: " + b"a" * 1000 + b"\r\n")),
    "an upload that ignores its 413": Attack(
        SOME, pouring(POST + b"Content-Length: 99999999999\r\n\r\n", bytes(65536))
    ),
    "answers that are never read": Attack(MANY, not_reading(get(b"/stream"))),
    "answers, 100 bytes/s": Attack(MANY, trickling_reader),
    "pipelining without reading": Attack(SOME, not_reading(HEALTH * 100, HEALTH * 100)),
    "pipelining, 100 at a time": Attack(SOME, asking(get(b"").replace(b"evil", b"none/"), 100)),
    "HTTP/1.0 with keep-alive": Attack(
        SOME, asking(b"GET /api/hello/small HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
    ),
    "new connections, one request each": Attack(SOME, churning(SMALL, is_reset=False)),
    "new connections, reset behind a request": Attack(SOME, churning(SMALL, is_reset=True)),
    "tunnels whose client never reads": Attack(MANY, not_reading(upgrade(b"/chat"))),
    "tunnels whose instance never reads": Attack(SOME, not_reading(upgrade(b"/deaf"), bytes(65536))),
    "an instance: interim answers without end": Attack(SOME, silent(get(b"/interim"))),
    "an instance: a head without end": Attack(SOME, silent(get(b"/head"))),
    "an instance: a chunk extension without end": Attack(SOME, silent(get(b"/extension"))),
    "an instance: trailers without end": Attack(SOME, silent(get(b"/trailers"))),
    "a full house, silent": Attack(MANY, silent(), SMALL_HOUSE),
    "a full house, heads that never end": Attack(
        MANY, coming_again, {"GATEWAY_MAX_CONNECTIONS": "300", "GATEWAY_MAX_CONNECTIONS_PER_CLIENT": "200"}
    ),
    "TLS: a handshake that never begins": Attack(MANY, silent(), is_tls=True),
    "TLS: half a handshake": Attack(MANY, silent(bytes.fromhex("1603010200010001fc0303") + bytes(100)), is_tls=True),
    "TLS: connections that say nothing": Attack(MANY, idle_over_tls, is_tls=True),
}


# -- the measurement


class Memory(threading.Thread):
    """Watches the resident memory of a process; the highest value is kept."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._done = threading.Event()
        self.peak = 0

    def now(self) -> int:
        text = Path(f"/proc/{self._pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, self.now())

    def stop(self) -> None:
        self._done.set()
        self.join()


def spawn(stack: ExitStack, target: Callable[..., None], *arguments: object) -> Connection:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    stack.callback(process.join, 5)
    stack.callback(process.terminate)
    return ours


def receive(pipe: Connection) -> Any:
    if not pipe.poll(30):
        raise TimeoutError("a process of the benchmark did not answer")
    return pipe.recv()


def register(registry: RegistryServer, service: str, port: int) -> None:
    body = {
        "ID": f"{service}-1",
        "Name": service,
        "Address": "127.0.0.1",
        "Port": port,
        "Meta": {"scheme": "http"},
        "Check": {"CheckID": f"service:{service}-1", "TTL": "86400s", "Status": "passing"},
    }
    request = urllib.request.Request(f"{registry.url}/v1/agent/service/register", data=orjson.dumps(body), method="PUT")
    urllib.request.urlopen(request, timeout=10).close()


def certificate(folder: Path) -> dict[str, str]:
    issued = trustme.CA().issue_cert("127.0.0.1")
    cert, key = folder / "cert.pem", folder / "key.pem"
    issued.private_key_pem.write_to_path(str(key))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(cert), append=True)
    return {"GATEWAY_TLS_CERT": str(cert), "GATEWAY_TLS_KEY": str(key)}


def measure(registry: RegistryServer, tls: Mapping[str, str], attack: Attack, seconds: float) -> dict[str, Any]:
    """Start a gateway, attack it, and tell what it took."""
    port, admin_port = free_port(), free_port()
    settings = {
        "CONSUL_ADDRESS": registry.url,
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "GATEWAY_ADMIN_PORT": str(admin_port),
        "GATEWAY_RATE_LIMIT_ENABLED": "false",
        "GATEWAY_ACCESS_LOG": "false",
        "GATEWAY_TRUSTED_PROXIES": "192.0.2.1/32",
        **SHORT,
        **attack.settings,
        **(tls if attack.is_tls else {}),
    }
    with ExitStack() as stack:
        gateway = DaemonProcess("toska-gateway", settings, f"http://127.0.0.1:{admin_port}/health/ready")
        stack.enter_context(gateway)
        innocent = spawn(stack, innocent_process, port, attack.is_tls)
        time.sleep(2.0)  # what the innocent client costs is there before
        memory = Memory(gateway.pid)
        before = memory.now()
        memory.start()
        place = Field(port, time.monotonic() + seconds)
        uvloop.run(attack_all(place, attack))
        time.sleep(AFTER_SECONDS)
        first_peak, after = memory.peak, memory.now()
        uvloop.run(attack_all(Field(port, time.monotonic() + seconds), attack))
        memory.stop()
        innocent.send("stop")
        latencies, failures = receive(innocent)
        growth = first_peak - before
        lasted = sorted(place.lasted)
        return {
            "connections": attack.connections,
            "opened": place.opened,
            "bytes_sent": place.sent,
            "bytes_received": place.received,
            "rss_before_mib": round(before / 2**20, 1),
            "rss_growth_mib": round(growth / 2**20, 2),
            "rss_growth_kib_per_connection": round(growth / 1024 / attack.connections, 1),
            "rss_left_mib": round((after - before) / 2**20, 2),
            "rss_more_the_second_time_mib": round((memory.peak - first_peak) / 2**20, 2),
            "ends": dict(place.ends.most_common()),
            "ended_after_seconds_median": round(lasted[len(lasted) // 2], 2) if lasted else None,
            "innocent_requests": len(latencies) + sum(failures.values()),
            "innocent_failures": dict(failures),
            "innocent_ms": percentiles(latencies) if latencies else {},
            "is_alive": gateway.is_running,
            "errors_logged": sum("Traceback" in line or '"error"' in line for line in gateway.log_lines()),
        }


async def attack_all(place: Field, attack: Attack) -> None:
    """All connections of an attack, side by side."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(attack.connections):
            tasks.create_task(attack_once(place, attack.deed))
            if number % 50 == 49:
                await asyncio.sleep(0.01)


def _end(figures: Mapping[str, Any]) -> str:
    """In a few words: how most connections were ended, and when."""
    if not figures["ends"]:
        return "nobody: within its limits"
    end, count = next(iter(figures["ends"].items()))
    after = figures["ended_after_seconds_median"]
    return f"{end} ({count})" + (f" after {after:g} s" if after is not None else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one attack")
    parser.add_argument("--attacks", default="", help="part of the attacks' names; default: all")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tls = certificate(folder)
        registry = stack.enter_context(RegistryServer())
        for service in ("hello", "evil"):  # the attackers have an instance to themselves
            register(registry, service, receive(spawn(stack, instance_process)))
        for name, attack in ATTACKS.items():
            if arguments.attacks in name:
                figures[name] = found = measure(registry, tls, attack, arguments.seconds)
                print(f"{name}: {found}", file=sys.stderr, flush=True)
    table: list[list[object]] = [
        [
            "attack", "connections", "MiB sent", "growth MiB", "KiB per connection", "left MiB",
            "more the second time", "ended by", "innocent: failed", "p99 ms",
        ]
    ]  # fmt: skip
    for name, found in figures.items():
        table.append(
            [
                name,
                found["connections"] if found["opened"] <= found["connections"] else f"{found['opened']:,} in turn",
                f"{found['bytes_sent'] / 2**20:,.1f}",
                found["rss_growth_mib"],
                found["rss_growth_kib_per_connection"],
                found["rss_left_mib"],
                found["rss_more_the_second_time_mib"],
                _end(found),
                f"{sum(found['innocent_failures'].values())} of {found['innocent_requests']}",
                found["innocent_ms"].get("p99", "-"),
            ]
        )
    save(
        "attacks",
        "The gateway under attack",
        figures,
        table,
        "Growth is the highest resident memory during the attack above that before it, per connection at once; left is "
        "what of it remained two seconds later (freed memory that the allocator keeps included). The attack is then "
        "made again on the same process: by how much its peak is above the first one is what would add up. Timeouts "
        "here: head, idle and keep-alive 2 s each. Attackers, gateway, instance and the innocent client share the "
        "machine's cores, so latencies say little; failures of the innocent client say much.",
    )


if __name__ == "__main__":
    main()

"""One GiB down and up on one connection: our gateway beside nginx and Envoy, and its memory meanwhile.

Client and backend hand the bytes to the kernel without touching them, so that the proxy is the limit: it has one core,
they share the other. The memory is looked at every 20 ms; its growth counts from before the first transfer.

    python -m bench.gateway_transfer --rounds 5
"""

import argparse
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.support.accounting import resident_bytes, spending, watch_memory
from bench.support.contestants import LOAD_CORE, PEERS, Giant, Pinned, PinnedRegistry, Toska, register
from bench.support.giant import swallow
from bench.support.results import save
from bench.support.rounds import interleave, medians, prepare, ratio

SIZE_BYTES = 1024**3
MIB = 1024**2
WARM_UP_REQUESTS = 200
PATIENCE_SECONDS = 120.0


def download(port: int, path: str) -> None:
    """Get `path` and drop it. Raises OSError or SystemExit when it is not `SIZE_BYTES` long."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        length, early = _read_head(connection)
        if length != SIZE_BYTES:
            raise SystemExit(f"{path} is {length} bytes long")
        swallow(connection, length - len(early))


def upload(port: int, path: str, file: int) -> None:
    """Put the file; the backend has to have counted all its bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(
            f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Length: {SIZE_BYTES}\r\n\r\n".encode()
        )
        connection.settimeout(None)  # sendfile must block
        offset = 0
        while offset < SIZE_BYTES:
            offset += os.sendfile(connection.fileno(), file, offset, SIZE_BYTES - offset)
        connection.settimeout(PATIENCE_SECONDS)
        length, body = _read_head(connection)
        while len(body) < length:
            body += connection.recv(65536)
        if body != b"%d" % SIZE_BYTES:
            raise SystemExit(f"the backend got {body!r} bytes")


def _read_head(connection: socket.socket) -> tuple[int, bytes]:
    """Length of the answer, and what came of its body. Raises SystemExit when its status is not 200."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(4096)
        if not received:
            raise SystemExit(f"the connection ended after {data!r}")
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"not transferred: {head!r}")
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value), body
    raise SystemExit(f"an answer without length: {head!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="nginx,envoy", help="which ones, with commas")
    arguments = parser.parse_args()
    prepare()
    with ExitStack() as stack:
        giant = stack.enter_context(Giant())
        registry = stack.enter_context(PinnedRegistry())
        register(registry, giant)
        contestants: dict[str, Pinned] = {
            "toska": stack.enter_context(Toska(registry, GATEWAY_MAX_REQUEST_BYTES="0")),
        }
        for name in filter(None, arguments.peers.split(",")):
            contestants[name] = stack.enter_context(PEERS[name](giant))
        file = os.open(Path(giant.folder) / "1g", os.O_RDONLY)
        stack.callback(os.close, file)
        for contestant in contestants.values():
            for _ in range(WARM_UP_REQUESTS):
                assert contestant.is_ready()
        # Not counted: the kernel makes the file's pages when they are first read, and the first transfer would pay.
        download(giant.port, "/1g")
        before = {name: resident_bytes(contestant.pid) for name, contestant in contestants.items()}

        def measure(name: str, contestant: Pinned, way: str) -> dict[str, float]:
            with watch_memory(contestant.pid) as peak, spending(contestant.pid, LOAD_CORE) as spent:
                if way == "down":
                    download(contestant.port, "/api/hello/1g")
                else:
                    upload(contestant.port, "/api/hello/1g", file)
            return {
                "mib_per_second": round(SIZE_BYTES / MIB / spent.seconds, 1),
                "cpu_seconds_per_gib": round(spent.cpu_seconds, 3),
                "memory_growth_mib": round((peak.resident_bytes - before[name]) / MIB, 2),
                "proxy_cores": round(spent.proxy_cores, 3),
                "load_core_share": round(spent.load_core_share, 3),
            }

        figures: dict[str, Any] = {}
        for way in ("down", "up"):
            rounds = interleave(
                f"1 GiB {way}",
                contestants,
                arguments.rounds,
                lambda name, contestant, way=way: measure(name, contestant, way),  # type: ignore[misc]
                lambda one: f"{one['mib_per_second']:,.0f} MiB/s, {one['memory_growth_mib']:.1f} MiB more",
            )
            figures[way] = {
                name: {
                    **medians(all_),
                    "memory_growth_mib": max(one["memory_growth_mib"] for one in all_),
                }
                for name, all_ in rounds.items()
            }
    table: list[list[object]] = [
        ["1 GiB", "proxy", "MiB/s", "toska ÷ it", "CPU s/GiB", "its core", "load's core", "memory growth MiB"]
    ]
    for way, by_name in figures.items():
        for name, one in by_name.items():
            table.append(
                [
                    way,
                    name,
                    f"{one['mib_per_second']:,.0f}",
                    "" if name == "toska" else f"{ratio(by_name['toska'], one, 'mib_per_second'):.2f}",
                    f"{one['cpu_seconds_per_gib']:.2f}",
                    f"{one['proxy_cores']:.0%}",
                    f"{one['load_core_share']:.0%}",
                    f"{one['memory_growth_mib']:.1f}",
                ]
            )
    save(
        "gateway_transfer",
        "One GiB down and up",
        figures,
        table,
        f"Medians over the rounds; the memory's growth is the most of all rounds, above what the process held after "
        f"{WARM_UP_REQUESTS} small requests.",
    )


if __name__ == "__main__":
    main()

"""Memory of 10,000 idle keep-alive connections, each of which has had one answer.

One proxy at a time is started anew and warmed up; its memory is taken before the connections and with them. Counted is
what its processes hold (PSS), not what the kernel keeps for a socket, which is the same for all. At the end some of
the connections are used once more: idle means still there.

    python -m bench.gateway_idle --connections 10000 --rounds 2
"""

import argparse
import socket
import time
from contextlib import ExitStack
from typing import Any

from bench.support.accounting import proportional_bytes, resident_bytes
from bench.support.contestants import PEERS, Backend, Pinned, PinnedRegistry, Toska, register
from bench.support.openloop import complete
from bench.support.results import save
from bench.support.rounds import interleave, medians, prepare

PER_ADDRESS = 20_000
"""Connections from one source address: one address has some 28,000 ports to dial from."""
WARM_UP = 500
ASKED_AGAIN = 200
SETTLE_SECONDS = 1.5
REQUEST = b"GET /api/hello/small HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: application/json\r\n\r\n"


def ask(connection: socket.socket) -> bool:
    """One request; whether it was answered with 200."""
    try:
        connection.sendall(REQUEST)
        data, found = b"", None
        while found is None:
            received = connection.recv(65536)
            if not received:
                return False
            data += received
            found = complete(data)
    except OSError:
        return False
    return found


def connect(port: int, count: int) -> list[socket.socket]:
    """So many connections to a loopback port, each asked once. SystemExit when one is refused or not answered."""
    connections: list[socket.socket] = []
    for number in range(count):
        source = f"127.0.0.{1 + number // PER_ADDRESS}"
        connection = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))
        connections.append(connection)
        if not ask(connection):
            raise SystemExit(f"connection {number + 1} to port {port} got no answer")
    return connections


def drop(connections: list[socket.socket]) -> None:
    """Close with a reset, so that no port waits for its last packets (SO_LINGER of 0 seconds)."""
    for connection in connections:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()


def measure(contestant: Pinned, count: int) -> dict[str, float]:
    """Start it, fill it, weigh it, stop it."""
    with contestant:
        drop(connect(contestant.port, WARM_UP))
        time.sleep(SETTLE_SECONDS)
        empty, empty_rss = proportional_bytes(contestant.pid), resident_bytes(contestant.pid)
        connections: list[socket.socket] = []
        try:
            connections = connect(contestant.port, count)
            time.sleep(SETTLE_SECONDS)
            full, full_rss = proportional_bytes(contestant.pid), resident_bytes(contestant.pid)
            lost = sum(not ask(one) for one in connections[:: max(1, count // ASKED_AGAIN)])
        finally:
            drop(connections)
    return {
        "kib_per_connection": round((full - empty) / count / 1024, 3),
        "rss_kib_per_connection": round((full_rss - empty_rss) / count / 1024, 3),
        "mib_without": round(empty / 2**20, 1),
        "mib_with": round(full / 2**20, 1),
        "failed": lost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--peers", default=",".join(PEERS), help="which ones, with commas")
    arguments = parser.parse_args()
    prepare()
    names = ["toska", *filter(None, arguments.peers.split(","))]
    with ExitStack() as stack:
        backend = stack.enter_context(Backend())
        registry = stack.enter_context(PinnedRegistry())
        register(registry, backend)
        rounds = interleave(
            f"{arguments.connections:,} idle connections",
            {name: name for name in names},
            arguments.rounds,
            lambda name, _: measure(
                Toska(registry) if name == "toska" else PEERS[name](backend), arguments.connections
            ),
            lambda one: f"{one['kib_per_connection']:.1f} KiB each, {one['failed']:.0f} lost",
        )
    figures: dict[str, Any] = {name: medians(all_) for name, all_ in rounds.items()}
    table: list[list[object]] = [["proxy", "KiB each (PSS)", "KiB each (RSS)", "MiB without", "MiB with", "lost"]]
    for name, one in figures.items():
        table.append(
            [
                name,
                f"{one['kib_per_connection']:.1f}",
                f"{one['rss_kib_per_connection']:.1f}",
                f"{one['mib_without']:.1f}",
                f"{one['mib_with']:.1f}",
                f"{one['failed']:.0f}",
            ]
        )
    save(
        "gateway_idle",
        f"{arguments.connections:,} idle connections",
        {"connections": arguments.connections, "memory": figures},
        table,
        "Medians over the rounds. User memory alone: the kernel's part of a socket is the same for all.",
    )


if __name__ == "__main__":
    main()

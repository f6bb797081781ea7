"""From starting a process to being ready, and what it holds when idle: our daemons, and the proxies for comparison.

Ready is what the daemon says of itself (`/health/ready`); the gateway must then answer a request at once, so its table
is in use. A peer is ready when it answers through the backend. Each process runs alone on the proxy's core.

    python -m bench.gateway_startup --rounds 10
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.process import http_get

from bench.support.accounting import proportional_bytes, resident_bytes
from bench.support.contestants import PEERS, PROXY_CORE, Backend, Pinned, PinnedRegistry, Toska, register
from bench.support.results import save
from bench.support.rounds import interleave, medians, prepare

LOOK_SECONDS = 0.002
"""Between two looks at whether it is ready; its size is the error of the figures."""
PATIENCE_SECONDS = 60.0
SETTLE_SECONDS = 1.0


class Daemon(Pinned):
    """One of our daemons on the proxy's core."""

    def __init__(self, program: str, port: int, **variables: str) -> None:
        super().__init__(program, PROXY_CORE)
        self.port = port
        self._program = program
        self._variables = variables

    def environment(self) -> Mapping[str, str]:
        return self._variables

    def arguments(self) -> Sequence[str]:
        return [str(Path(sys.executable).with_name(self._program))]


def daemons(registry: PinnedRegistry) -> dict[str, Callable[[], tuple[Pinned, str]]]:
    """By name: makes the daemon, and says where it tells that it is ready."""

    def gateway() -> tuple[Pinned, str]:
        it = Toska(registry)
        return it, f"http://127.0.0.1:{it.admin_port}/health/ready"

    def one(program: str, port_variable: str, **variables: str) -> tuple[Pinned, str]:
        port = free_port()
        it = Daemon(program, port, **variables, **{port_variable: str(port)})
        return it, f"http://127.0.0.1:{port}/health/ready"

    consul = {"CONSUL_ADDRESS": registry.url}
    return {
        "toska-gateway": gateway,
        "toska-discovery": lambda: one(
            "toska-discovery",
            "DISCOVERY_HTTP_PORT",
            DISCOVERY_PORT=str(free_port()),
            DISCOVERY_HOST="127.0.0.1",
            **consul,
        ),
        "toska-healthmonitor": lambda: one(
            "toska-healthmonitor", "HEALTHMONITOR_PORT", HEALTHMONITOR_HOST="127.0.0.1", **consul
        ),
        "toska-registry": lambda: one("toska-registry", "REGISTRY_PORT", REGISTRY_HOST="127.0.0.1"),
    }


def measure(server: Pinned, ready_url: str) -> dict[str, float]:
    """Start, wait until it is ready, let it settle, weigh it, stop it."""
    try:
        began = time.perf_counter()
        server.start(wait=False)
        while not _answers(ready_url):
            if not server.is_running or time.perf_counter() - began > PATIENCE_SECONDS:
                raise SystemExit(f"{server.name} did not get ready:\n{server.tail()}")
            time.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - began
        if isinstance(server, Toska) and not server.is_ready():
            raise SystemExit("the gateway said it was ready and had no route")
        time.sleep(SETTLE_SECONDS)
        return {
            "ready_seconds": round(seconds, 4),
            "rss_mib": round(resident_bytes(server.pid) / 2**20, 2),
            "pss_mib": round(proportional_bytes(server.pid) / 2**20, 2),
        }
    finally:
        server.close()


def _answers(url: str) -> bool:
    try:
        return http_get(url)[0] == 200
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="starts of each")
    parser.add_argument("--peers", default=",".join(PEERS), help="which ones, with commas")
    arguments = parser.parse_args()
    prepare()
    with ExitStack() as stack:
        backend = stack.enter_context(Backend())
        registry = stack.enter_context(PinnedRegistry())
        register(registry, backend)
        makers = daemons(registry)

        def make(kind: str) -> Callable[[], tuple[Pinned, str]]:
            def peer() -> tuple[Pinned, str]:
                it = PEERS[kind](backend)
                return it, f"{it.base}{it.probe_path}"

            return peer

        makers |= {kind: make(kind) for kind in filter(None, arguments.peers.split(","))}
        for maker in makers.values():
            measure(*maker())  # not counted: files come from the disk, and Python keeps what it has compiled
        rounds = interleave(
            "start",
            makers,
            arguments.rounds,
            lambda _, maker: measure(*maker()),
            lambda one: f"{one['ready_seconds'] * 1000:.0f} ms, {one['rss_mib']:.1f} MiB",
        )
    figures: dict[str, Any] = {
        name: {**medians(all_), "slowest_seconds": max(one["ready_seconds"] for one in all_)}
        for name, all_ in rounds.items()
    }
    table: list[list[object]] = [["program", "ready after ms", "slowest ms", "idle RSS MiB", "idle PSS MiB"]]
    for name, one in figures.items():
        table.append(
            [
                name,
                f"{one['ready_seconds'] * 1000:.0f}",
                f"{one['slowest_seconds'] * 1000:.0f}",
                f"{one['rss_mib']:.1f}",
                f"{one['pss_mib']:.1f}",
            ]
        )
    save(
        "gateway_startup",
        "Start and idle memory",
        figures,
        table,
        f"Medians of {arguments.rounds} starts with warm files. RSS counts shared pages in full, PSS its share of "
        "them; a program of several processes is the sum of them.",
    )


if __name__ == "__main__":
    main()

"""Requests per second and core: our gateway beside nginx, HAProxy, Envoy and Caddy.

The proxy has one core, the load and the backend have the other. Contestants take turns within each round, so that a
busy moment of the machine hits all of them; compared are ratios of medians.

    python -m bench.gateway --rounds 5 --seconds 5
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.servers import RegistryServer

from bench.support.contestants import PEERS, REPORT, Backend, Pinned, Round, Toska, register, wrk
from bench.support.results import save

NINE_HEADERS = """
wrk.headers["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64)"
wrk.headers["Accept"] = "application/json"
wrk.headers["Accept-Encoding"] = "gzip, deflate, br"
wrk.headers["Accept-Language"] = "en-GB,en;q=0.8"
wrk.headers["Cache-Control"] = "no-cache"
wrk.headers["Cookie"] = "session=0123456789abcdef0123456789abcdef"
wrk.headers["Referer"] = "http://localhost/index.html"
wrk.headers["X-Custom"] = "bench"
"""

POST = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = string.rep("x", 1024)
"""

CASES: dict[str, tuple[str, int, str]] = {
    "small GET, 32 connections": ("/api/hello/small", 32, NINE_HEADERS),
    "small GET, 1 connection": ("/api/hello/small", 1, NINE_HEADERS),
    "small GET, 512 connections": ("/api/hello/small", 512, NINE_HEADERS),
    "1 KiB POST": ("/api/hello/sink", 32, NINE_HEADERS + POST),
    "64 KiB answer": ("/api/hello/64k", 32, NINE_HEADERS),
    "1 MiB answer": ("/api/hello/1m", 8, NINE_HEADERS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run of the load")
    parser.add_argument("--peers", default=",".join(PEERS), help="which ones, with commas")
    parser.add_argument("--cases", default="", help="part of the cases' names; default: all")
    arguments = parser.parse_args()
    cases = {name: case for name, case in CASES.items() if arguments.cases in name}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend = stack.enter_context(Backend())
        registry = stack.enter_context(RegistryServer())
        register(registry, backend)
        contestants: dict[str, Pinned] = {"toska": stack.enter_context(Toska(backend, registry))}
        for name in filter(None, arguments.peers.split(",")):
            contestants[name] = stack.enter_context(PEERS[name](backend))
        figures: dict[str, Any] = {}
        for number, (case, (path, connections, script)) in enumerate(cases.items()):
            file = folder / f"case{number}.lua"
            file.write_text(script + REPORT)
            rounds: dict[str, list[Round]] = {name: [] for name in contestants}
            for turn in range(arguments.rounds):
                for name, contestant in contestants.items():
                    one = wrk(f"{contestant.base}{path}", connections, arguments.seconds, str(file), contestant.pid)
                    rounds[name].append(one)
                    print(f"{case}, round {turn + 1}: {name} {one.requests_per_second:,.0f}/s", file=sys.stderr)
            figures[case] = {name: _summary(results) for name, results in rounds.items()}
    table: list[list[object]] = [
        ["case", *contestants, *(f"toska ÷ {name}" for name in contestants if name != "toska")]
    ]
    for case, by_name in figures.items():
        ours = by_name["toska"]["requests_per_second"]
        row: list[object] = [case]
        row += [f"{by_name[name]['requests_per_second']:,.0f}" for name in contestants]
        row += [f"{ours / by_name[name]['requests_per_second']:.2f}" for name in contestants if name != "toska"]
        table.append(row)
    save(
        "gateway", "Requests per second on one core", figures, table, "Medians over the rounds, in requests per second."
    )


def _summary(rounds: list[Round]) -> dict[str, float]:
    return {
        "requests_per_second": round(statistics.median(one.requests_per_second for one in rounds), 1),
        "p50_ms": round(statistics.median(one.p50_ms for one in rounds), 3),
        "p99_ms": round(statistics.median(one.p99_ms for one in rounds), 3),
        "cpu_microseconds_per_request": round(
            statistics.median(one.cpu_seconds_per_request for one in rounds) * 1e6, 2
        ),
        "failed": sum(one.failed for one in rounds),
    }


if __name__ == "__main__":
    main()

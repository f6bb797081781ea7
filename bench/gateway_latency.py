"""Latency at a fixed load: the same rate for every proxy, half of what Envoy can do at most in this very run.

The load does not wait for answers (`bench.support.openloop`), and latency counts from the moment a request was due.
Beside the proxies stands the backend without any: what the load and the machine themselves cost.

    python -m bench.gateway_latency --rounds 5 --seconds 4
"""

import argparse
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.support import openloop
from bench.support.accounting import spending
from bench.support.contestants import LOAD_CORE, PEERS, Backend, Pinned, PinnedRegistry, Toska, register
from bench.support.results import save
from bench.support.rounds import interleave, medians, prepare
from bench.support.wrk import HEADERS, NINE_HEADERS, REPORT, wrk

DIRECT = "no proxy"
CONNECTIONS = 64


def request(path: str) -> bytes:
    fields = {"Host": "localhost", **HEADERS}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run of the load")
    parser.add_argument("--peers", default=",".join(PEERS), help="which ones, with commas")
    parser.add_argument("--rate", type=float, default=0, help="requests per second; default: half of Envoy's most")
    arguments = parser.parse_args()
    prepare()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "get.lua"
        script.write_text(NINE_HEADERS + REPORT)
        backend = stack.enter_context(Backend())
        registry = stack.enter_context(PinnedRegistry())
        register(registry, backend)
        contestants: dict[str, Pinned] = {DIRECT: backend, "toska": stack.enter_context(Toska(registry))}
        for name in filter(None, arguments.peers.split(",")):
            contestants[name] = stack.enter_context(PEERS[name](backend))

        rate, most = arguments.rate, 0.0
        if not rate:
            envoy = contestants.get("envoy") or stack.enter_context(PEERS["envoy"](backend))
            runs = interleave(
                "the most Envoy can do",
                {"envoy": envoy},
                3,
                lambda _, it: wrk(
                    f"{it.base}{it.probe_path}", CONNECTIONS, arguments.seconds, str(script), it.pid
                ).figures(),
                lambda one: f"{one['requests_per_second']:,.0f}/s",
            )
            most = medians(runs["envoy"])["requests_per_second"]
            rate = most / 2

        turns: Counter[str] = Counter()

        def measure(name: str, contestant: Pinned) -> dict[str, float]:
            turns[name] += 1  # the same moments for everybody within a round, others in the next one
            with spending(contestant.pid, LOAD_CORE) as spent:
                latencies = openloop.measure(
                    contestant.port, request(contestant.probe_path), rate, arguments.seconds, CONNECTIONS, turns[name]
                )
            return {**latencies.figures(), "proxy_cores": round(spent.proxy_cores, 3)}

        rounds = interleave(
            f"{rate:,.0f} requests/s",
            contestants,
            arguments.rounds,
            measure,
            lambda one: f"p50 {one['p50_ms']:.2f}, p99 {one['p99_ms']:.2f}, p99.9 {one['p999_ms']:.2f} ms",
        )
    by_name = {name: medians(all_) for name, all_ in rounds.items()}
    figures: dict[str, Any] = {
        "requests_per_second": round(rate, 1),
        "envoy_at_most": round(most, 1),
        "connections": CONNECTIONS,
        "latency": by_name,
    }
    table: list[list[object]] = [
        ["proxy", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "its core", "sent late (p99) ms", "failed"]
    ]
    for name, one in by_name.items():
        table.append(
            [
                name,
                *(f"{one[key]:.2f}" for key in ("p50_ms", "p99_ms", "p999_ms", "max_ms")),
                f"{one['proxy_cores']:.0%}",
                f"{one['sent_late_p99_ms']:.2f}",
                f"{one['failed']:.0f}",
            ]
        )
    save(
        "gateway_latency",
        f"Latency at {rate:,.0f} requests per second",
        figures,
        table,
        "Medians over the rounds. Small GET with nine headers, arrivals as of independent clients (Poisson), latency "
        f"from the moment a request was due, {CONNECTIONS} connections."
        + (f" Envoy does {most:,.0f} requests per second at most; this is half of it." if most else "")
        + f" `{DIRECT}`: the backend itself, which is what load and machine cost; its core is the load's.",
    )


if __name__ == "__main__":
    main()

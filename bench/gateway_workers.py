"""One worker of our gateway on one core, and two on two.

With four cores or more the two workers have two cores of their own, the load and the backend have two others, and the
requests per second tell how the gateway scales. With fewer the load sits on the same cores as the workers: then the
sum of requests cannot double, and what can be shown is the CPU time per request, that is, what a second worker costs.

    python -m bench.gateway_workers --rounds 5 --seconds 4
"""

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.support.contestants import Backend, PinnedRegistry, Toska, register
from bench.support.results import save
from bench.support.rounds import interleave, medians, prepare, ratio
from bench.support.wrk import NINE_HEADERS, REPORT, wrk

CONNECTIONS = 64
ONE, TWO = "1 worker on 1 core", "2 workers on 2 cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run of the load")
    arguments = parser.parse_args()
    prepare()
    has_room = (os.cpu_count() or 1) >= 4
    load_cores = (0, 2) if has_room else (0,)
    proxy_cores = (1, 3) if has_room else (0, 1)
    os.sched_setaffinity(0, set(load_cores))
    with ExitStack() as stack:
        script = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "get.lua"
        script.write_text(NINE_HEADERS + REPORT)
        backend = stack.enter_context(Backend(*load_cores))
        registry = stack.enter_context(PinnedRegistry())
        register(registry, backend)
        contestants = {
            ONE: stack.enter_context(Toska(registry)),
            TWO: stack.enter_context(Toska(registry, cores=proxy_cores, GATEWAY_WORKERS="2")),
        }
        rounds = interleave(
            "workers",
            contestants,
            arguments.rounds,
            lambda _, it: wrk(
                f"{it.base}{it.probe_path}", CONNECTIONS, arguments.seconds, str(script), it.pid, load_cores
            ),
            str,
        )
    by_name: dict[str, dict[str, float]] = {
        name: medians([one.figures() for one in all_]) for name, all_ in rounds.items()
    }
    for one in by_name.values():
        one["requests_per_cpu_second"] = round(1e6 / one["cpu_microseconds_per_request"], 1)
    figures: dict[str, Any] = {
        "workers": by_name,
        "two_cores_of_their_own": has_room,
        "throughput_ratio": ratio(by_name[TWO], by_name[ONE], "requests_per_second"),
        "efficiency": ratio(by_name[TWO], by_name[ONE], "requests_per_cpu_second"),
    }
    table: list[list[object]] = [
        ["gateway", "requests/s", "CPU µs/request", "requests per CPU second", "its cores", "load's core", "p99 ms",
         "failed"]
    ]  # fmt: skip
    for name, one in by_name.items():
        table.append(
            [
                name,
                f"{one['requests_per_second']:,.0f}",
                f"{one['cpu_microseconds_per_request']:.1f}",
                f"{one['requests_per_cpu_second']:,.0f}",
                f"{one['proxy_cores']:.0%}",
                f"{one['load_core_share']:.0%}",
                f"{one['p99_ms']:.2f}",
                f"{one['failed']:.0f}",
            ]
        )
    efficiency = figures["efficiency"]
    save(
        "gateway_workers",
        "One worker and two",
        figures,
        table,
        (
            f"Two workers on cores of their own do {figures['throughput_ratio']:.2f} times what one does."
            if has_room
            else "This machine has too few cores to show scaling: load, backend and workers share two, so the requests "
            "per second cannot double here. Per CPU second two workers do "
            f"{efficiency:.2f} of what one does; with cores of their own they would do about {2 * efficiency:.1f} "
            "times the requests of one."
        ),
    )


if __name__ == "__main__":
    main()

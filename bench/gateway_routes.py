"""Many services, and a route table that changes ten times a second under load.

Three situations take turns: a table of one service; one of 1,000 services with 2,000 instances, over all of which the
load is spread; and the same while every 100 ms an instance of a loaded service is registered, altered or deregistered,
or one of another service. No request may fail.

    python -m bench.gateway_routes --rounds 5 --seconds 4
"""

import argparse
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.servers import http_get

from bench.support.catalog import Catalog, changing
from bench.support.contestants import Backend, PinnedRegistry, Toska, register
from bench.support.results import save
from bench.support.rounds import interleave, medians, prepare, ratio
from bench.support.wrk import NINE_HEADERS, REPORT, Round, in_turn, wrk

CONNECTIONS = 32
INSTANCES_EACH = 2
QUIET, CHANGING, ONE = "many services", "many services, changing", "one service"


def table_version(gateway: Toska) -> int:
    """How often the gateway has built a table."""
    text = http_get(f"http://127.0.0.1:{gateway.admin_port}/metrics", 10)[1].decode()
    found = re.search(r"^toska_gateway_table_version (\S+)", text, re.MULTILINE)
    assert found, text
    return int(float(found.group(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run of the load")
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--every-ms", type=float, default=100.0, help="milliseconds between two changes")
    arguments = parser.parse_args()
    prepare()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend = stack.enter_context(Backend())
        small, large = (stack.enter_context(PinnedRegistry()) for _ in range(2))
        register(small, backend)
        with Catalog(large, backend.wide_port) as catalog:
            names = catalog.fill(arguments.services, INSTANCES_EACH)
        one, many = stack.enter_context(Toska(small)), Toska(large)
        many.probe_path = f"/api/{names[-1]}/small"
        stack.enter_context(many)
        scripts: dict[str, str] = {}
        for name, paths in ((ONE, ["/api/hello/small"]), (QUIET, [f"/api/{name}/small" for name in names])):
            file = folder / f"{len(scripts)}.lua"
            file.write_text(NINE_HEADERS + in_turn(paths) + REPORT)
            scripts[name] = str(file)
        # Each instance gets its first connection here, not while somebody measures.
        wrk(many.base, CONNECTIONS, 2, scripts[QUIET], many.pid)

        def measure(name: str, gateway: Toska) -> dict[str, float]:
            script = scripts[ONE if name == ONE else QUIET]

            def run() -> Round:
                return wrk(gateway.base, CONNECTIONS, arguments.seconds, script, gateway.pid)

            if name != CHANGING:
                return run().figures()
            before = table_version(gateway)
            with changing(
                large, backend.wide_port, arguments.every_ms / 1000, names[0], len(names) * INSTANCES_EACH
            ) as changes:
                result = run()
            tables = table_version(gateway) - before
            if tables < 1:
                raise SystemExit(f"{changes.made} changes and the table stayed the same")
            return {
                **result.figures(),
                "changes": changes.made,
                "new_tables": tables,
                "longest_gap_ms": round(changes.longest_gap_seconds * 1000, 1),
            }

        rounds = interleave(
            f"{arguments.services:,} services",
            {ONE: one, QUIET: many, CHANGING: many},
            arguments.rounds,
            measure,
            lambda one: f"{one['requests_per_second']:,.0f}/s, p99 {one['p99_ms']:.2f} ms, {one['failed']:.0f} failed",
        )
    figures: dict[str, Any] = {name: medians(all_) for name, all_ in rounds.items()}
    table: list[list[object]] = [
        ["table", "requests/s", "÷ one service", "÷ quiet", "p50 ms", "p99 ms", "CPU µs/request", "its core",
         "load's core", "changes", "new tables", "failed"]
    ]  # fmt: skip
    for name, figure in figures.items():
        table.append(
            [
                name,
                f"{figure['requests_per_second']:,.0f}",
                f"{ratio(figure, figures[ONE], 'requests_per_second'):.2f}",
                f"{ratio(figure, figures[QUIET], 'requests_per_second'):.2f}",
                f"{figure['p50_ms']:.2f}",
                f"{figure['p99_ms']:.2f}",
                f"{figure['cpu_microseconds_per_request']:.1f}",
                f"{figure['proxy_cores']:.0%}",
                f"{figure['load_core_share']:.0%}",
                f"{figure.get('changes', 0):.0f}",
                f"{figure.get('new_tables', 0):.0f}",
                f"{figure['failed']:.0f}",
            ]
        )
    save(
        "gateway_routes",
        f"{arguments.services:,} services with {arguments.services * INSTANCES_EACH:,} instances",
        figures,
        table,
        "Medians over the rounds; failures are added up. While changing: one change every "
        f"{arguments.every_ms:g} ms. The registry is on the load's core: its work for the changes takes from the load.",
    )


if __name__ == "__main__":
    main()

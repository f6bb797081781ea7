"""`make bench`: says which benchmarks there are, runs those that are named, or all, and keeps what they found.

python -m bench --list
python -m bench gateway freshness
python -m bench 'gateway*'
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from types import FrameType

from bench.support.results import ROOT, save_text

SAVES_ITSELF = {
    "gateway": "requests per second and core beside nginx, HAProxy, Envoy and Caddy",
    "gateway_latency": "p50, p99 and p99.9 at half of Envoy's saturation, the same load for all",
    "gateway_transfer": "1 GiB down and up beside nginx and Envoy, and the memory meanwhile",
    "gateway_routes": "1,000 services with 2,000 instances, and a change every 100 ms under load",
    "gateway_idle": "memory of 10,000 idle connections beside nginx, HAProxy, Envoy and Caddy",
    "gateway_workers": "one worker on one core, two on two",
    "gateway_startup": "start to ready and idle memory, of all daemons",
    "gateway_bars": "the gateway's bars beside what was measured; starts nothing",
    "freshness": "from registering to the first answer through the gateway, on both registries",
    "rolling": "rolling restarts of a service under load, on both registries",
    "first_route": "from pip install to the first routed answer, as a new user",
    "watch": "from a change to a client that follows through discovery, with 0, 1 and 200 streams",
    "client": "a call through the SDK's client beside a bare aiohttp call",
    "registry_outage": "requests while the registry is dead for 30 s, on both registries",
    "suspended": "from waking a suspended process to its first routed answer, after it was reaped, on both registries",
    "attacks": "memory of the gateway, and an innocent client, under hostile clients and instances",
    "discovery_outage": "discovery's latency with RabbitMQ up, frozen and stopped",
}
IS_KEPT = {
    "monitor_load": "2,000 instances in the health monitor, of which 200 each hang, refuse and flap",
    "discovery_beats": "beats per second that discovery takes on one core",
    "barrier": "until every gateway has applied a change, with 1 and 3 gateways, on both registries",
    "freshness_follower": "from an acknowledged change to the follower's snapshot, on both registries",
}
BENCHMARKS = SAVES_ITSELF | IS_KEPT
BARS = "gateway_bars"
"""Runs after everything that it judges."""


def select(patterns: Sequence[str]) -> list[str]:
    """Names that the patterns match, in the order of the list. Raises KeyError with a pattern that matches none."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in BENCHMARKS):
            raise KeyError(pattern)
    chosen = [name for name in BENCHMARKS if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]
    if any(name.startswith("gateway") for name in chosen) and BARS not in chosen:
        last = max(index for index, name in enumerate(chosen) if name.startswith("gateway"))
        chosen.insert(last + 1, BARS)
    return chosen


def run(name: str) -> int:
    """Run one benchmark as a process of its own, so that none leaves anything behind for the next."""
    command = [sys.executable, "-m", f"bench.{name}"]
    print(f"== {name}: {BENCHMARKS[name]}", flush=True)
    if name in SAVES_ITSELF:
        return _wait_for(subprocess.Popen(command, cwd=ROOT))[0]
    code, output = _wait_for(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    print(output)
    if code == 0:
        save_text(name, BENCHMARKS[name].capitalize(), f"python -m bench.{name}", output)
    return code


def _wait_for(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> tuple[int, str]:
    """Exit code and output. Whoever stops us first lets the benchmark stop what it has started."""
    try:
        output, _ = process.communicate()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C reached it as well
        raise
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return abs(process.returncode), str(output or "")


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, and write bench/results/.")
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"one of {', '.join(BENCHMARKS)}, or a pattern; default: all"
    )
    parser.add_argument("--list", action="store_true", help="say what there is")
    arguments = parser.parse_args()
    if arguments.list:
        for name, about in BENCHMARKS.items():
            print(f"{name:<20} {about}")
        return
    try:
        chosen = select(arguments.names)
    except KeyError as unknown:
        parser.error(f"there is no benchmark {unknown}; there are {', '.join(BENCHMARKS)}")
    signal.signal(signal.SIGTERM, _end)
    try:
        sys.exit(max(run(name) for name in chosen))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

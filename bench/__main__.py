"""`make bench`: says which benchmarks there are, runs those that are named, or all, and keeps what they found.

python -m bench --list
python -m bench gateway freshness
"""

import argparse
import subprocess
import sys

from bench.support.results import ROOT, save_text

SAVES_ITSELF = {
    "gateway": "requests per second and core beside nginx, HAProxy, Envoy and Caddy",
    "freshness": "from registering to the first answer through the gateway, on both registries",
    "registry_outage": "requests while the registry is dead for 30 s, on both registries",
    "discovery_outage": "discovery's latency with RabbitMQ up, frozen and stopped",
}
IS_KEPT = {
    "monitor_load": "2,000 instances in the health monitor, of which 200 each hang, refuse and flap",
    "discovery_beats": "beats per second that discovery takes on one core",
    "freshness_follower": "from an acknowledged change to the follower's snapshot, on both registries",
}
BENCHMARKS = SAVES_ITSELF | IS_KEPT


def run(name: str) -> int:
    """Run one benchmark as a process of its own, so that none leaves anything behind for the next."""
    command = [sys.executable, "-m", f"bench.{name}"]
    print(f"== {name}: {BENCHMARKS[name]}", flush=True)
    if name in SAVES_ITSELF:
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    if done.returncode == 0:
        save_text(name, BENCHMARKS[name].capitalize(), f"python -m bench.{name}", done.stdout)
    return done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, and write bench/results/.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"one of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--list", action="store_true", help="say what there is")
    arguments = parser.parse_args()
    if arguments.list:
        for name, about in BENCHMARKS.items():
            print(f"{name:<20} {about}")
        return
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    sys.exit(max(run(name) for name in arguments.names or BENCHMARKS))


if __name__ == "__main__":
    main()

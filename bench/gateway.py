"""Requests per second and core: our gateway beside nginx, HAProxy, Envoy and Caddy.

The proxy has one core, the load and the backend have the other. Contestants take turns within each round, so that a
busy moment of the machine hits all of them; compared are ratios of medians. A proxy that does not keep its core busy
was not the limit: then the CPU time per request says more than the requests per second.

    python -m bench.gateway --rounds 5 --seconds 4
"""

import argparse
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.support.contestants import (
    PEERS,
    Backend,
    Envoy,
    Pinned,
    PinnedRegistry,
    Toska,
    compiled_gateway,
    register,
    versions,
)
from bench.support.results import save
from bench.support.rounds import interleave, medians, prepare, ratio
from bench.support.tokens import authorizations
from bench.support.wrk import NEW_CONNECTIONS, NINE_HEADERS, POST, REPORT, in_turn, wrk

COMPILED = " compiled"
"""Our gateway with its data path compiled: the same sources, an optional build (`make compiled`)."""
ALL = ("toska", f"toska{COMPILED}", *PEERS)
CHECKED = " with JWT"
"""What the names of contestants that check tokens end with."""
UNCHECKED = " with JWT unchecked"
"""The same requests to the contestant that does not look at them: what the longer request alone costs."""


@dataclass(frozen=True, slots=True)
class Case:
    """What wrk asks for, and of whom. A contestant with its own entry in `scripts` gets that one."""

    path: str
    connections: int
    script: str
    contestants: tuple[str, ...] = ALL
    scripts: Mapping[str, str] = field(default_factory=dict)


def _with_one_token() -> Case:
    """Each connection repeats one request, as that of one client does."""
    token = f'wrk.headers["Authorization"] = "{authorizations()[0]}"\n'
    return Case(
        "/api/hello/small",
        32,
        NINE_HEADERS,
        ("toska", f"toska{CHECKED}"),
        {f"toska{CHECKED}": NINE_HEADERS + token},
    )


def _with_many_tokens() -> Case:
    """No two requests in a row on a connection are alike, as behind a balancer that mixes clients.

    That is the worst case for a proxy that remembers what a connection sent last, as ours does.
    """
    checked = NINE_HEADERS + in_turn(authorizations=authorizations())
    return Case(
        "/api/hello/small",
        32,
        NINE_HEADERS + in_turn(),
        tuple(f"{kind}{which}" for kind in ("toska", "envoy") for which in ("", UNCHECKED, CHECKED)),
        {f"{kind}{which}": checked for kind in ("toska", "envoy") for which in (UNCHECKED, CHECKED)},
    )


CASES: dict[str, Case] = {
    "small GET, 32 connections": Case("/api/hello/small", 32, NINE_HEADERS),
    "small GET, 1 connection": Case("/api/hello/small", 1, NINE_HEADERS),
    "small GET, 512 connections": Case("/api/hello/small", 512, NINE_HEADERS),
    "small GET, new connection each": Case("/api/hello/small", 32, NINE_HEADERS + NEW_CONNECTIONS),
    "small GET, one client's token": _with_one_token(),
    "small GET, 100 clients' tokens": _with_many_tokens(),
    "1 KiB POST": Case("/api/hello/sink", 32, NINE_HEADERS + POST),
    "64 KiB answer": Case("/api/hello/64k", 32, NINE_HEADERS),
    "1 MiB answer": Case("/api/hello/1m", 8, NINE_HEADERS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run of the load")
    parser.add_argument("--peers", default=",".join(PEERS), help="which ones, with commas")
    parser.add_argument("--cases", default="", help="part of the cases' names; default: all")
    arguments = parser.parse_args()
    cases = {name: case for name, case in CASES.items() if arguments.cases in name}
    if not cases:
        parser.error(f"no case is called so; there are: {'; '.join(CASES)}")
    prepare()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contestants = _start(stack, {"toska", *filter(None, arguments.peers.split(","))}, cases)
        figures: dict[str, Any] = {}
        for case_name, case in cases.items():
            files = _write_scripts(folder, case)

            def measure(name: str, contestant: Pinned, case: Case = case, files: dict[str, str] = files) -> Any:
                url = f"{contestant.base}{case.path}"
                return wrk(url, case.connections, arguments.seconds, files[name], contestant.pid)

            taking_part = {name: contestants[name] for name in case.contestants if name in contestants}
            rounds = interleave(case_name, taking_part, arguments.rounds, measure, str)
            figures[case_name] = {name: medians([one.figures() for one in all_]) for name, all_ in rounds.items()}
    against = ", ".join(f"{name} {version}" for name, version in versions(contestants).items())
    title = "Requests per second on one core"
    save("gateway", title, figures, table(figures), f"Peers: {against or 'none'}. {notes(figures)}")


def _start(stack: ExitStack, names: set[str], cases: Mapping[str, Case]) -> dict[str, Pinned]:
    """The backend, and of the named contestants (or those that check tokens beside them) those that a case needs."""
    backend = stack.enter_context(Backend())
    registry = stack.enter_context(PinnedRegistry())
    register(registry, backend)
    contestants: dict[str, Pinned] = {}
    needed = dict.fromkeys(name for case in cases.values() for name in case.contestants)
    for name in needed:
        kind = name.partition(" ")[0]
        checks = name.endswith(CHECKED)
        if kind not in names:
            continue
        if name.endswith(UNCHECKED):
            contestants[name] = contestants[kind]
        elif kind == "toska":
            program = compiled_gateway() if name.endswith(COMPILED) else ""
            contestants[name] = stack.enter_context(Toska(registry, checks_tokens=checks, program=program))
        elif checks:
            contestants[name] = stack.enter_context(Envoy(backend, checks_tokens=True))
        else:
            contestants[name] = stack.enter_context(PEERS[name](backend))
    return contestants


def _write_scripts(folder: Path, case: Case) -> dict[str, str]:
    files: dict[str, str] = {}
    for number, name in enumerate(case.contestants):
        path = folder / f"{number}.lua"
        path.write_text(case.scripts.get(name, case.script) + REPORT)
        files[name] = str(path)
    return files


def table(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[object]]:
    """One line per case and contestant: what it did, whether it was the limit, and ours through it."""
    rows: list[list[object]] = [
        ["case", "proxy", "requests/s", "toska ÷ it", "p50 ms", "p99 ms", "CPU µs/request", "its core", "load's core",
         "failed"]
    ]  # fmt: skip
    for case, by_name in figures.items():
        for name, one in by_name.items():
            kind = name.partition(" ")[0]
            ours = by_name.get("toska" if name.endswith(COMPILED) else f"toska{name.removeprefix(kind)}", {})
            quotient = f"{ratio(ours, one, 'requests_per_second'):.2f}" if ours and one is not ours else ""
            rows.append(
                [
                    case,
                    name,
                    f"{one['requests_per_second']:,.0f}",
                    quotient,
                    f"{one['p50_ms']:.2f}",
                    f"{one['p99_ms']:.2f}",
                    f"{one['cpu_microseconds_per_request']:.1f}",
                    f"{one['proxy_cores']:.0%}",
                    f"{one['load_core_share']:.0%}",
                    f"{one['failed']:.0f}",
                ]
            )
    return rows


def notes(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    lines = [
        "Medians over the rounds; failures are added up. `its core` is how busy the proxy kept its core: well below",
        "100 % the load or the backend was the limit, and CPU time per request is the fairer comparison.",
        "All requests of a case are alike, but for the 100 clients' tokens: there each differs from the one before it.",
        "",
    ]
    for case, by_name in figures.items():
        for kind in ("toska", "envoy"):
            checked = by_name.get(f"{kind}{CHECKED}")
            if checked and kind in by_name:
                share = ratio(checked, by_name[kind], "requests_per_second")
                line = f"- {case}: with tokens checked {kind} does {share:.2f} of what it does without tokens"
                if f"{kind}{UNCHECKED}" in by_name:
                    of_same = ratio(checked, by_name[f"{kind}{UNCHECKED}"], "requests_per_second")
                    line += f", and {of_same:.2f} of what it does when it passes the same tokens on unchecked"
                lines.append(f"{line}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

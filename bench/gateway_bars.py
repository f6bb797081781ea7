"""The bars of the gateway beside what was measured, and whether they are reached: `bench/results/README.md`.

Reads the results that the other benchmarks wrote and starts nothing itself. A bar is a line of `BARS`.

    python -m bench.gateway_bars
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.support.results import RESULTS, markdown_table

Reports = Mapping[str, Mapping[str, Any]]
"""By benchmark: what it wrote as JSON."""

SMALL_GET = ("gateway", "small GET, 32 connections")
ONE_TOKEN = ("gateway", "small GET, one client's token")
MANY_TOKENS = ("gateway", "small GET, 100 clients' tokens")
DAEMONS = ("toska-gateway", "toska-discovery", "toska-healthmonitor", "toska-registry")


class NotMeasuredError(Exception):
    """A figure is missing: its benchmark did not run, or not with all contestants. The text says which."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise about a figure. `is_aim`: wished for, not promised."""

    promise: str
    limit: float
    measure: Callable[[Reports], float]
    at_least: bool = True
    unit: str = ""
    is_aim: bool = False

    def is_reached(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def figure(reports: Reports, *path: str) -> Any:
    """A figure by benchmark and keys. Raises NotMeasuredError."""
    value: Any = reports.get(path[0], {}).get("figures", {})
    for key in path[1:]:
        if not isinstance(value, Mapping) or key not in value:
            raise NotMeasuredError(" / ".join(path))
        value = value[key]
    return value


def quotient(ours: Sequence[str], theirs: Sequence[str]) -> Callable[[Reports], float]:
    def measure(reports: Reports) -> float:
        divisor = float(figure(reports, *theirs))
        if not divisor:
            raise NotMeasuredError(" / ".join(theirs))
        return float(figure(reports, *ours)) / divisor

    return measure


def value(*path: str) -> Callable[[Reports], float]:
    return lambda reports: float(figure(reports, *path))


def largest(*paths: Sequence[str]) -> Callable[[Reports], float]:
    return lambda reports: max(float(figure(reports, *path)) for path in paths)


def against(
    case: Sequence[str], peer: str, key: str = "requests_per_second", ours: str = "toska"
) -> Callable[[Reports], float]:
    return quotient((*case, ours, key), (*case, peer, key))


def checked(case: Sequence[str]) -> Callable[[Reports], float]:
    return quotient((*case, "toska with JWT", "requests_per_second"), (*case, "toska", "requests_per_second"))


def failures(reports: Reports) -> float:
    """Failed requests of our gateway in everything that was measured under load."""
    loads = [
        *figure(reports, "gateway").values(),
        figure(reports, "gateway_latency", "latency"),
        figure(reports, "gateway_routes"),
        figure(reports, "gateway_workers", "workers"),
    ]
    peers = ("nginx", "haproxy", "envoy", "caddy", "no proxy")
    return float(sum(one["failed"] for by_name in loads for name, one in by_name.items() if not name.startswith(peers)))


def scaling(reports: Reports) -> float:
    """Requests per second of two workers through one's; only where they have cores of their own."""
    if not figure(reports, "gateway_workers", "two_cores_of_their_own"):
        raise NotMeasuredError("too few cores")
    return float(figure(reports, "gateway_workers", "throughput_ratio"))


BARS: tuple[Bar, ...] = (
    Bar("small GET: requests per second and core, toska ÷ Envoy", 1.5, against(SMALL_GET, "envoy")),
    Bar("the same, aim", 2.0, against(SMALL_GET, "envoy"), is_aim=True),
    Bar("the same with the compiled build, aim", 2.0, against(SMALL_GET, "envoy", ours="toska compiled"), is_aim=True),
    Bar("small GET: toska ÷ Caddy", 1.5, against(SMALL_GET, "caddy")),
    Bar("small GET: toska ÷ nginx, aim", 0.6, against(SMALL_GET, "nginx"), is_aim=True),
    Bar("the same with the compiled build, aim", 0.6, against(SMALL_GET, "nginx", ours="toska compiled"), is_aim=True),
    Bar("small GET: with JWT ÷ without, one client per connection", 0.85, checked(ONE_TOKEN)),
    Bar("small GET: with JWT ÷ without, 100 clients mixed on all connections", 0.85, checked(MANY_TOKENS)),
    Bar(
        "p99 at half of Envoy's saturation: toska ÷ Envoy",
        1.0,
        against(("gateway_latency", "latency"), "envoy", "p99_ms"),
        at_least=False,
    ),
    Bar("1 GiB down: toska ÷ nginx", 0.8, against(("gateway_transfer", "down"), "nginx", "mib_per_second")),
    Bar("1 GiB up: toska ÷ nginx", 0.8, against(("gateway_transfer", "up"), "nginx", "mib_per_second")),
    Bar(
        "1 GiB down and up: memory growth",
        16,
        largest(*(("gateway_transfer", way, "toska", "memory_growth_mib") for way in ("down", "up"))),
        at_least=False,
        unit="MiB",
    ),
    Bar(
        "10,000 idle connections: memory of each",
        12,
        value("gateway_idle", "memory", "toska", "kib_per_connection"),
        at_least=False,
        unit="KiB",
    ),
    Bar("failed requests under load, route changes included", 0, failures, at_least=False),
    Bar("two workers on two cores of their own ÷ one on one, aim", 1.7, scaling, is_aim=True),
    Bar("requests per CPU second, two workers ÷ one, aim", 0.85, value("gateway_workers", "efficiency"), is_aim=True),
    *(
        Bar(
            f"{daemon}: start to ready",
            0.7,
            value("gateway_startup", daemon, "ready_seconds"),
            at_least=False,
            unit="s",
        )
        for daemon in DAEMONS
    ),
    *(
        Bar(f"{daemon}: idle memory (RSS)", 60, value("gateway_startup", daemon, "rss_mib"), at_least=False, unit="MiB")
        for daemon in DAEMONS
    ),
)


def judge(bars: Sequence[Bar], reports: Reports) -> list[list[object]]:
    """The table: each bar with what was measured and whether that reaches it."""
    rows: list[list[object]] = [["promise", "bar", "measured", "reached"]]
    for bar in bars:
        unit = f" {bar.unit}" if bar.unit else ""
        limit = f"{'≥' if bar.at_least else '≤'} {bar.limit:g}{unit}"
        try:
            measured = bar.measure(reports)
        except NotMeasuredError as missing:
            rows.append([bar.promise, limit, "—", f"not measured: {missing}"])
            continue
        verdict = "yes" if bar.is_reached(measured) else "not yet" if bar.is_aim else "**no**"
        rows.append([bar.promise, limit, f"{measured:.2f}{unit}" if measured else f"0{unit}", verdict])
    return rows


def sources(reports: Reports) -> list[list[object]]:
    """When and on what the figures were measured."""
    rows: list[list[object]] = [["figures", "date", "revision", "machine", "load before", "command"]]
    for name, report in reports.items():
        machine = report["machine"]
        rows.append(
            [
                f"[{name}]({name}.md)",
                report["date"],
                report["revision"],
                f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}",
                machine["load_at_start"],
                f"`{report['command']}`",
            ]
        )
    return rows


def main() -> None:
    reports: dict[str, Any] = {}
    for path in sorted(RESULTS.glob("gateway*.json")):
        reports[path.stem] = json.loads(path.read_text())
    text = (
        "# The gateway's bars\n\n"
        "Written by `make bench` from the results beside this file. A ratio is one of medians of the same run, in "
        "which the proxies took turns; each had one core.\n\n"
        f"{markdown_table(judge(BARS, reports))}\n\n{markdown_table(sources(reports))}\n"
    )
    (RESULTS / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

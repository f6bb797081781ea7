"""wrk on the load's core: as many requests as the proxy answers, and what they cost it."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from bench.support.accounting import spending
from bench.support.contestants import LOAD_CORE, have

HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64)",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate, br",
    "Accept-Language": "en-GB,en;q=0.8",
    "Cache-Control": "no-cache",
    "Cookie": "session=0123456789abcdef0123456789abcdef",
    "Referer": "http://localhost/index.html",
    "X-Custom": "bench",
}
"""What a browser would send; with `Host` that makes nine."""

NINE_HEADERS = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in HEADERS.items()) + "\n"

POST = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = string.rep("x", 1024)
"""

NEW_CONNECTIONS = 'wrk.headers["Connection"] = "close"\n'
"""The answer then says so too, and wrk dials again for the next request."""

REPORT = """
done = function(summary, latency, requests)
  local errors = summary.errors
  print("bench_requests=" .. summary.requests)
  print("bench_microseconds=" .. summary.duration)
  print("bench_p50=" .. latency:percentile(50))
  print("bench_p99=" .. latency:percentile(99))
  print("bench_failed=" .. (errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""
"""What wrk says at its end, in a form that is read here."""


def in_turn(paths: Sequence[str] = (), authorizations: Sequence[str] = ()) -> str:
    """A script that makes all requests beforehand and sends them one after the other, over and over."""
    lua_paths = ", ".join(f'"{path}"' for path in paths)
    lua_tokens = ", ".join(f'"{value}"' for value in authorizations)
    return f"""
local paths, authorizations, made, turn = {{{lua_paths}}}, {{{lua_tokens}}}, {{}}, 0
init = function(args)
  for n = 1, math.max(#paths, #authorizations, 1) do
    wrk.headers["Authorization"] = authorizations[n]
    made[n] = wrk.format(nil, paths[n])
  end
end
request = function()
  turn = turn % #made + 1
  return made[turn]
end
"""


@dataclass(frozen=True, slots=True)
class Round:
    """One run of the load against one contestant."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    failed: int
    cpu_seconds_per_request: float
    proxy_cores: float
    """How many cores the proxy kept busy: where it has one, 1.0 says that the proxy was the limit."""
    load_core_share: float
    """How much of the load's core was busy: near 1.0 the load or the backend may have been the limit."""

    def figures(self) -> dict[str, float]:
        return {
            "requests_per_second": round(self.requests_per_second, 1),
            "p50_ms": round(self.p50_ms, 3),
            "p99_ms": round(self.p99_ms, 3),
            "failed": self.failed,
            "cpu_microseconds_per_request": round(self.cpu_seconds_per_request * 1e6, 2),
            "proxy_cores": round(self.proxy_cores, 3),
            "load_core_share": round(self.load_core_share, 3),
        }

    def __str__(self) -> str:
        failed = f", {self.failed} FAILED" if self.failed else ""
        return f"{self.requests_per_second:,.0f}/s, p99 {self.p99_ms:.2f} ms, {self.proxy_cores:.0%} of a core{failed}"


def wrk(
    url: str, connections: int, seconds: float, script: str, pid: int, cores: Sequence[int] = (LOAD_CORE,)
) -> Round:
    """One round against `url`, whose server is process `pid`; `script` is a file that ends with `REPORT`."""
    command = [
        *("taskset", "-c", ",".join(map(str, cores)), have("wrk"), f"-t{len(cores)}", f"-c{connections}"),
        *(f"-d{max(1, round(seconds))}s", "--latency", "-s", script, url),
    ]
    with spending(pid, LOAD_CORE) as spent:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    figures = dict(line.split("=") for line in done.stdout.splitlines() if line.startswith("bench_") and "=" in line)
    requests = int(figures.get("bench_requests", 0))
    if done.returncode or not requests:
        raise SystemExit(f"no answer from {url}:\n{done.stdout}\n{done.stderr}")
    failed = int(figures["bench_failed"])
    if failed >= requests:
        raise SystemExit(f"every request to {url} failed:\n{done.stdout}")
    return Round(
        requests / (float(figures["bench_microseconds"]) / 1e6),
        float(figures["bench_p50"]) / 1000,
        float(figures["bench_p99"]) / 1000,
        failed,
        spent.cpu_seconds / requests,
        spent.proxy_cores,
        spent.load_core_share,
    )

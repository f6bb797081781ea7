"""Where figures go: a JSON and a Markdown file per benchmark in `bench/results/`, with machine, date and command."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = Path(os.environ.get("BENCH_RESULTS") or ROOT / "bench" / "results")
"""`BENCH_RESULTS` names another folder, for a run whose figures nobody should keep."""

_LOAD_AT_START = os.getloadavg()[0]


def machine() -> dict[str, Any]:
    """What the figures depend on, without names or paths of the machine."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_at_start": round(_LOAD_AT_START, 2),
    }


def revision() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    is_changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "src", "bench/*.py"], cwd=ROOT, check=False)
    return (done.stdout.strip() or "unknown") + (" with changes" if is_changed.returncode == 1 else "")


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The value that `fraction` of all are below; p99 of 200 is the second largest. `ordered` must be sorted."""
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median, p90, p99 and maximum."""
    ordered = sorted(values)
    found = {
        name: round(percentile(ordered, fraction), 3)
        for name, fraction in (("median", 0.5), ("p90", 0.9), ("p99", 0.99))
    }
    return {**found, "max": round(ordered[-1], 3), "count": len(ordered)}


def markdown_table(rows: Sequence[Sequence[object]]) -> str:
    """The first row is the head."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in body)])


def save_text(name: str, title: str, command: str, text: str) -> None:
    """Keep what a benchmark printed, as it stands, with machine, date and command."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(f"# {title}\n\n{about()}.\n\n    {command}\n\n```\n{text.strip()}\n```\n")


def about() -> str:
    """Date, revision and machine in one line."""
    this = machine()
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    return (
        f"{moment}, revision {revision()}, {this['cores']} cores of {this['cpu']}, {this['memory_gib']} GiB, "
        f"Python {this['python']}, load {this['load_at_start']} at the start"
    )


def save(name: str, title: str, figures: Mapping[str, Any], table: Sequence[Sequence[object]], notes: str = "") -> None:
    """Write both files and print the table. The first row of `table` is its head."""
    command = shlex.join(["python", "-m", f"bench.{name}", *sys.argv[1:]])
    report = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision(),
        "command": command,
        "machine": machine(),
        "figures": figures,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    text = f"# {title}\n\n{about()}.\n\n    {command}\n\n{markdown_table(table)}\n"
    if notes:
        text += f"\n{notes.strip()}\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(text)

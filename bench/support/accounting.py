"""What the kernel counts about a process and its children: CPU time, memory; and how busy a core was."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def family(pid: int) -> list[int]:
    """The process and all that it started."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    except OSError:
        pass  # it ended while we looked
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children."""
    total = 0
    for member in family(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_SECOND


def resident_bytes(pid: int) -> int:
    """Resident memory (RSS) of a process and its children; pages that they share count for each."""
    total = 0
    for member in family(pid):
        try:
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1]) * _PAGE_BYTES
        except OSError:
            continue
    return total


def proportional_bytes(pid: int) -> int:
    """Memory (PSS) of a process and its children; a page shared by n processes counts as 1/n in each."""
    total = 0
    for member in family(pid):
        try:
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def busy_seconds(core: int) -> float:
    """Time since boot in which the core did anything at all, for anybody."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            idle, waiting = int(fields[3]), int(fields[4])
            return (sum(map(int, fields[:8])) - idle - waiting) / _TICKS_PER_SECOND
    return 0.0


@dataclass(slots=True)
class Spent:
    """What a stretch of time cost; complete when its `with` block has ended."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    load_core_seconds: float = 0.0

    @property
    def proxy_cores(self) -> float:
        """Cores that the process kept busy: 1.0 is all of one, so that nothing more could come from it."""
        return self.cpu_seconds / self.seconds if self.seconds else 0.0

    @property
    def load_core_share(self) -> float:
        return self.load_core_seconds / self.seconds if self.seconds else 0.0


@contextmanager
def spending(pid: int, load_core: int) -> Iterator[Spent]:
    """Account for the block: time on the clock, CPU time of the process, business of the load's core."""
    spent = Spent()
    cpu, busy, began = cpu_seconds(pid), busy_seconds(load_core), time.perf_counter()
    yield spent
    spent.seconds = time.perf_counter() - began
    spent.cpu_seconds = cpu_seconds(pid) - cpu
    spent.load_core_seconds = busy_seconds(load_core) - busy


@dataclass(slots=True)
class Peak:
    """The most memory seen so far, in bytes."""

    resident_bytes: int = 0


@contextmanager
def watch_memory(pid: int, every_seconds: float = 0.02) -> Iterator[Peak]:
    """Look at the resident memory again and again while the block runs, and keep the largest."""
    peak, over = Peak(resident_bytes(pid)), Event()

    def look() -> None:
        while not over.wait(every_seconds):
            peak.resident_bytes = max(peak.resident_bytes, resident_bytes(pid))

    watcher = Thread(target=look, name="watch memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        peak.resident_bytes = max(peak.resident_bytes, resident_bytes(pid))

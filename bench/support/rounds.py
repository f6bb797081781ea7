"""How a comparison is run: set the process up, let contestants take turns, reduce the rounds to medians."""

import os
import resource
import signal
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, TypeVar

from bench.support.contestants import LOAD_CORE

Contestant = TypeVar("Contestant")
Result = TypeVar("Result")


def prepare() -> None:
    """Keep this process, and what it starts without another word, on the load's core, with all the sockets it may have.

    A SIGTERM ends it as Ctrl-C does, through every `with` block, so that nothing stays behind.
    """
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("two cores are needed: one for the proxy, one for the load and the backend")
    os.sched_setaffinity(0, {LOAD_CORE})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    raise SystemExit(128 + number)


def interleave(
    what: str,
    contestants: Mapping[str, Contestant],
    rounds: int,
    measure: Callable[[str, Contestant], Result],
    tell: Callable[[Result], str],
) -> dict[str, list[Result]]:
    """Every contestant once per round, each round beginning with another one.

    A busy moment of the machine hits neighbours alike, and nobody always follows the same one.
    """
    results: dict[str, list[Result]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in rotated(list(contestants), turn):
            result = measure(name, contestants[name])
            results[name].append(result)
            print(f"{what}, round {turn + 1} of {rounds}: {name}: {tell(result)}", file=sys.stderr, flush=True)
    return results


def rotated(names: Sequence[str], turn: int) -> list[str]:
    start = turn % len(names) if names else 0
    return [*names[start:], *names[:start]]


def medians(rounds: Sequence[Mapping[str, float]], summed: Sequence[str] = ("failed",)) -> dict[str, float]:
    """Median of each figure over the rounds; failures are added up, because one is one too many."""
    result: dict[str, float] = {}
    for key in rounds[0]:
        values = [one[key] for one in rounds]
        result[key] = sum(values) if key in summed else round(statistics.median(values), 4)
    return result


def ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any], key: str) -> float:
    """Ours through theirs; 0 when theirs is missing or nothing."""
    return round(ours[key] / theirs[key], 3) if theirs.get(key) else 0.0

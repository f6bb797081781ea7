"""Strategies that look at a few targets: Random, P2C (power of two choices) and LeastConnections.

P2C takes the less loaded of two random instances: nearly as even as looking at all of them, at a constant price, and
gateways that do not know of each other do not all run to the same instance (Mitzenmacher, "The power of two choices in
randomized load balancing"). LeastConnections is exact up to `WINDOW` instances; above, it takes the best of a window of
that many neighbours which moves on with every pick. In slow start load counts as `Target.load` says.
"""

from collections.abc import Collection, Sequence
from random import Random
from typing import Final

from toska_mesh.router.picker import open_targets
from toska_mesh.router.target import Target

WINDOW: Final = 8


class RandomPicker:
    """Uniform choice."""

    __slots__ = ("_count", "_random", "_targets")

    def __init__(self, targets: Sequence[Target], rng: Random, previous: object = None) -> None:
        self._targets = targets
        self._count = len(targets)
        self._random = rng.random

    def pick(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        target = self._targets[int(self._random() * self._count)]
        if target.is_blocked or tried:
            return self._choose(open_targets(self._targets, tried))
        return target

    def pick_ramping(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        for _ in range(2 * self._count):
            target = self._targets[int(self._random() * self._count)]
            if not target.is_blocked and target not in tried and target.takes_turn(now):
                return target
        return self._choose(open_targets(self._targets, tried))

    def _choose(self, candidates: list[Target]) -> Target | None:
        return candidates[int(self._random() * len(candidates))] if candidates else None


class TwoChoicesPicker:
    """P2C. Needs two targets at least."""

    __slots__ = ("_count", "_others", "_random", "_targets")

    def __init__(self, targets: Sequence[Target], rng: Random, previous: object = None) -> None:
        self._targets = targets
        self._count = len(targets)
        self._others = len(targets) - 1
        self._random = rng.random

    def pick(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        random, targets = self._random, self._targets
        first = int(random() * self._count)
        second = int(random() * self._others)
        if second >= first:
            second += 1  # two different ones, each pair as likely
        target, other = targets[first], targets[second]
        if target.is_blocked or (other.in_flight < target.in_flight and not other.is_blocked):
            target = other
        if target.is_blocked or tried:
            return self._choose(open_targets(targets, tried), now)
        return target

    def pick_ramping(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        random, targets = self._random, self._targets
        first = int(random() * self._count)
        second = int(random() * self._others)
        if second >= first:
            second += 1
        target, other = targets[first], targets[second]
        if target.is_blocked or (other.load(now) < target.load(now) and not other.is_blocked):
            target = other
        if target.is_blocked or tried:
            return self._choose(open_targets(targets, tried), now)
        return target

    def _choose(self, candidates: list[Target], now: float) -> Target | None:
        if not candidates:
            return None
        count = len(candidates)
        first, second = candidates[int(self._random() * count)], candidates[int(self._random() * count)]
        return second if second.load(now) < first.load(now) else first


class LeastConnectionsPicker:
    """The fewest requests in flight; equals take turns."""

    __slots__ = ("_count", "_ring", "_span", "_start", "_targets")

    def __init__(self, targets: Sequence[Target], rng: Random, previous: object = None) -> None:
        self._targets = targets
        self._count = len(targets)
        self._span = min(WINDOW, self._count)
        self._ring = (*targets, *targets[: self._span])  # a window that crosses the end is one slice
        self._start = int(rng.random() * self._count)  # gateways need not agree on who is first among equals

    def pick(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        if tried:
            return self._least(open_targets(self._targets, tried), now)
        start = self._start
        self._start = start + 1 if start + 1 < self._count else 0
        best = self._ring[start]
        if best.in_flight <= 0 and not best.is_blocked:
            return best  # nobody can have less
        least = 1 << 62
        for target in self._ring[start : start + self._span]:
            if target.in_flight < least and not target.is_blocked:
                best = target
                least = target.in_flight
        if best.is_blocked:
            return self._least(open_targets(self._targets, tried), now)  # the whole window is
        return best

    def pick_ramping(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        start = self._start
        self._start = start + 1 if start + 1 < self._count else 0
        candidates = open_targets(self._ring[start : start + self._span], ())
        candidates = [target for target in candidates if target not in tried]
        return self._least(candidates or open_targets(self._targets, tried), now)

    def _least(self, candidates: list[Target], now: float) -> Target | None:
        return min(candidates, key=lambda target: target.load(now), default=None)

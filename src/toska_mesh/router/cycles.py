"""Strategies that take turns: RoundRobin and WeightedRoundRobin.

Both are an endless iterator of targets, so that the common pick is one `next` in C. They differ in the order only.

The smooth order: instances of equal weight form a class; a class of n instances of weight w has n·w turns per cycle,
placed at (k + ½)/(n·w) for k = 0, 1, …; classes are merged by place, and inside a class the instances alternate. So
every instance has exactly `weight` turns per cycle, spread as evenly as the others allow: weights 3, 1, 1 give
A B A C A. nginx's well-known algorithm gives the same there, but costs a pass over all instances per turn.
"""

from collections.abc import Collection, Iterator, Sequence
from heapq import heapify, heapreplace
from itertools import cycle, islice
from math import gcd
from random import Random
from typing import Final

from toska_mesh.router.target import Target

LONGEST_STORED_CYCLE: Final = 4096
"""Longer cycles are computed as they go (a heap of weight classes); storing one costs 8 bytes per turn."""


def smooth_order(targets: Sequence[Target], weights: Sequence[int]) -> Iterator[Target]:
    """The endless smooth order. O(log c) per turn with c distinct weights; weights are whole numbers above 0."""
    classes: dict[int, list[Target]] = {}
    for target, weight in zip(targets, weights, strict=True):
        classes.setdefault(weight, []).append(target)
    turns = {weight: weight * len(members) for weight, members in classes.items()}
    while True:
        # Each cycle starts from scratch, so that no rounding adds up. Among equal places the heavier class is first.
        heap = [(1 / (2 * turns[weight]), -weight, 0, cycle(members)) for weight, members in classes.items()]
        heapify(heap)
        for _ in range(sum(turns.values())):
            _, negative_weight, taken, members = heap[0]
            yield next(members)
            place = (2 * taken + 3) / (2 * turns[-negative_weight])
            heapreplace(heap, (place, negative_weight, taken + 1, members))


class TurnPicker:
    """Hands out targets in the order of an endless iterator; who cannot take a turn loses it to the next."""

    __slots__ = ("_next", "_patience", "_targets")

    def __init__(self, targets: Sequence[Target], order: Iterator[Target], cycle_length: int) -> None:
        self._targets = targets
        self._next = order.__next__
        # A walk of one cycle meets everyone. With weights a cycle can be long; then a short walk must do.
        self._patience = min(cycle_length, 2 * len(targets) + 8)

    def pick(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        target = self._next()
        if target.is_blocked or tried:
            return self._walk(target, tried)
        return target

    def pick_ramping(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        passed = None
        for _ in range(self._patience):
            target = self._next()
            if target.is_blocked or target in tried:
                continue
            if target.takes_turn(now):
                return target
            passed = target
        return passed if passed is not None else self._walk(self._next(), tried)

    def upcoming(self) -> Target:
        """Whose turn it is. Takes the turn: for the successor of this picker, which goes on from there."""
        return self._next()

    def _walk(self, target: Target, tried: Collection[Target]) -> Target | None:
        again = None
        for _ in range(self._patience):
            if not target.is_blocked:
                if target not in tried:
                    return target
                again = target
            target = self._next()
        for target in self._targets:  # the light ones, whom the walk need not have met
            if not target.is_blocked:
                if target not in tried:
                    return target
                again = target
        return again


def round_robin(targets: Sequence[Target], rng: Random, previous: object = None) -> TurnPicker:
    """Everyone in turn, by id. Goes on where `previous` was, so that frequent rebuilds do not favour the first ids."""
    return TurnPicker(targets, cycle(_resumed(targets, rng, previous)), len(targets))


def weighted_round_robin(targets: Sequence[Target], rng: Random, previous: object = None) -> TurnPicker:
    """Everyone `weight` times per cycle, smoothly."""
    divisor = gcd(*(target.weight for target in targets))
    weights = [target.weight // divisor for target in targets]
    length = sum(weights)
    order = smooth_order(targets, weights)
    if length > LONGEST_STORED_CYCLE:
        return TurnPicker(targets, order, length)
    return TurnPicker(targets, cycle(_resumed(list(islice(order, length)), rng, previous)), length)


def _resumed(order: Sequence[Target], rng: Random, previous: object) -> list[Target]:
    if isinstance(previous, TurnPicker):
        at = previous.upcoming().instance.id
        start = next((index for index, target in enumerate(order) if target.instance.id >= at), 0)
    else:
        start = 0
    return [*order[start:], *order[:start]]

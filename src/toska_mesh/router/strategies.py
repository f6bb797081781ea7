"""The balancing strategies by name. A new one is one entry here and one row of tests."""

from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Final, NamedTuple

from toska_mesh.router.cycles import round_robin, weighted_round_robin
from toska_mesh.router.hashed import HashPicker
from toska_mesh.router.picker import NobodyPicker, Picker
from toska_mesh.router.sampled import LeastConnectionsPicker, RandomPicker, TwoChoicesPicker
from toska_mesh.router.target import Target


class Strategy(NamedTuple):
    """`make(targets, rng, previous)` gives a picker; `previous` is the one that it replaces, or None."""

    name: str
    make: Callable[[Sequence[Target], Random, object], Picker]


STRATEGIES: Final[Mapping[str, Strategy]] = MappingProxyType(
    {
        "roundrobin": Strategy("RoundRobin", round_robin),
        "leastconnections": Strategy("LeastConnections", LeastConnectionsPicker),
        "random": Strategy("Random", RandomPicker),
        "weightedroundrobin": Strategy("WeightedRoundRobin", weighted_round_robin),
        "iphash": Strategy("IPHash", HashPicker),
        "p2c": Strategy("P2C", TwoChoicesPicker),
    }
)
DEFAULT_STRATEGY: Final = STRATEGIES["roundrobin"]


def parse_strategy(name: str) -> Strategy | None:
    """Find a strategy: `RoundRobin`, `roundrobin`, `round_robin` and `round-robin` are the same. None when unknown."""
    return STRATEGIES.get(name.strip().lower().replace("_", "").replace("-", ""))


def make_picker(strategy: Strategy, targets: Sequence[Target], rng: Random, previous: object = None) -> Picker:
    """A picker for any number of targets: none gives nobody, and for a single one there is nothing to decide."""
    if not targets:
        return NobodyPicker()
    if len(targets) == 1 and strategy.name != "IPHash":
        return round_robin(targets, rng)
    return strategy.make(targets, rng, previous)

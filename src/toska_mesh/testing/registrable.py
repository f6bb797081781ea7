"""What a service in a fake mesh may be described as: no more than discovery and the SDK would register.

A test that passes with what nobody could register says nothing, and a balancing strategy with a spelling mistake would
quietly be another one.
"""

from collections.abc import Mapping, Sequence

from toska_mesh.model import rules
from toska_mesh.model.metadata import LB_STRATEGY
from toska_mesh.router import MAX_WEIGHT, STRATEGIES, parse_strategy


def check_described(
    name: str, strategy: str, weights: Sequence[int], instances: int, interval_seconds: int, metadata: Mapping[str, str]
) -> None:
    """`metadata`: all of it, with what is written from the others. Raises ValueError at the first wrong one."""
    _check("the service's name", rules.problem_with_service_name(name))
    _check(f"strategy={strategy!r}", _problem_with_strategy(strategy))
    _check(f"metadata {LB_STRATEGY}={metadata[LB_STRATEGY]!r}", _problem_with_strategy(metadata[LB_STRATEGY]))
    if len(weights) > instances:
        raise ValueError(f"{len(weights)} weights for {instances} instances")
    for weight in weights:
        if not 1 <= weight <= MAX_WEIGHT:
            raise ValueError(f"the weight {weight} is not between 1 and {MAX_WEIGHT}")
    _check("interval_seconds", rules.problem_with_interval(interval_seconds))
    for key, value in metadata.items():
        if not all(isinstance(part, str) for part in (key, value)):
            raise ValueError(f"metadata {key!r}: {value!r} is not a pair of texts; write for example {{'zone': 'a'}}")
    _check("", rules.problem_with_metadata(metadata))


def _check(what: str, problem: str | None) -> None:
    if problem:
        raise ValueError(f"{what} {problem}".lstrip())


def _problem_with_strategy(strategy: str) -> str | None:
    names = ", ".join(known.name for known in STRATEGIES.values())
    return None if parse_strategy(strategy) is not None else f"is not one of {names}"

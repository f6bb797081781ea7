"""When the collector is told to pass over what stays; Python's own collector does the rest."""

import gc
from collections.abc import Iterator

import pytest

from toska_mesh.gateway.garbage import CalmCollector


@pytest.fixture(autouse=True)
def collector_as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def freezes(sizes: list[int]) -> list[int]:
    """Of tables with so many instances: those at which something was frozen."""
    collector, found = CalmCollector(), []
    for size in sizes:
        fresh = [[] for _ in range(100)]  # type: list[list[int]]
        before = gc.get_freeze_count()
        collector.table_in_use(size)
        if gc.get_freeze_count() >= before + len(fresh):
            found.append(size)
    return found


def test_the_first_table_is_frozen_and_then_each_that_is_twice_as_large() -> None:
    assert freezes([100, 101, 200, 201, 300, 402, 403, 5, 807]) == [100, 201, 403, 807]


def test_an_empty_registry_that_fills_is_frozen_when_it_is_worth_it() -> None:
    assert freezes([0, 1, 2, 50, 51, 60, 102, 103]) == [0, 51, 103]


def test_what_is_frozen_is_no_part_of_a_collection() -> None:
    kept = [[] for _ in range(1000)]  # type: list[list[int]]
    CalmCollector().table_in_use(1)
    assert not any(one is each for each in gc.get_objects(generation=2) for one in kept[:10])
    assert gc.get_threshold()[0] > 700

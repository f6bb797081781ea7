"""Cutting answers into pieces finds exactly what parsing them whole would."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.virtual_loop import run_virtual

from toska_mesh.errors import RegistryError
from toska_mesh.registry.consul import difference
from toska_mesh.registry.consul.difference import CheckOwner, PieceSet, ServiceMark, changed_checks, changed_services

names = st.text(min_size=1, max_size=12) | st.sampled_from(
    ['a"b', "a\\", '},{"Node":', '":{"ID":"', '"ModifyIndex":5', "}", "]}}", '{"Node":"n1"', "\n    {\n"]
)
layouts = st.sampled_from([{"separators": (",", ":")}, {"indent": 4}, {}, {"sort_keys": True}])
checks = st.dictionaries(
    st.tuples(st.sampled_from(["n1", "n2"]), names),
    st.tuples(names, names, st.integers(1, 9)),
    max_size=8,
)


def check_list(table: dict[tuple[str, str], tuple[str, str, int]], layout: dict[str, Any]) -> bytes:
    return json.dumps(
        [
            {"Node": node, "CheckID": check_id, "Output": output, "ServiceName": service, "ModifyIndex": index}
            for (node, check_id), (service, output, index) in table.items()
        ],
        **layout,
    ).encode()


@given(checks, checks, layouts)
def test_changed_checks_are_the_difference(before: Any, after: Any, layout: dict[str, Any]) -> None:
    async def run() -> tuple[set[CheckOwner], set[CheckOwner]]:
        known = PieceSet()
        first = await changed_checks(known, check_list(before, layout))
        return first, await changed_checks(known, check_list(after, layout))

    first, second = run_virtual(run)
    assert first == {CheckOwner(key[0], value[0]) for key, value in before.items()}
    changed = set(before.items()) ^ set(after.items())
    assert second == {CheckOwner(key[0], value[0]) for key, value in changed}


services = st.dictionaries(
    names, st.tuples(names, st.integers(1, 9), st.dictionaries(names, names, max_size=2)), max_size=8
)


def node_of(table: Any, layout: dict[str, Any]) -> bytes:
    entries = {
        key: {"ID": key, "Service": service, "Meta": meta, "Proxy": {"Expose": {}}, "ModifyIndex": index}
        for key, (service, index, meta) in table.items()
    }
    return json.dumps({"Node": {"ID": "x", "Node": "n1"}, "Services": entries}, **layout).encode()


def marks(table: Any) -> set[ServiceMark]:
    return {ServiceMark("n1", service, key, index) for key, (service, index, _) in table.items()}


@given(services, services, layouts)
def test_changed_services_are_the_difference(before: Any, after: Any, layout: dict[str, Any]) -> None:
    async def run() -> Any:
        known = PieceSet()
        first = await changed_services(known, "n1", node_of(before, layout))
        return first, await changed_services(known, "n1", node_of(after, layout))

    first, (added, removed) = run_virtual(run)
    assert first == (marks(before), set())
    pairs_before, pairs_after = list(before.items()), list(after.items())
    assert added == marks(dict(pair for pair in pairs_after if pair not in pairs_before))
    assert removed == marks(dict(pair for pair in pairs_before if pair not in pairs_after))


numbers = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 3)), max_size=60)


@given(numbers, numbers, layouts, st.sampled_from([(1 << 15, 20), (300, 2), (0, 0)]))
def test_however_much_changed_and_moved_it_is_found(
    before: list[tuple[int, int]], after: list[tuple[int, int]], layout: dict[str, Any], limits: tuple[int, int]
) -> None:
    """In any order, with pieces that come, go, move and change beside each other, whatever is looked for nearby."""
    old, new = dict(before), dict(after)

    async def run() -> set[CheckOwner]:
        known = PieceSet()
        await changed_checks(known, check_list(table_of(old), layout))
        found = await changed_checks(known, check_list(table_of(new), layout))
        assert await changed_checks(known, check_list(table_of(new), layout)) == set()
        assert known.is_cuttable
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(difference, "_NEAR_BYTES", limits[0])
        patch.setattr(difference, "_MAX_LOST", limits[1])
        patch.setattr(difference, "_MAX_STEPS", 10 * limits[1])
        patch.setattr(difference, "_SMALL_STEP", 16)
        patch.setattr(difference, "_LARGE_STEP", 64)
        found = run_virtual(run)
    assert found == {CheckOwner("n1", f"s{number}") for number, _ in old.items() ^ new.items()}


def table_of(numbers: dict[int, int]) -> dict[tuple[str, str], tuple[str, str, int]]:
    return {("n1", f"c{number}"): (f"s{number}", "", index) for number, index in numbers.items()}


async def test_another_layout_than_before_changes_nothing_it_does_not_say() -> None:
    """A registry that is replaced by one whose JSON is parsed whole."""
    known = PieceSet()
    await changed_checks(known, check_list(table_of({1: 1, 2: 1, 3: 1}), {"indent": 1}))
    odd = b'[{"%s":1,"Node":"n1","ServiceName":"odd"}' % (b"k" * 70)
    kept = b'{"Node":"n1","CheckID":"c2","Output":"","ServiceName":"s2","ModifyIndex":1}'
    assert await changed_checks(known, odd + b"," + kept + b"]") == {
        CheckOwner("n1", "odd"), CheckOwner("n1", "s1"), CheckOwner("n1", "s3")
    }  # fmt: skip
    assert not known.is_cuttable
    assert await changed_checks(known, b"[" + kept + b"]") == {CheckOwner("n1", "odd")}


async def test_a_foreign_list_leaves_what_was_known() -> None:
    known = PieceSet()
    await changed_checks(known, check_list(table_of({1: 1, 2: 1}), {}))
    for body in (b"<html>", b'[{"Node": "n1", "ServiceName": "s1"', b'[{"Node": "n1"}, 5]'):
        with pytest.raises(RegistryError):
            await changed_checks(known, body)
    assert known.is_cuttable
    assert await changed_checks(known, check_list(table_of({1: 1, 2: 2}), {})) == {CheckOwner("n1", "s2")}


async def test_thousands_of_checks_and_one_that_changed() -> None:
    table = {("n1", f"c{number}"): (f"s{number}", "", 1) for number in range(3000)}
    known = PieceSet()
    assert len(await changed_checks(known, check_list(table, {}))) == 3000
    table["n1", "c77"] = ("s77", "no", 2)
    assert await changed_checks(known, check_list(table, {})) == {CheckOwner("n1", "s77")}
    assert known.is_cuttable


@pytest.mark.parametrize("body", [b"[]", b"null", b"[ ]\n"])
async def test_an_empty_list_has_no_checks(body: bytes) -> None:
    known = PieceSet()
    await changed_checks(known, b'[{"Node":"n1","ServiceName":"a"}]')
    assert await changed_checks(known, body) == {CheckOwner("n1", "a")}


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"Node": 1}', b"[1]", b'[{"Node":"n1"'])
async def test_a_foreign_list_is_an_error(body: bytes) -> None:
    with pytest.raises(RegistryError):
        await changed_checks(PieceSet(), body)


@pytest.mark.parametrize("body", [b"null", b'{"Node":{},"Services":{}}'])
async def test_a_node_without_services_has_none(body: bytes) -> None:
    assert await changed_services(PieceSet(), "n1", body) == (set(), set())


@pytest.mark.parametrize(
    "body", [b"<html>", b'{"Services":{"a":{"ID":"a"', b'{"Services":[1]}', b'{"Services":{"a":1}}']
)
async def test_a_foreign_node_is_an_error(body: bytes) -> None:
    with pytest.raises(RegistryError):
        await changed_services(PieceSet(), "n1", body)

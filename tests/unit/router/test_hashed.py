"""A key keeps its instance, and a departed instance moves only its own keys."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.router.build import ids, picker, targets

from toska_mesh.router import Target
from toska_mesh.router.hashed import SLOTS, seed_of, slot_of

ADDRESSES = [f"10.{index % 3}.{index // 250}.{index % 250}" for index in range(2000)]

PINNED = "orders-1 orders-2 orders-6 orders-1 orders-7 orders-6 orders-2 orders-6"


def owners(among: list[Target], previous: object = None) -> dict[str, str]:
    pick = picker("IPHash", among, previous).pick
    return {key: ids([pick(0.0, key)]) for key in ADDRESSES}


@given(st.integers(2, 12), st.data())
def test_a_departed_instance_moves_only_its_own_keys(count: int, data: st.DataObject) -> None:
    among = targets(*(f"i{index:02}" for index in range(count)))
    gone = data.draw(st.sampled_from(among))
    keys = data.draw(st.lists(st.text(max_size=20), min_size=1))
    before = picker("IPHash", among)
    remaining = [target for target in among if target is not gone]
    owner = {key: before.pick(0.0, key) for key in keys}
    for after in (picker("IPHash", remaining), picker("IPHash", remaining, previous=before)):
        for key in keys:
            chosen = after.pick(0.0, key)
            assert chosen is owner[key] or owner[key] is gone
            assert chosen is not gone


def test_a_newcomer_takes_only_what_it_keeps() -> None:
    among = targets("A", "B", "C", "D")
    before, after = owners(among[:3]), owners(among)
    moved = {key for key in ADDRESSES if before[key] != after[key]}
    assert {after[key] for key in moved} == {"D"}
    assert 0.18 < len(moved) / len(ADDRESSES) < 0.32


def test_what_a_predecessor_settled_gives_the_same_as_settling_anew() -> None:
    among = targets("A", "B", "C", "D", "E")
    first = picker("IPHash", among[:4])
    for key in ADDRESSES:
        first.pick(0.0, key)
    changed = [among[0], among[2], among[3], among[4]]  # B left, E joined
    assert owners(changed, previous=first) == owners(changed)


def test_keys_spread_evenly() -> None:
    among = targets("A", "B", "C", "D")
    counted = Counter(owners(among).values())
    assert all(420 < counted[target.instance.id] < 580 for target in among)


def test_a_blocked_owner_is_always_stood_in_for_by_the_same_other() -> None:
    among = targets("A", "B", "C", "D")
    pick = picker("IPHash", among).pick
    owner = pick(0.0, "192.0.2.7")
    assert owner is not None
    owner.is_blocked = True
    stand_ins = {pick(0.0, "192.0.2.7") for _ in range(20)}
    assert len(stand_ins) == 1
    assert owner not in stand_ins
    owner.is_blocked = False
    assert pick(0.0, "192.0.2.7", [owner]) in stand_ins
    assert pick(0.0, "192.0.2.7") is owner


def test_keys_of_a_blocked_owner_spread_over_the_others() -> None:
    among = targets("A", "B", "C")
    before = owners(among)
    among[0].is_blocked = True
    after = owners(among)
    assert {key for key in ADDRESSES if before[key] != after[key]} == {key for key in ADDRESSES if before[key] == "A"}
    assert {after[key] for key in ADDRESSES if before[key] == "A"} == {"B", "C"}


def test_a_key_moves_to_a_newcomer_once_and_stays() -> None:
    among = targets("A", "B", "C")
    among[2].start_ramp(0.0, 10.0)
    pick = picker("IPHash", among).pick_ramping
    had = set[str]()
    for now in range(11):
        has = {key for key in ADDRESSES if pick(float(now), key) is among[2]}
        assert had <= has
        had = has
    assert had == {key for key, owner in owners(among).items() if owner == "C"}


def test_without_a_key_instances_take_turns() -> None:
    pick = picker("IPHash", targets("A", "B")).pick
    assert ids([pick(0.0) for _ in range(4)]) == "A B A B"


def test_the_hash_is_the_documented_one_in_every_process() -> None:
    # Pinned: a change of these numbers moves every key of every gateway during an upgrade.
    assert slot_of("192.0.2.1") == 0xDB610037 % SLOTS
    assert seed_of("orders-7f") == 0x45E217BE0F367AEC
    among = targets(*(f"orders-{index}" for index in range(8)))
    pick = picker("IPHash", among).pick
    assert ids([pick(0.0, f"192.0.2.{last}") for last in range(8)]) == PINNED

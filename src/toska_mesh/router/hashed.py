"""IPHash: the same client address (or session key) meets the same instance, and a change of the set moves few keys.

Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates") over a fixed number of
slots: a key belongs to one of `SLOTS` slots, a slot to the instance with the highest score for it. An instance that
leaves takes only its own slots with it; one that joins takes only what it keeps; the rest does not move. Slots are
settled when a key first needs them and remembered, so a pick is two look-ups and memory has a bound.

The hash is defined here, the same in every process and on every machine: slot = CRC-32 (zlib) of the key in UTF-8,
modulo `SLOTS`; seed of an instance = the first 8 bytes, big-endian, of BLAKE2b of its id; score = `_mix(seed ^ slot)`,
the finaliser of splitmix64. It depends on ids alone, so gateways agree without talking.
"""

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from random import Random
from typing import Final
from zlib import crc32

from toska_mesh.router.cycles import TurnPicker, round_robin
from toska_mesh.router.picker import open_targets
from toska_mesh.router.target import Target

SLOTS: Final = 65536
"""Must never depend on the number of instances: keys would move when it changes."""

_MASK_64: Final = (1 << 64) - 1


def slot_of(key: str) -> int:
    return crc32(key.encode("utf-8", "surrogatepass")) % SLOTS


def seed_of(instance_id: str) -> int:
    return int.from_bytes(blake2b(instance_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


class HashPicker:
    """Rendezvous over slots. For a blocked or tried owner the next highest score stands in: always the same one too."""

    __slots__ = ("_arrived", "_inherited", "_owners", "_seeds", "_targets", "_turns")

    def __init__(self, targets: Sequence[Target], rng: Random, previous: object = None) -> None:
        self._targets = targets
        self._seeds = {target: seed_of(target.instance.id) for target in targets}
        self._owners: dict[int, Target] = {}
        self._turns: TurnPicker = round_robin(targets, rng)
        # What the predecessor settled holds but for the instances that came or went since.
        self._inherited: dict[int, Target] = {}
        self._arrived: Sequence[Target] = ()
        if isinstance(previous, HashPicker):
            self._inherited = previous._owners
            self._arrived = [target for target in targets if target not in previous._seeds]

    def pick(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        if key is None:
            return self._turns.pick(now, None, tried)
        slot = crc32(key.encode("utf-8", "surrogatepass")) % SLOTS
        target = self._owners.get(slot)
        if target is None:
            target = self._settle(slot)
        if target.is_blocked or tried:
            return self._highest(slot, open_targets(self._targets, tried))
        return target

    def pick_ramping(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        """A key moves to a newcomer once and stays: at share s it has the keys whose own fraction is below s."""
        if key is None:
            return self._turns.pick_ramping(now, None, tried)
        slot = slot_of(key)
        fraction = _mix(slot) / (_MASK_64 + 1)
        candidates = open_targets(self._targets, tried)
        return self._highest(slot, [target for target in candidates if fraction < target.share(now)] or candidates)

    def _settle(self, slot: int) -> Target:
        owner = self._inherited.get(slot)
        candidates = (owner, *self._arrived) if owner is not None and owner in self._seeds else self._targets
        settled = self._highest(slot, candidates)
        assert settled is not None  # noqa: S101  # a picker has targets
        self._owners[slot] = settled
        return settled

    def _highest(self, slot: int, candidates: Iterable[Target]) -> Target | None:
        seeds = self._seeds
        return max(candidates, key=lambda target: _mix(seeds[target] ^ slot), default=None)

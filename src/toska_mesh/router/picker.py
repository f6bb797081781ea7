"""The shape of a balancing strategy, and what all of them agree on when the simple pick will not do.

A picker is made for one fixed set of targets and never told about changes: another set is another picker. The simple
pick is fast and looks at one or two targets; when those are blocked, or when the request was somewhere before, the
careful ways below decide the same question for any strategy:

1. not blocked and not tried yet; 2. not blocked though tried; 3. nobody.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from toska_mesh.router.target import Target


class Pick(Protocol):
    """Choose a target for one request, or None when every one is blocked (or there is none)."""

    def __call__(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        """`now`: seconds, monotonic. `key`: what IPHash hashes. `tried`: where this request has failed already."""


class Picker(Protocol):
    """A strategy at work on one set of targets."""

    @property
    def pick(self) -> Pick:
        """For the ordinary time: nobody is in slow start."""

    @property
    def pick_ramping(self) -> Pick:
        """The same choice while some target is in slow start. May cost more."""


def open_targets(targets: Sequence[Target], tried: Collection[Target]) -> list[Target]:
    """The targets that may be asked: the best of the two classes of the module's docstring. Linear."""
    unblocked = [target for target in targets if not target.is_blocked]
    if not tried:
        return unblocked
    return [target for target in unblocked if target not in tried] or unblocked


class NobodyPicker:
    """For a service without an eligible instance."""

    __slots__ = ()

    def pick(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        return None

    def pick_ramping(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        return None

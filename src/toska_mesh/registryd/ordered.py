"""A dict that is walked in the order of its keys: Consul's answers are sorted, and prefixes are ranges. Pure."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


class SortedMap(Generic[V]):
    """Look-up as in a dict; adding and removing a key moves part of a list, which is cheap up to some 100,000 keys."""

    def __init__(self) -> None:
        self._values: dict[str, V] = {}
        self._keys: list[str] = []

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> V | None:
        return self._values.get(key)

    def set(self, key: str, value: V) -> None:
        if key not in self._values:
            insort(self._keys, key)
        self._values[key] = value

    def pop(self, key: str) -> V | None:
        value = self._values.pop(key, None)
        if value is not None:
            del self._keys[bisect_left(self._keys, key)]
        return value

    def values(self) -> Iterator[V]:
        return (self._values[key] for key in self._keys)

    def under(self, prefix: str) -> list[V]:
        """The values of all keys that begin with `prefix`, in order."""
        start = bisect_left(self._keys, prefix)
        found = []
        for position in range(start, len(self._keys)):
            key = self._keys[position]
            if not key.startswith(prefix):
                break
            found.append(self._values[key])
        return found

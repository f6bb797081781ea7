"""One command's effect: the index it took, the rows to store, the topics whose watchers wake. Pure.

Consul gives every write of the cluster one index, and all that the write touches carries it. A command that turns out
to change nothing takes no index, stores nothing and wakes nobody.
"""

from dataclasses import dataclass, field

Topic = tuple[str, str]
"""A kind and a name, such as ("service", "orders")."""
RowKey = tuple[str, str]
"""A table and a key."""


class IndexCounter:
    """Hands out indexes, each above every earlier one. State owned by `State`."""

    def __init__(self, last: int) -> None:
        self.last = last

    def next(self) -> int:
        self.last += 1
        return self.last


@dataclass(slots=True)
class Changes:
    """Collects while a command runs; `index` is taken from the counter at its first use."""

    _counter: IndexCounter
    _index: int = 0
    rows: dict[RowKey, bytes | None] = field(default_factory=dict)
    """None deletes the row."""
    topics: set[Topic] = field(default_factory=set)

    @property
    def index(self) -> int:
        if not self._index:
            self._index = self._counter.next()
        return self._index

    def __bool__(self) -> bool:
        return bool(self._index)

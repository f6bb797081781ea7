"""The key-value store: flags, check-and-set, locks, prefixes, tombstones. Pure.

Rules are Consul 1.8's, quirks included (a plain write to a locked key keeps the lock and resets `LockIndex`). Owned by
`State`, on one event loop.
"""

from dataclasses import replace

from toska_mesh.registryd.changes import Changes
from toska_mesh.registryd.ordered import SortedMap
from toska_mesh.registryd.values import Behavior, Entry, Session, to_row

_MAX_TOMBSTONES = 10_000


class KeyValues:
    def __init__(self, base_index: int) -> None:
        self._base = base_index
        self.index = base_index
        self._entries: SortedMap[Entry] = SortedMap()
        self._held: dict[str, set[str]] = {}  # session -> its keys
        self._tombstones: SortedMap[int] = SortedMap()
        self._forgotten_index = base_index  # at or above the index of every tombstone that is no longer kept
        self._delayed: dict[str, float] = {}  # key -> when it may be locked again

    def load(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._keep(entry)

    # Questions

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def under(self, prefix: str) -> list[Entry]:
        return self._entries.under(prefix)

    def key_index(self, key: str) -> int:
        entry = self._entries.get(key)
        return max(entry.modify_index, self._base) if entry else self.index

    def prefix_index(self, prefix: str) -> int:
        """Highest index of what is or was under the prefix; the whole table's if nothing ever was."""
        if not prefix:
            return self.index
        highest = max((entry.modify_index for entry in self.under(prefix)), default=0)
        highest = max((highest, *self._tombstones.under(prefix)))
        return max(highest, self._forgotten_index) if highest else self.index

    def is_delayed(self, key: str, now: float) -> bool:
        """Whether a lock that was lost a moment ago still keeps others out."""
        return now < self._delayed.get(key, now)

    @property
    def count(self) -> int:
        return len(self._entries)

    # Commands

    def put(self, key: str, value: bytes, flags: int, changes: Changes) -> None:
        old = self._entries.get(key)
        self._store(Entry(key, value, flags, session=old.session if old else ""), changes)

    def put_if_unchanged(self, key: str, value: bytes, flags: int, index: int, changes: Changes) -> bool:
        """Check-and-set; `index` 0 means "only if there is none"."""
        old = self._entries.get(key)
        if (old.modify_index if old else 0) != index:
            return False
        self.put(key, value, flags, changes)
        return True

    def acquire(self, key: str, value: bytes, flags: int, session: str, now: float, changes: Changes) -> bool:
        """Write and lock. Holding it already, the session only writes."""
        old = self._entries.get(key)
        if self.is_delayed(key, now) or (old is not None and old.session not in ("", session)):
            return False
        lock_index = (old.lock_index if old else 0) + (0 if old and old.session else 1)
        self._store(Entry(key, value, flags, session, lock_index), changes)
        return True

    def release(self, key: str, value: bytes, flags: int, session: str, changes: Changes) -> bool:
        """Write and unlock, if the session holds the key."""
        old = self._entries.get(key)
        if old is None or old.session != session:
            return False
        self._store(Entry(key, value, flags, "", old.lock_index), changes)
        return True

    def delete(self, key: str, changes: Changes) -> None:
        entry = self._entries.pop(key)
        if entry is None:
            return
        self._forget_holder(entry)
        self._bury(key, changes)
        changes.rows["kv", key] = None
        self._touch(key, changes)

    def delete_if_unchanged(self, key: str, index: int, changes: Changes) -> bool:
        entry = self._entries.get(key)
        if entry is not None and entry.modify_index != index:
            return False
        self.delete(key, changes)
        return True

    def delete_under(self, prefix: str, changes: Changes) -> None:
        for entry in self.under(prefix):
            self.delete(entry.key, changes)

    def end_session(self, session: Session, now: float, changes: Changes) -> None:
        """Release or delete what the session holds, and keep others out for its lock delay."""
        for key in sorted(self._held.get(session.id, ())):
            entry = self._entries.get(key)
            if entry is None:
                continue
            if session.behavior is Behavior.DELETE:
                self.delete(key, changes)
            else:
                self._store(replace(entry, session=""), changes)
            if session.lock_delay_ns > 0:
                self._delayed[key] = now + session.lock_delay_ns / 1e9
        for key in [key for key, until in self._delayed.items() if until <= now]:
            del self._delayed[key]

    # Keeping the indexes

    def _store(self, entry: Entry, changes: Changes) -> None:
        old = self._entries.get(entry.key)
        if old is not None:
            entry = replace(entry, create_index=old.create_index, modify_index=old.modify_index)
            if entry == old:
                return
        index = changes.index
        entry = replace(entry, create_index=old.create_index if old else index, modify_index=index)
        if old is not None:
            self._forget_holder(old)
        self._keep(entry)
        changes.rows["kv", entry.key] = to_row(entry)
        self._touch(entry.key, changes)

    def _keep(self, entry: Entry) -> None:
        self._entries.set(entry.key, entry)
        if entry.session:
            self._held.setdefault(entry.session, set()).add(entry.key)

    def _forget_holder(self, entry: Entry) -> None:
        if entry.session:
            keys = self._held[entry.session]
            keys.discard(entry.key)
            if not keys:
                del self._held[entry.session]

    def _bury(self, key: str, changes: Changes) -> None:
        if len(self._tombstones) >= _MAX_TOMBSTONES:
            # A watcher of any prefix is woken once more than needed; the memory stays bounded.
            self._tombstones = SortedMap()
            self._forgotten_index = self.index
        self._tombstones.set(key, changes.index)

    def _touch(self, key: str, changes: Changes) -> None:
        self.index = changes.index
        changes.topics.add(("kv", key))

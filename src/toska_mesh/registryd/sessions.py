"""Sessions: who may hold locks, and what their life hangs on. Pure. Owned by `State`, on one event loop."""

from collections.abc import Iterator
from dataclasses import replace

from toska_mesh.registryd.changes import Changes
from toska_mesh.registryd.ordered import SortedMap
from toska_mesh.registryd.values import Session, to_row

TTL_FACTOR = 2
"""Consul lets a session live for twice its TTL: the TTL is a promise to the holder, not to the others."""


class Sessions:
    def __init__(self, base_index: int) -> None:
        self.index = base_index
        self._sessions: SortedMap[Session] = SortedMap()
        self._by_check: dict[str, set[str]] = {}

    def load(self, sessions: list[Session]) -> None:
        for session in sessions:
            self._keep(session)

    def get(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def all(self) -> Iterator[Session]:
        return self._sessions.values()

    def hanging_on(self, check_id: str) -> list[Session]:
        """The sessions that end when this check becomes critical or goes away."""
        ids = sorted(self._by_check.get(check_id, ()))
        return [session for id_ in ids if (session := self._sessions.get(id_))]

    @property
    def count(self) -> int:
        return len(self._sessions)

    def create(self, session: Session, changes: Changes) -> Session:
        session = replace(session, create_index=changes.index, modify_index=changes.index)
        self._keep(session)
        changes.rows["session", session.id] = to_row(session)
        self._touch(session.id, changes)
        return session

    def remove(self, session_id: str, changes: Changes) -> None:
        session = self._sessions.pop(session_id)
        if session is None:
            return
        for check_id in _checks_of(session):
            holders = self._by_check[check_id]
            holders.discard(session_id)
            if not holders:
                del self._by_check[check_id]
        changes.rows["session", session_id] = None
        self._touch(session_id, changes)

    def _keep(self, session: Session) -> None:
        self._sessions.set(session.id, session)
        for check_id in _checks_of(session):
            self._by_check.setdefault(check_id, set()).add(session.id)

    def _touch(self, session_id: str, changes: Changes) -> None:
        self.index = changes.index
        changes.topics |= {("sessions", ""), ("session", session_id)}


def _checks_of(session: Session) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*session.node_checks, *(session.service_checks or ()))))

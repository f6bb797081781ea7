"""The rows of a registry that keeps nothing on disk: for one that lives inside a test, and is stopped and started."""

from collections.abc import Mapping

from toska_mesh.registryd.changes import RowKey
from toska_mesh.registryd.state import Stored
from toska_mesh.registryd.values import check_from_row, entry_from_row, service_from_row, session_from_row


class MemoryStore:
    """Takes the rows of every command; what a start would find on disk is what they left."""

    def __init__(self) -> None:
        self._rows: dict[RowKey, bytes] = {}
        self._index = 1

    def add(self, rows: Mapping[RowKey, bytes | None], index: int) -> None:
        for key, body in rows.items():
            if body is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = body
        self._index = index

    async def durable(self) -> None:
        """Everything is as safe as it gets."""

    def load(self) -> Stored:
        return Stored(
            index=self._index,
            services=tuple(map(service_from_row, self._table("service"))),
            checks=tuple(map(check_from_row, self._table("check"))),
            entries=tuple(map(entry_from_row, self._table("kv"))),
            sessions=tuple(map(session_from_row, self._table("session"))),
        )

    def _table(self, name: str) -> list[bytes]:
        return [body for (table, _), body in sorted(self._rows.items()) if table == name]

    def wipe(self) -> None:
        """As a development agent forgets everything when it is restarted; its indexes begin anew."""
        self._rows.clear()
        self._index = 1

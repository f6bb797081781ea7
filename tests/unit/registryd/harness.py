"""A state whose disk is a dict, for the tests of this folder."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from random import Random

from toska_mesh.registryd.changes import RowKey, Topic
from toska_mesh.registryd.state import State, Stored
from toska_mesh.registryd.values import (
    Check,
    Service,
    Status,
    check_from_row,
    entry_from_row,
    service_from_row,
    session_from_row,
)


class Disk:
    """Keeps rows as the store does, and every batch that was written."""

    def __init__(self) -> None:
        self.rows: dict[RowKey, bytes] = {}
        self.batches: list[tuple[dict[RowKey, bytes | None], int]] = []
        self.woken: list[Topic] = []

    def persist(self, rows: Mapping[RowKey, bytes | None], index: int) -> None:
        self.batches.append((dict(rows), index))
        for key, body in rows.items():
            if body is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = body

    def wake(self, topics: Iterable[Topic]) -> None:
        self.woken += topics

    def stored(self, index: int) -> Stored:
        def of(table: str) -> list[bytes]:
            return [body for (name, _), body in sorted(self.rows.items()) if name == table]

        return Stored(
            index,
            tuple(map(service_from_row, of("service"))),
            tuple(map(check_from_row, of("check"))),
            tuple(map(entry_from_row, of("kv"))),
            tuple(map(session_from_row, of("session"))),
        )

    def state(self, now: float = 0.0, index: int = 1) -> State:
        return State(self.stored(index), now, self.persist, self.wake, Random(1))


def ttl_check(service_id: str, ttl_seconds: float = 30.0, status: Status = Status.PASSING, **fields: object) -> Check:
    check = Check(f"service:{service_id}", "c", status, service_id=service_id, ttl_seconds=ttl_seconds)
    return replace(check, **fields)  # type: ignore[arg-type]


def add(state: State, service_id: str, now: float = 0.0, **fields: object) -> None:
    state.register_service(Service(service_id, "web"), [ttl_check(service_id, **fields)], now)  # type: ignore[arg-type]

"""Word that replicas leave each other in the registry: "this change was asked of me, I announce it".

Without it the leader would take a deregistration that another replica served for the registry's own doing, and announce
it a second time. A note names the state it leads to, so it explains that change and no later one. Only a replica
that is not the leader leaves notes, before it asks the registry; a lost note costs a repeated event, nothing else.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

import orjson

from toska_mesh.discovery.known import format_time, parse_time
from toska_mesh.errors import RegistryError
from toska_mesh.model import HealthStatus, InstanceId
from toska_mesh.telemetry import event_log

PREFIX = "toska/discovery/notes/"
FRESH_SECONDS = 60.0
"""Shorter than the registry takes to reap an instance that somebody has just deregistered and registered again."""

GONE = "gone"

log = event_log("discovery")


class Keys(Protocol):
    """What notes need of the registry."""

    async def put(self, key: str, value: bytes, deadline: float | None = None) -> None: ...
    async def get(self, key: str, deadline: float | None = None) -> bytes | None: ...
    async def delete(self, key: str, deadline: float | None = None) -> None: ...
    async def all_below(self, prefix: str, deadline: float | None = None) -> Mapping[str, bytes]: ...


class Notes:
    """Leaves and reads notes; none of its failures is anybody's trouble, so they are only logged."""

    def __init__(self, keys: Keys, is_leader: Callable[[], bool], utcnow: Callable[[], datetime]) -> None:
        self._keys = keys
        self._is_leader = is_leader
        self._utcnow = utcnow

    async def leave(self, instance_id: InstanceId, status: HealthStatus | None, deadline: float) -> None:
        """Say that we are about to bring the instance to `status` (None: remove it)."""
        if self._is_leader():
            return
        note = orjson.dumps({"state": _word(status), "at": format_time(self._utcnow())})
        try:
            await self._keys.put(PREFIX + instance_id, note, deadline)
        except RegistryError as exc:
            log.debug("note_not_left", instance=instance_id, error=str(exc))

    async def explains(self, instance_id: InstanceId, status: HealthStatus | None, deadline: float) -> bool:
        """Whether another replica has just brought the instance to `status` (None: removed it)."""
        try:
            note = await self._keys.get(PREFIX + instance_id, deadline)
        except RegistryError as exc:
            log.debug("note_not_read", instance=instance_id, error=str(exc))
            return False
        state, age_seconds = self._read(note)
        return state == _word(status) and abs(age_seconds) <= FRESH_SECONDS

    async def sweep(self, deadline: float) -> None:
        """Remove notes that explain nothing any more; the leader's task."""
        if not self._is_leader():
            return
        try:
            for key, note in (await self._keys.all_below(PREFIX, deadline)).items():
                if abs(self._read(note)[1]) > 2 * FRESH_SECONDS:
                    await self._keys.delete(key, deadline)
        except RegistryError as exc:
            log.debug("notes_not_swept", error=str(exc))

    def _read(self, note: bytes | None) -> tuple[str, float]:
        """State and age in seconds; infinitely old when it cannot be read."""
        try:
            fields = orjson.loads(note or b"null")
            left_at = parse_time(fields["at"])
            state = str(fields["state"])
        except (orjson.JSONDecodeError, TypeError, KeyError):
            return "", float("inf")
        return state, float("inf") if left_at is None else (self._utcnow() - left_at).total_seconds()


def _word(status: HealthStatus | None) -> str:
    return GONE if status is None else status.label

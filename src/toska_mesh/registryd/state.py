"""The registry's whole state and every command on it. Pure: `now` is handed in, effects leave through two callbacks.

A command runs in one step on the event loop: it changes the parts, then hands the changed rows to the store and wakes
the watchers. Renewing a check whose status stays the same touches one deadline and nothing else: no index, no row, no
watcher. Its new output is seen at once by `/v1/agent/checks` and later by the catalog, as in Consul.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from random import Random

from toska_mesh.registryd.catalog import Catalog
from toska_mesh.registryd.changes import Changes, IndexCounter, RowKey, Topic
from toska_mesh.registryd.expiry import Deadlines
from toska_mesh.registryd.kv import KeyValues
from toska_mesh.registryd.sessions import TTL_FACTOR, Sessions
from toska_mesh.registryd.values import Check, Entry, Service, Session, Status

MIN_DEREGISTER_AFTER_SECONDS = 60.0
"""Consul's `check_deregister_interval_min`: a shorter grace is raised to it."""
OUTPUT_SYNC_SECONDS = 300.0
"""Consul's `check_update_interval`: how long an output without a change of status may stay out of the catalog."""
MAX_OUTPUT_BYTES = 4096
NODE_MAINTENANCE = "_node_maintenance"
SERVICE_MAINTENANCE = "_service_maintenance:"

Timer = tuple[str, str]
"""What a deadline is for (`ttl`, `reap`, `output`, `session`), and whose."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a start finds on disk. `index` is above every index that was ever seen."""

    index: int = 1
    services: tuple[Service, ...] = ()
    checks: tuple[Check, ...] = ()
    entries: tuple[Entry, ...] = ()
    sessions: tuple[Session, ...] = ()


@dataclass(frozen=True, slots=True)
class Expired:
    """What ran out in one look at the clock, for the log."""

    checks: tuple[str, ...] = ()
    reaped_services: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()


class State:
    """`persist` gets the rows of each command, `wake` its topics. `now` is monotonic seconds."""

    def __init__(
        self,
        stored: Stored,
        now: float,
        persist: Callable[[Mapping[RowKey, bytes | None], int], None],
        wake: Callable[[Iterable[Topic]], None],
        rng: Random,
    ) -> None:
        self._indexes = IndexCounter(stored.index)
        self._persist = persist
        self._wake = wake
        self._rng = rng
        self.deadlines: Deadlines[Timer] = Deadlines()
        self.catalog = Catalog(stored.index)
        self.kv = KeyValues(stored.index)
        self.sessions = Sessions(stored.index)
        self._outputs: dict[str, str] = {}  # newer than the catalog's
        self.catalog.load(stored.services, stored.checks)
        self.kv.load(list(stored.entries))
        self.sessions.load(list(stored.sessions))
        self._restart_clocks(now)

    def _restart_clocks(self, now: float) -> None:
        """After a start everything has its full grace again: nobody could renew while we were away."""
        for check in self.catalog.checks():
            self._start_ttl(check, now)
            self._mind_reaping(check, now)
        for session in self.sessions.all():
            self._start_session_ttl(session, now)

    @property
    def index(self) -> int:
        return self._indexes.last

    def output_of(self, check: Check) -> str:
        """The newest output, also if the catalog has not got it yet."""
        return self._outputs.get(check.id, check.output)

    # Services

    def register_service(
        self, service: Service, checks: Iterable[Check], now: float, replaces_checks: bool = False
    ) -> None:
        """Create or replace an instance with checks. A check that exists keeps its status and output, as in Consul."""
        changes = self._begin()
        self.catalog.put_service(service, changes)
        wanted = list(checks)
        if replaces_checks:
            keep = {check.id for check in wanted}
            for check in self.catalog.checks_of(service.id):
                if check.id not in keep:
                    self._remove_check(check.id, now, changes)
        for check in wanted:
            self._put_check(replace(check, service_name=service.name, service_tags=service.tags), now, changes)
        self._commit(changes)

    def deregister_service(self, service_id: str, now: float) -> bool:
        """False when there is none."""
        if self.catalog.service(service_id) is None:
            return False
        changes = self._begin()
        self._remove_service(service_id, now, changes)
        self._commit(changes)
        return True

    # Checks

    def register_check(self, check: Check, now: float) -> None:
        """Create or replace a check of a known service or, without a service id, of the node."""
        changes = self._begin()
        service = self.catalog.service(check.service_id)
        if service is not None:
            check = replace(check, service_name=service.name, service_tags=service.tags)
        self._put_check(check, now, changes)
        self._commit(changes)

    def deregister_check(self, check_id: str, now: float) -> None:
        changes = self._begin()
        self._remove_check(check_id, now, changes)
        self._commit(changes)

    def renew_check(self, check: Check, status: Status, output: str, now: float) -> bool:
        """A beat. True when the status changed, so that the caller waits for the disk."""
        if check.ttl_seconds:
            self.deadlines.set(("ttl", check.id), now + check.ttl_seconds)
        return self._report(check, status, _shortened(output), now)

    def _report(self, check: Check, status: Status, output: str, now: float) -> bool:
        if status is check.status:
            if output != self.output_of(check):
                self._outputs[check.id] = output
                if ("output", check.id) not in self.deadlines:
                    wait = OUTPUT_SYNC_SECONDS * (0.5 + self._rng.random())
                    self.deadlines.set(("output", check.id), now + wait)
            return False
        changes = self._begin()
        self._store_check(replace(check, status=status, output=output), now, changes)
        self._commit(changes)
        return True

    # Maintenance

    def set_service_maintenance(self, service: Service, reason: str | None, now: float) -> None:
        """None ends it. Beginning it twice changes nothing."""
        self._set_maintenance(
            Check(
                SERVICE_MAINTENANCE + service.id,
                "Service Maintenance Mode",
                notes=reason or "",
                service_id=service.id,
                service_name=service.name,
                service_tags=service.tags,
                kind="maintenance",
            ),
            reason is not None,
            now,
        )

    def set_node_maintenance(self, reason: str | None, now: float) -> None:
        check = Check(NODE_MAINTENANCE, "Node Maintenance Mode", notes=reason or "", kind="maintenance")
        self._set_maintenance(check, reason is not None, now)

    def _set_maintenance(self, check: Check, is_on: bool, now: float) -> None:
        changes = self._begin()
        if not is_on:
            self._remove_check(check.id, now, changes)
        elif self.catalog.check(check.id) is None:
            self._store_check(check, now, changes)
        self._commit(changes)

    # Keys

    def put_key(self, key: str, value: bytes, flags: int) -> None:
        changes = self._begin()
        self.kv.put(key, value, flags, changes)
        self._commit(changes)

    def put_key_if_unchanged(self, key: str, value: bytes, flags: int, index: int) -> bool:
        changes = self._begin()
        done = self.kv.put_if_unchanged(key, value, flags, index, changes)
        self._commit(changes)
        return done

    def acquire_key(self, key: str, value: bytes, flags: int, session: str, now: float) -> bool:
        if self.sessions.get(session) is None:
            return False
        changes = self._begin()
        done = self.kv.acquire(key, value, flags, session, now, changes)
        self._commit(changes)
        return done

    def release_key(self, key: str, value: bytes, flags: int, session: str) -> bool:
        changes = self._begin()
        done = self.kv.release(key, value, flags, session, changes)
        self._commit(changes)
        return done

    def delete_key(self, key: str) -> None:
        changes = self._begin()
        self.kv.delete(key, changes)
        self._commit(changes)

    def delete_key_if_unchanged(self, key: str, index: int) -> bool:
        changes = self._begin()
        done = self.kv.delete_if_unchanged(key, index, changes)
        self._commit(changes)
        return done

    def delete_keys_under(self, prefix: str) -> None:
        changes = self._begin()
        self.kv.delete_under(prefix, changes)
        self._commit(changes)

    # Sessions

    def create_session(self, session: Session, now: float) -> Session:
        """The caller has seen to it that the checks exist and are not critical."""
        changes = self._begin()
        session = self.sessions.create(session, changes)
        self._start_session_ttl(session, now)
        self._commit(changes)
        return session

    def renew_session(self, session: Session, now: float) -> None:
        self._start_session_ttl(session, now)

    def destroy_session(self, session: Session, now: float) -> None:
        changes = self._begin()
        self._end_session(session, now, changes)
        self._commit(changes)

    # Time

    def expire(self, now: float) -> Expired:
        """Do what has come due: expire checks and sessions, remove services, let outputs into the catalog."""
        due = self.deadlines.take_due(now)
        if not due:
            return Expired()
        expired: dict[str, list[str]] = {"ttl": [], "reap": [], "session": []}
        changes = self._begin()
        for kind, name in due:
            if kind == "session":
                session = self.sessions.get(name)
                if session is not None:
                    self._end_session(session, now, changes)
                    expired["session"].append(name)
                continue
            check = self.catalog.check(name)
            if check is None:
                continue
            if kind == "ttl":
                self._expire_check(check, now, changes)
                expired["ttl"].append(name)
            elif kind == "reap":
                self._remove_service(check.service_id, now, changes)
                expired["reap"].append(check.service_id)
            else:
                self._store_check(replace(check, output=self.output_of(check)), now, changes)
        self._commit(changes)
        return Expired(tuple(expired["ttl"]), tuple(expired["reap"]), tuple(expired["session"]))

    def _expire_check(self, check: Check, now: float, changes: Changes) -> None:
        last = self.output_of(check)
        output = f"TTL expired (last output before timeout follows): {last}" if last else "TTL expired"
        if check.status is Status.CRITICAL:
            self._report(check, Status.CRITICAL, output, now)
        else:
            self._store_check(replace(check, status=Status.CRITICAL, output=output), now, changes)

    # Steps that several commands share

    def _begin(self) -> Changes:
        return Changes(self._indexes)

    def _commit(self, changes: Changes) -> None:
        if changes.rows:
            self._persist(changes.rows, self._indexes.last)
        if changes.topics:
            self._wake(changes.topics)

    def _put_check(self, check: Check, now: float, changes: Changes) -> None:
        old = self.catalog.check(check.id)
        if old is not None:
            check = replace(check, status=old.status, output=self.output_of(old))
            if check.deregister_after_seconds != old.deregister_after_seconds:
                self.deadlines.clear(("reap", check.id))  # counts anew with the new grace
        self._store_check(check, now, changes)
        self._start_ttl(check, now)

    def _store_check(self, check: Check, now: float, changes: Changes) -> None:
        """Into the catalog, with its consequences for outputs, reaping and sessions."""
        self._outputs.pop(check.id, None)
        self.deadlines.clear(("output", check.id))
        self.catalog.put_check(check, changes)
        self._mind_reaping(check, now)
        if check.status is Status.CRITICAL:
            self._end_sessions_on(check.id, now, changes)

    def _remove_check(self, check_id: str, now: float, changes: Changes) -> None:
        if self.catalog.check(check_id) is None:
            return
        self._outputs.pop(check_id, None)
        for kind in ("ttl", "reap", "output"):
            self.deadlines.clear((kind, check_id))
        self.catalog.remove_check(check_id, changes)
        self._end_sessions_on(check_id, now, changes)

    def _remove_service(self, service_id: str, now: float, changes: Changes) -> None:
        for check in self.catalog.checks_of(service_id) if service_id else ():
            self._remove_check(check.id, now, changes)
        self.catalog.remove_service(service_id, changes)

    def _end_sessions_on(self, check_id: str, now: float, changes: Changes) -> None:
        for session in self.sessions.hanging_on(check_id):
            self._end_session(session, now, changes)

    def _end_session(self, session: Session, now: float, changes: Changes) -> None:
        self.deadlines.clear(("session", session.id))
        self.sessions.remove(session.id, changes)
        self.kv.end_session(session, now, changes)

    def _start_ttl(self, check: Check, now: float) -> None:
        if check.ttl_seconds:
            self.deadlines.set(("ttl", check.id), now + check.ttl_seconds)

    def _start_session_ttl(self, session: Session, now: float) -> None:
        if session.ttl_seconds:
            self.deadlines.set(("session", session.id), now + session.ttl_seconds * TTL_FACTOR)

    def _mind_reaping(self, check: Check, now: float) -> None:
        timer = ("reap", check.id)
        if check.status is not Status.CRITICAL or not check.deregister_after_seconds or not check.service_id:
            self.deadlines.clear(timer)
        elif timer not in self.deadlines:
            self.deadlines.set(timer, now + max(check.deregister_after_seconds, MIN_DEREGISTER_AFTER_SECONDS))


def _shortened(output: str) -> str:
    raw = output.encode("utf-8", "surrogateescape")
    if len(raw) <= MAX_OUTPUT_BYTES:
        return output
    kept = raw[:MAX_OUTPUT_BYTES].decode("utf-8", "ignore")
    return f"{kept} ... (captured {MAX_OUTPUT_BYTES} of {len(raw)} bytes)"

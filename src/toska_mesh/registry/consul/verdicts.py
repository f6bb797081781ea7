"""Verdicts of the health monitors in Consul's key-value store, bound to the monitor's life by a session.

One key per service that has objections, `toska/verdicts/<service>`, its value
`{"monitor": name, "probed": n, "instances": {id: status}}`. The keys are locked by the leader's session with behavior
`delete`: when the monitor dies, its objections die with it and every instance is as good as its registration says.
"""

import asyncio
import random
from base64 import b64decode
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Never

import orjson

from toska_mesh.aio import Latest
from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import NO_VERDICTS, HealthStatus, InstanceId, ServiceName, Verdicts
from toska_mesh.registry.consul.client import ConsulApi, SessionLostError
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.registry.consul.lock import ConsulLeaderLock, kv_path
from toska_mesh.registry.consul.polling import Backoff, BlockingQuery
from toska_mesh.telemetry import event_log

PREFIX = "toska/verdicts/"
LEADER_KEY = "toska/healthmonitor/leader"
log = event_log("registry")


class ConsulVerdictBoard:
    """`VerdictBoard` over KV. One `run` per object; `name` tells monitors apart."""

    def __init__(
        self,
        api: ConsulApi,
        name: str,
        *,
        ttl_seconds: int = 15,
        audit_seconds: float = 30.0,
        rng: random.Random | None = None,
    ) -> None:
        """`audit_seconds`: how often the keys are checked for being still there."""
        self._api = api
        self._name = name
        self._audit_seconds = audit_seconds
        self._rng = rng or random.Random()
        self._lock = ConsulLeaderLock(api, LEADER_KEY, name, ttl_seconds=ttl_seconds, rng=self._rng)
        self._news = asyncio.Event()
        self._session = ""
        self._written: dict[ServiceName, bytes] = {}
        """What the registry holds under `_session`."""

    @property
    def is_leader(self) -> bool:
        """See `VerdictBoard.is_leader`."""
        return self._lock.is_leader

    @property
    def leadership(self) -> Latest[bool]:
        return self._lock.leadership

    async def run(self, verdicts: Latest[Verdicts]) -> Never:
        """See `VerdictBoard.run`."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._lock.run(), name="verdicts lock")
            tasks.create_task(self._notice(verdicts), name="notice verdicts")
            tasks.create_task(self._notice(self._lock.leadership), name="notice leadership")
            await self._write_forever(verdicts)
        raise AssertionError("the writer never ends by itself")

    async def _notice(self, source: Latest[Any]) -> Never:
        async for _ in source.updates():
            self._news.set()
        raise AssertionError("updates never end")

    async def _write_forever(self, verdicts: Latest[Verdicts]) -> Never:
        backoff = Backoff(self._rng, longest_seconds=3.0)
        while True:
            try:
                async with asyncio.timeout(self._audit_seconds):
                    await self._news.wait()
                is_audit = False
            except TimeoutError:
                is_audit = True
            self._news.clear()
            try:
                await self._reconcile(verdicts.peek() or NO_VERDICTS, is_audit=is_audit)
            except RegistryError as error:
                if not isinstance(error, SessionLostError):  # the lock notices that by itself
                    log.warning("verdicts_not_written", error=str(error))
                self._news.set()
                await asyncio.sleep(backoff.failed(error))
            else:
                backoff.succeeded()

    async def _reconcile(self, verdicts: Verdicts, *, is_audit: bool) -> None:
        """One pass: write what differs, delete what is no longer wanted. Nothing unless we are the leader."""
        session = self._lock.session
        if session != self._session:
            self._session, self._written = session, {}
        if not session:
            return
        if is_audit:
            present = await self._keys()
            self._written = {name: body for name, body in self._written.items() if name in present}
        wanted = {name: _encode(self._name, verdicts, name) for name in verdicts.services if verdicts.services[name]}
        for service in [name for name in self._written if name not in wanted]:
            await self._api.call("DELETE", kv_path(PREFIX + service))
            del self._written[service]
        for service, body in wanted.items():
            if self._written.get(service) != body:
                await self._put(service, body, session)

    async def _put(self, service: ServiceName, body: bytes, session: str) -> None:
        """Write one service's verdicts. A refusal concerns this service alone: it is tried again at its next change."""
        try:
            answer = await self._api.call("PUT", kv_path(PREFIX + service), {"acquire": session}, body)
        except (RegistryUnavailableError, SessionLostError):
            raise
        except RegistryError as error:
            log.warning("verdicts_refused", service=service, error=str(error))
        else:
            if answer.body.strip() == b"true":
                self._written[service] = body
            else:
                log.warning("verdicts_refused", service=service, error="the key is locked by another session")

    async def _keys(self) -> set[ServiceName]:
        answer = await self._api.call("GET", kv_path(PREFIX), {"keys": "true"}, missing_ok=True)
        keys = parse_json(answer.body, "the verdicts' keys") if answer.status != 404 else []
        return {ServiceName(str(key).removeprefix(PREFIX)) for key in keys or ()}


class ConsulVerdictFollower:
    """`VerdictFollower`: one blocking query. Last answers are believed for `keep_seconds`, then dropped: fail open."""

    def __init__(
        self,
        api: ConsulApi,
        *,
        wait_seconds: float = 15.0,
        keep_seconds: float = 30.0,
        rng: random.Random | None = None,
    ) -> None:
        """`wait_seconds` has to end well within `keep_seconds`, or a quiet registry would look like a dead one."""
        self._query = BlockingQuery(
            api, kv_path(PREFIX), params={"recurse": "true"}, wait_seconds=wait_seconds, slack_seconds=5.0
        )
        self._keep_seconds = keep_seconds
        self._backoff = Backoff(rng or random.Random(), longest_seconds=3.0)
        self._complaint = ""

    async def follow(self, verdicts: Latest[Verdicts]) -> Never:
        """See `VerdictFollower.follow`."""
        loop = asyncio.get_running_loop()
        answered_at = loop.time()
        while True:
            known = verdicts.peek()
            try:
                async with asyncio.timeout_at(answered_at + self._keep_seconds if known and known.services else None):
                    newest = await self._read()
            except TimeoutError:
                log.warning("verdicts_dropped", reason="the registry does not answer", after=self._keep_seconds)
                verdicts.set(NO_VERDICTS)
                continue
            answered_at = loop.time()
            if newest != known:
                verdicts.set(newest)

    async def _read(self) -> Verdicts:
        """The next answer that can be read, however many tries it takes."""
        while True:
            try:
                poll = await self._query.next()
                newest = self._decode(poll.body)
            except RegistryError as error:
                self._query.forget_index()
                await asyncio.sleep(self._backoff.failed(error))
            else:
                self._backoff.succeeded()
                return newest

    def _decode(self, body: bytes) -> Verdicts:
        entries = parse_json(body, "the verdicts") if body else []
        services: dict[ServiceName, Mapping[InstanceId, HealthStatus]] = {}
        probed: dict[ServiceName, int] = {}
        for entry in entries or ():
            try:
                decoded = _decode(entry)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                self._complain(f"{entry.get('Key') if isinstance(entry, dict) else entry!r}: {error!r}")
                continue
            if decoded is not None:
                service, count, found = decoded
                services[service], probed[service] = found, count
        return Verdicts(MappingProxyType(services), MappingProxyType(probed)) if services else NO_VERDICTS

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            log.warning("verdict_not_readable", reason=complaint)


def _encode(monitor: str, verdicts: Verdicts, service: ServiceName) -> bytes:
    found = verdicts.services[service]
    instances = {instance_id: found[instance_id].label for instance_id in sorted(found)}
    probed = verdicts.probed.get(service, len(found))
    return orjson.dumps({"monitor": monitor, "probed": probed, "instances": instances})


def _decode(entry: Mapping[str, Any]) -> tuple[ServiceName, int, Mapping[InstanceId, HealthStatus]] | None:
    """None for what is no verdict: a key without a session would outlive whoever wrote it."""
    service = str(entry["Key"]).removeprefix(PREFIX)
    if not service or not entry.get("Session"):
        return None
    value = orjson.loads(b64decode(entry["Value"]))
    instances = {InstanceId(key): HealthStatus.from_label(label) for key, label in value["instances"].items()}
    return ServiceName(service), int(value["probed"]), MappingProxyType(instances)

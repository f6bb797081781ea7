"""Leader election over a key and a session, as Consul describes it.

https://developer.hashicorp.com/consul/docs/dynamic-app-config/sessions/application-leader-election

A dead leader loses the lock with its session (see `session`). A leader that cannot renew stops calling itself one when
the TTL has passed since its last successful renewal began: before anybody else can have the lock.
"""

import asyncio
import random
from typing import Never

import orjson

from toska_mesh.aio import Latest
from toska_mesh.errors import RegistryError
from toska_mesh.registry.consul.client import ConsulApi, SessionLostError, segment
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.registry.consul.polling import Backoff, BlockingQuery
from toska_mesh.registry.consul.session import ConsulSession
from toska_mesh.telemetry import event_log

log = event_log("registry")


def kv_path(key: str) -> str:
    """The path of a key; its slashes stay slashes."""
    return "/v1/kv/" + "/".join(segment(part) for part in key.split("/"))


class ConsulLeaderLock:
    """`LeaderLock` on one key. Owns its session; one `run` per object. `name` is for people (in the key's value)."""

    def __init__(
        self, api: ConsulApi, key: str, name: str, *, ttl_seconds: int = 15, rng: random.Random | None = None
    ) -> None:
        """`ttl_seconds`: Consul takes 10 to 86400."""
        self._api = api
        self._key = key
        self._name = name
        self._ttl_seconds = ttl_seconds
        self._backoff = Backoff(rng or random.Random(), longest_seconds=3.0)
        self._session = ConsulSession(api, name, ttl_seconds)
        self._holds = False
        self._leadership = Latest[bool]()
        self._leadership.set(False)

    @property
    def is_leader(self) -> bool:
        """See `LeaderLock.is_leader`."""
        return self._holds and asyncio.get_running_loop().time() < self._session.lease_ends_at

    @property
    def leadership(self) -> Latest[bool]:
        """See `LeaderLock.leadership`."""
        return self._leadership

    @property
    def session(self) -> str:
        """The session behind the lock, to write other keys under; empty when we are not the leader."""
        return self._session.id if self.is_leader else ""

    async def run(self) -> Never:
        """See `LeaderLock.run`."""
        try:
            while True:
                try:
                    await self._session.ensure(self._deadline())
                    await self._compete()
                except SessionLostError as error:
                    self._lose(str(error))
                    self._session.forget()
                except RegistryError as error:
                    await self._wait_out(error)
        finally:
            self._lose("we are leaving")
            await self._session.close()

    def _deadline(self) -> float | None:
        return self._session.lease_ends_at if self._holds else None

    async def _compete(self) -> None:
        """Hold the lock or wait for it, until something fails."""
        query = BlockingQuery(
            self._api, kv_path(self._key), wait_seconds=max(1.0, self._ttl_seconds / 3), slack_seconds=2.0
        )
        while True:
            poll = await query.next()
            self._backoff.succeeded()
            holder = self._holder_in(poll.body)
            if holder == self._session.id:
                self._win()
            elif holder:
                self._lose("held by another")
            else:
                self._lose("the key is free")
                if await self._acquire():
                    self._win()
            await self._session.renew(self._deadline())

    def _holder_in(self, body: bytes) -> str:
        entries = parse_json(body, "the lock's key") if body else []
        entry = entries[0] if isinstance(entries, list) and entries else {}
        return str(entry.get("Session") or "") if isinstance(entry, dict) else ""

    async def _acquire(self) -> bool:
        value = orjson.dumps({"holder": self._name})
        answer = await self._api.call("PUT", kv_path(self._key), {"acquire": self._session.id}, value)
        return answer.body.strip() == b"true"

    def _win(self) -> None:
        if not self._holds:
            self._holds = True
            log.info("leadership_won", key=self._key, name=self._name)
            self._leadership.set(True)

    def _lose(self, reason: str) -> None:
        if self._holds:
            self._holds = False
            log.warning("leadership_lost", key=self._key, name=self._name, reason=reason)
            self._leadership.set(False)

    async def _wait_out(self, error: RegistryError) -> None:
        """Pause after a failure; a lease that runs out meanwhile ends the leadership on time."""
        now = asyncio.get_running_loop().time()
        until = now + self._backoff.failed(error)
        if self._holds and self._session.lease_ends_at <= until:
            await asyncio.sleep(max(0.0, self._session.lease_ends_at - now))
            self._lose(str(error))
        await asyncio.sleep(max(0.0, until - asyncio.get_running_loop().time()))

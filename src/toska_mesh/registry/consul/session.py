"""A session: what dies with us. Keys locked under it vanish when it ends, however it ends.

https://developer.hashicorp.com/consul/docs/dynamic-app-config/sessions

It has a TTL, so a dead holder loses it by itself (Consul may take up to twice the TTL), and the behavior `delete`, so
that everything written under it goes with it. Who uses it decides when to renew.
"""

import asyncio

import orjson

from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.registry.consul.client import ConsulApi, SessionLostError, segment
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.telemetry import event_log

_GOODBYE_SECONDS = 2.0
log = event_log("registry")


class ConsulSession:
    """One session at a time, opened anew after each loss. One owner. `name` is for people."""

    def __init__(self, api: ConsulApi, name: str, ttl_seconds: int) -> None:
        """`ttl_seconds`: Consul takes 10 to 86400."""
        self._api = api
        self._name = name
        self.ttl_seconds = ttl_seconds
        self.id = ""
        """Empty while there is none."""
        self.lease_ends_at = float("-inf")
        """Until then nobody else can have what we hold: the TTL after the last successful renewal *began*."""

    async def ensure(self, deadline: float | None = None) -> None:
        """Create the session, or make sure that the one we have still lives. Raises SessionLostError."""
        if self.id:
            await self.renew(deadline)
            return
        now = asyncio.get_running_loop().time()
        body = {
            "Name": self._name,
            "TTL": f"{self.ttl_seconds}s",
            "Behavior": "delete",
            "LockDelay": "0s",
            # Bound to nothing but the TTL: neither a flapping node check nor its absence may decide.
            "NodeChecks": [],
        }
        answer = await self._api.call("PUT", "/v1/session/create", body=orjson.dumps(body), deadline=deadline)
        created = parse_json(answer.body, "session/create")
        if not isinstance(created, dict) or not created.get("ID"):
            raise RegistryUnavailableError("the registry created no session")
        self.id = str(created["ID"])
        self.lease_ends_at = now + self.ttl_seconds

    async def renew(self, deadline: float | None = None) -> None:
        """Begin the TTL anew. Raises SessionLostError when the registry does not know the session any more."""
        now = asyncio.get_running_loop().time()
        answer = await self._api.call(
            "PUT", f"/v1/session/renew/{segment(self.id)}", deadline=deadline, missing_ok=True
        )
        if answer.status == 404:
            raise SessionLostError(f"session {self.id} is gone")
        self.lease_ends_at = now + self.ttl_seconds

    def forget(self) -> None:
        """It is lost: the next `ensure` makes another."""
        self.id = ""

    async def close(self) -> None:
        """Give everything back at once instead of letting the others wait for the TTL."""
        session, self.id = self.id, ""
        if session:
            try:
                await self._api.call(
                    "PUT", f"/v1/session/destroy/{segment(session)}", limit_seconds=_GOODBYE_SECONDS, missing_ok=True
                )
            except RegistryError as error:
                log.debug("session_not_destroyed", name=self._name, error=str(error))

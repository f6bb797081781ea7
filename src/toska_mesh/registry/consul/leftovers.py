"""Keeps fences that were given up few: a wait that meets its deadline or loses its caller leaves one (see `fence`).

Two bounds. Fences that nobody here uses are deleted by every process that lives long: a minute after they were written
if all gateways are past them, and else after `KEEP_SECONDS`. A wait that lasts longer writes its fence again before
that, so that the fences of other processes are safe too. And names cost nothing, so of services that the registry does
not list only so many fences may be left here at once: there have to be some, because the last instance of a service
that has just left may wait as well. Such a service is usually known from its first wait, or from the last one that met
it in the registry.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Never

from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import ServiceName
from toska_mesh.registry.api import UnknownServiceError
from toska_mesh.registry.consul.client import ConsulApi, segment
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.registry.consul.fence_keys import PREFIX, fence_path, fences_in
from toska_mesh.registry.consul.lock import kv_path
from toska_mesh.registry.consul.polling import Backoff

KEEP_SECONDS = 600.0
LOOK_SECONDS = 60.0
MAX_UNKNOWN = 100
_MAX_KNOWN = 10_000


class Leftovers:
    """What one process knows of the fences it leaves. Lives on one event loop."""

    def __init__(self, api: ConsulApi, is_past: Callable[[ServiceName, int], bool]) -> None:
        """`is_past`: whether all gateways are past this fence."""
        self._api = api
        self._is_past = is_past
        self._used = Counter[ServiceName]()
        self._known: dict[ServiceName, None] = {}
        """Services that the registry has listed when somebody waited for them; the longest unasked first."""
        self._unknown: set[ServiceName] = set()
        """Services that it has not, and that may have a fence of ours."""
        self._seen: dict[ServiceName, tuple[int, float]] = {}
        """The index of each fence at the last look, and when it was first seen with it."""

    @contextmanager
    def using(self, service: ServiceName) -> Iterator[None]:
        """Somebody waits for it: its fence stays."""
        self._used[service] += 1
        try:
            yield
        finally:
            self._used[service] -= 1
            if not self._used[service]:
                del self._used[service]

    async def admit(self, service: ServiceName) -> None:
        """May it have a fence? Raises UnknownServiceError; and RegistryUnavailableError, as it may have to ask."""
        if service in self._known or await self._is_listed(service):
            self._known.pop(service, None)
            self._known[service] = None
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._unknown.discard(service)
        elif service not in self._unknown:
            if len(self._unknown) >= MAX_UNKNOWN:
                raise UnknownServiceError(
                    f"the registry lists no service {service!r}, and waits for {MAX_UNKNOWN} other services that it"
                    f" does not list have not ended or were given up in the last {KEEP_SECONDS / 60:g} minutes"
                )
            self._unknown.add(service)

    async def take_away(self, service: ServiceName, index: int, deadline: float, limit_seconds: float) -> None:
        """Delete our fence, if nobody wrote over it. No harm if it stays for a while."""
        try:
            await self._delete(service, index, deadline, limit_seconds)
        except RegistryError:
            return
        if self._used[service] <= 1:  # else another one's fence may be there in its place
            self._unknown.discard(service)

    async def run(self, backoff: Backoff) -> Never:
        """Until cancelled, delete what was given up."""
        while True:
            try:
                await self._look()
            except RegistryError as error:
                await asyncio.sleep(max(LOOK_SECONDS, backoff.failed(error)))
            else:
                backoff.succeeded()
                await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        answer = await self._api.call("GET", kv_path(PREFIX), {"recurse": "true"}, missing_ok=True)
        now = asyncio.get_running_loop().time()
        fences = fences_in(answer.body if answer.status != 404 else b"")
        before = self._seen
        self._seen = {
            service: before[service] if before.get(service, (0, 0.0))[0] == index else (index, now)
            for service, index in fences.items()
        }
        self._unknown &= self._seen.keys() | self._used.keys()
        for service, (index, seen_at) in list(self._seen.items()):
            age = now - seen_at
            # Young ones stay in any case: a wait of another process may know of a gateway that we do not see.
            is_over = age >= KEEP_SECONDS or (age >= LOOK_SECONDS and self._is_past(service, index))
            if is_over and service not in self._used:
                # Only as it was seen: somebody in another process may need it again by now.
                await self._delete(service, index)

    async def _is_listed(self, service: ServiceName) -> bool:
        try:
            path = f"/v1/health/service/{segment(service)}"
            return bool(parse_json((await self._api.call("GET", path)).body, path))
        except RegistryUnavailableError:
            raise
        except RegistryError:
            return False  # we may not look: as good as unknown

    async def _delete(
        self, service: ServiceName, index: int, deadline: float | None = None, limit_seconds: float | None = None
    ) -> None:
        await self._api.call(
            "DELETE", fence_path(service), {"cas": str(index)}, deadline=deadline, limit_seconds=limit_seconds
        )

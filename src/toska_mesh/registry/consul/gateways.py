"""What gateways say of themselves in the registry, and the view of it that waiters share.

One key per gateway process, `toska/gateways/<name>`, held under the gateway's session, so that it vanishes with the
gateway. Its value: `{"gateway": name, "applied": index, "behind": {service: index}, ...}`. Every fence (see `fence`) up
to `applied` is applied, but for the services in `behind`: of those only the fences up to the index given there.
"""

import asyncio
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Never

import orjson

from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import ServiceName
from toska_mesh.registry.api import GatewayProgress
from toska_mesh.registry.consul.client import ConsulApi
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.registry.consul.lock import kv_path
from toska_mesh.registry.consul.polling import Backoff, BlockingQuery
from toska_mesh.telemetry import event_log

PREFIX = "toska/gateways/"
TTL_SECONDS = 10
"""Of the gateways' sessions: the least that Consul allows. It ends a session after one to two of these, and for so long
a gateway that was killed holds every wait up."""
SETTLING_SECONDS = 5.0
"""After an outage: gateways come back to a registry that forgot them within their longest pause, which is 3 s."""
_RECURSE: Mapping[str, str] = MappingProxyType({"recurse": "true"})
_UP_TO_DATE: Mapping[ServiceName, int] = MappingProxyType({})
log = event_log("registry")


@dataclass(frozen=True, slots=True)
class GatewayState:
    """One gateway's own word."""

    name: str
    applied: int = 0
    behind: Mapping[ServiceName, int] = field(default_factory=lambda: _UP_TO_DATE)

    def progress(self, service: ServiceName) -> GatewayProgress:
        """How far it is with one service."""
        return GatewayProgress(self.name, self.behind.get(service, self.applied))


def encode_state(state: GatewayState, **more: object) -> bytes:
    """`more`: for people who look at the key."""
    behind = {service: state.behind[service] for service in sorted(state.behind)}
    return orjson.dumps({"gateway": state.name, "applied": state.applied, "behind": behind, **more})


def decode_state(entry: Mapping[str, Any]) -> GatewayState | None:
    """None for a key that no living gateway holds.

    What a living gateway wrote and nobody can read counts as nothing applied: it is there, and it has to be waited for.
    """
    name = str(entry["Key"]).removeprefix(PREFIX)
    if not name or not entry.get("Session"):
        return None
    try:
        value = orjson.loads(b64decode(entry.get("Value") or ""))
        behind = {ServiceName(str(service)): int(index) for service, index in (value.get("behind") or {}).items()}
        return GatewayState(name, int(value["applied"]), MappingProxyType(behind))
    except (ValueError, TypeError, KeyError, AttributeError):
        return GatewayState(name)


@dataclass(frozen=True, slots=True)
class Listing:
    """All gateways, as the registry listed them at one moment."""

    gateways: Mapping[str, GatewayState]
    index: int
    taken_at: float


class GatewayBoard:
    """The list of gateways, followed by one blocking query however many wait for news of it.

    Whoever waits first asks for all; `run` asks for ever, so that a process that lives long remembers who was there
    before an outage. Lives on one event loop.
    """

    def __init__(
        self, api: ConsulApi, *, missed_seconds: float = TTL_SECONDS, settling_seconds: float = SETTLING_SECONDS
    ) -> None:
        self._api = api
        self._query = BlockingQuery(api, kv_path(PREFIX), params=_RECURSE, wait_seconds=60.0)
        self._missed_seconds = missed_seconds
        self._settling_seconds = settling_seconds
        self._listing: Listing | None = None
        self._epoch = 0
        """Moves when the registry's index went back: whatever was written before may be lost."""
        self._is_asking = False
        self._turn = asyncio.Event()
        self._is_away = False
        self._missed: frozenset[str] = frozenset()
        self.missed_until = float("-inf")
        """Who is not back by then is gone."""
        self.settles_at = float("-inf")
        """Until then the list, the first after an outage, may lack gateways that are there."""

    async def run(self, backoff: Backoff) -> Never:
        """Follow until cancelled."""
        while True:
            try:
                await self._ask_or_wait()
            except RegistryError as error:
                await asyncio.sleep(backoff.failed(error))
            else:
                backoff.succeeded()

    @property
    def missed(self) -> frozenset[str]:
        """Gone since an outage, and perhaps alive all the same: a registry that forgot them says nothing about them."""
        if self._listing is None or (not self._is_away and self._listing.taken_at >= self.missed_until):
            return frozenset()
        return self._missed - self._listing.gateways.keys()

    def is_past(self, service: ServiceName, index: int) -> bool:
        """Whether all gateways are past a fence, without a doubt about who is there, as far as `run` knows."""
        if self._listing is None or self._is_away or self.missed:
            return False
        if asyncio.get_running_loop().time() < self.settles_at:
            return False
        return all(state.progress(service).applied_index >= index for state in self._listing.gateways.values())

    async def read(self) -> Listing:
        """The list as it is now, or later. Raises RegistryError."""
        asked_at = asyncio.get_running_loop().time()
        try:
            answer = await self._api.call("GET", kv_path(PREFIX), _RECURSE, missing_ok=True)
            if answer.index is None:
                raise RegistryUnavailableError("the list of gateways carries no X-Consul-Index")
        except RegistryUnavailableError:
            self.outage()
            raise
        newest = self._listing
        if newest is not None and answer.index < newest.index and newest.taken_at >= asked_at:
            return newest  # came in meanwhile by the blocking query
        return self._take(answer.body if answer.status != 404 else b"", answer.index)

    async def newer_than(self, known: Listing) -> Listing:
        """The first list that is newer. Raises RegistryError."""
        epoch = self._epoch
        while True:
            if self._epoch != epoch:
                raise RegistryUnavailableError("the registry's index went back: it was restarted or restored")
            if self._listing is not None and self._listing.index > known.index:
                return self._listing
            await self._ask_or_wait()

    def outage(self) -> None:
        """The registry did not answer: when it is back it may have forgotten whom it lists now."""
        self._is_away = True
        if self._listing is not None:
            self._missed |= self._listing.gateways.keys()

    async def _ask_or_wait(self) -> None:
        if self._is_asking:
            await self._turn.wait()
            return
        self._is_asking = True
        try:
            poll = await self._query.next()
            if poll.went_back or self._listing is None or poll.index >= self._listing.index:  # else: `read` was faster
                self._take(poll.body, poll.index)
        except RegistryError as error:
            self._query.forget_index()
            if isinstance(error, RegistryUnavailableError):
                self.outage()
            raise
        finally:
            self._is_asking = False
            turn, self._turn = self._turn, asyncio.Event()
            turn.set()

    def _take(self, body: bytes, index: int) -> Listing:
        now = asyncio.get_running_loop().time()
        entries = parse_json(body, "the list of gateways") if body else []
        if not isinstance(entries, list):
            raise RegistryError("the registry's list of gateways is no list")
        states = [state for entry in entries if (state := decode_state(entry)) is not None]
        if self._listing is not None and index < self._listing.index:
            self.outage()
            self._epoch += 1
        if self._is_away:
            self._is_away = False
            # Without a list from before nobody knows whom to miss: all that helps is to give them time to come back.
            if self._listing is None:
                self.settles_at = now + self._settling_seconds
            self.missed_until = now + self._missed_seconds
        elif now >= self.missed_until:
            self._missed = frozenset()
        self._listing = Listing(MappingProxyType({state.name: state for state in states}), index, now)
        return self._listing

"""The barrier: wait until every gateway has applied a change of the registry.

The waiter leaves a fence behind its change: it writes the key `toska/fences/<service>`, whose ModifyIndex is larger
than that of every write the registry acknowledged before. Each gateway that sees the fence reads the service anew, uses
what it has read, and says so in its own key (see `gateways`, `presence`). Indexes of the catalog would not do: an
answer that did not change what a gateway shows leaves no trace in it, and each endpoint counts for itself (see the ADR
"leave a fence behind the change").

A fence is taken away once all have passed it. One that was given up stays for a while, one key per service at most:
whoever comes late still passes it, and the next waiter writes over it. `leftovers` sees to it that they do not pile up.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Never

import orjson

from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import ServiceName
from toska_mesh.registry.api import BarrierReport, GatewayProgress
from toska_mesh.registry.consul.agreement import AgentAgreement
from toska_mesh.registry.consul.client import ConsulApi
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.registry.consul.fence_keys import fence_path
from toska_mesh.registry.consul.gateways import SETTLING_SECONDS, TTL_SECONDS, GatewayBoard, Listing
from toska_mesh.registry.consul.leftovers import KEEP_SECONDS, Leftovers
from toska_mesh.registry.consul.polling import Backoff

_LONGEST_PAUSE_SECONDS = 1.0
_AGREEMENT_PAUSES = (0.02, 0.05, 0.1, 0.25)
_TIDYING_SECONDS = 2.0
_RENEWAL_SECONDS = KEEP_SECONDS / 3
"""A fence that is still waited for is written again that often, so that no other process takes it for given up."""


class ConsulGatewayBarrier:
    """`GatewayBarrier` over KV. One object serves any number of waits at once, with one long poll for all of them.

    `run` is for processes that live long: it remembers the gateways between the waits, so that after an outage none is
    overlooked that a restarted registry has forgotten, and deletes the fences that were given up.
    """

    def __init__(
        self,
        api: ConsulApi,
        *,
        missed_seconds: float = TTL_SECONDS,
        settling_seconds: float = SETTLING_SECONDS,
        rng: random.Random | None = None,
    ) -> None:
        """`missed_seconds`: how long gateways that were known before an outage are waited for after it.
        `settling_seconds`: how long the list is doubted when there was none before the outage.
        """
        self._api = api
        self._rng = rng or random.Random()
        self._agreement = AgentAgreement(api)
        self._board = GatewayBoard(api, missed_seconds=missed_seconds, settling_seconds=settling_seconds)
        self._leftovers = Leftovers(api, self._board.is_past)

    async def run(self) -> Never:
        """Follow the list of gateways, and tidy up, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._leftovers.run(self._backoff()), name="delete fences that were given up")
            await self._board.run(self._backoff())
        raise AssertionError("the list is followed until cancelled")

    async def wait_applied(
        self, service: ServiceName, deadline: float, on_progress: Callable[[str], None] = lambda words: None
    ) -> BarrierReport:
        """See `GatewayBarrier.wait_applied`. `on_progress` gets what is missing whenever that may have changed."""
        wait = _Wait(service, on_progress)
        with self._leftovers.using(service):
            try:
                async with asyncio.timeout_at(deadline):
                    await self._pass(wait)
            except TimeoutError:
                return wait.report(is_applied=False)
            await self._leftovers.take_away(service, wait.fence, deadline, _TIDYING_SECONDS)
        return wait.report(is_applied=True)

    async def _pass(self, wait: "_Wait") -> None:
        """Until everybody is past the fence, however often the registry goes away meanwhile."""
        backoff = self._backoff()
        while True:
            try:
                await self._agree(wait)
                await self._leftovers.admit(wait.service)
                # After an outage it is put again: the registry may have lost it, or be another one.
                wait.index = wait.fence = await self._put_fence(wait)
                while not await self._watch_for(wait, _RENEWAL_SECONDS):
                    wait.fence = await self._put_fence(wait)  # who is past the first is past our change
            except RegistryUnavailableError as error:
                wait.blocked_by(str(error))
                self._board.outage()
                await asyncio.sleep(backoff.failed(error))
            else:
                return

    async def _agree(self, wait: "_Wait") -> None:
        tries = 0
        while difference := await self._agreement.difference(wait.service):
            wait.blocked_by(difference)
            await asyncio.sleep(_AGREEMENT_PAUSES[min(tries, len(_AGREEMENT_PAUSES) - 1)])
            tries += 1
        wait.trouble = ""

    async def _put_fence(self, wait: "_Wait") -> int:
        path = fence_path(wait.service)
        while True:
            # A value that is there already would leave the index as it is.
            await self._api.call("PUT", path, body=orjson.dumps({"waiter": f"{self._rng.getrandbits(64):016x}"}))
            answer = await self._api.call("GET", path, missing_ok=True)
            if answer.status != 404:
                # Perhaps another waiter's by now: it is later than ours, so it will do.
                return _modify_index(answer.body)
            # Another waiter wrote over ours and took its own away.

    async def _watch_for(self, wait: "_Wait", seconds: float) -> bool:
        """Whether all were past the fence within this time."""
        try:
            async with asyncio.timeout(seconds):
                await self._watch(wait)
        except TimeoutError:
            return False
        return True

    async def _watch(self, wait: "_Wait") -> None:
        board = self._board
        listing = await board.read()
        while True:
            wait.take(listing, board.missed)
            if wait.behind() or wait.missed:
                wait.on_progress(wait.failure())
            if wait.behind():
                listing = await board.newer_than(listing)
                continue
            # Nobody who is there is behind. What is left is doubt about who is there, and that ends by the clock.
            until = max(board.settles_at, board.missed_until if wait.missed else 0.0)
            if until <= asyncio.get_running_loop().time() and not wait.missed:
                return
            try:
                async with asyncio.timeout_at(until):
                    listing = await board.newer_than(listing)
            except TimeoutError:
                listing = await board.read()

    def _backoff(self) -> Backoff:
        return Backoff(self._rng, base_seconds=0.1, longest_seconds=_LONGEST_PAUSE_SECONDS)


@dataclass(slots=True)
class _Wait:
    """One wait, and all that its report tells."""

    service: ServiceName
    on_progress: Callable[[str], None]
    index: int = 0
    """What the gateways have to be past."""
    fence: int = 0
    """The index of what we wrote last."""
    listing: Listing | None = None
    seen: frozenset[str] = frozenset()
    """Every gateway that was there at any moment of the wait."""
    missed: frozenset[str] = frozenset()
    trouble: str = field(default="")
    """What stands in the way, if it is not a gateway."""

    def blocked_by(self, trouble: str) -> None:
        self.trouble = trouble
        self.on_progress(self.failure())

    def take(self, listing: Listing, missed: frozenset[str]) -> None:
        self.listing, self.missed = listing, missed
        self.seen |= listing.gateways.keys()

    def progress(self) -> tuple[GatewayProgress, ...]:
        if self.listing is None:
            return ()
        states = self.listing.gateways
        return tuple(states[name].progress(self.service) for name in sorted(states))

    def behind(self) -> list[GatewayProgress]:
        return [one for one in self.progress() if one.applied_index < self.index]

    def report(self, *, is_applied: bool) -> BarrierReport:
        reason = self._success() if is_applied else self.failure()
        return BarrierReport(is_applied, self.index, self.progress(), reason)

    def _success(self) -> str:
        count = len(self.progress())
        if not count and self.seen:
            return "every gateway that was there has left meanwhile"
        if not count:
            return "no gateway has shown itself in the registry, so there was nobody to wait for"
        return f"applied by {'the one gateway' if count == 1 else f'all {count} gateways'}"

    def failure(self) -> str:
        reasons = []
        if behind := self.behind():
            names = ", ".join(one.name for one in behind)
            reasons.append(f"{len(behind)} of {len(self.progress())} gateways have not applied it: {names}")
        if self.missed:
            reasons.append(
                "not back in the registry since it was away, and perhaps still routing: "
                + ", ".join(sorted(self.missed))
            )
        if self.trouble:
            reasons.append(self.trouble)
        return "; ".join(reasons) or "the registry did not answer in time"


def _modify_index(body: bytes) -> int:
    entries = parse_json(body, "the fence")
    try:
        return int(entries[0]["ModifyIndex"])
    except (LookupError, TypeError, ValueError) as error:
        raise RegistryError("the registry's answer about a key has no ModifyIndex") from error

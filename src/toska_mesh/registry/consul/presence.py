"""A gateway in the registry: that it is there, and which fences it has passed (see `fence` for the other side).

Three loops on one session: it is kept alive, the fences are followed, and what changes is published in the gateway's
own key. Nothing of this stands in the way of routing: without it the gateway routes as ever, unseen by waiters.

Waiters can only wait for whom they see, so a gateway shows itself before it reads its first table: `announced` tells
when it has, or has found that it cannot.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Never

from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import ServiceName
from toska_mesh.registry.consul.client import ConsulApi, SessionLostError
from toska_mesh.registry.consul.codec import parse_json
from toska_mesh.registry.consul.fence_keys import PREFIX as FENCES
from toska_mesh.registry.consul.fence_keys import fences_in
from toska_mesh.registry.consul.gateways import PREFIX, TTL_SECONDS, GatewayState, encode_state
from toska_mesh.registry.consul.ledger import FenceLedger
from toska_mesh.registry.consul.lock import kv_path
from toska_mesh.registry.consul.polling import Backoff, BlockingQuery
from toska_mesh.registry.consul.session import ConsulSession
from toska_mesh.telemetry import event_log

log = event_log("registry")


class ConsulGatewayPresence:
    """One gateway process. One `run` per object; `name` has to be unique among all that ever lived at once.

    `apply` returns once the gateway routes the service by a reading that began after the call; it may take as long as
    it needs. `describe` gives more for the key's value, for people.
    """

    def __init__(
        self,
        api: ConsulApi,
        name: str,
        apply: Callable[[ServiceName], Awaitable[None]],
        *,
        describe: Callable[[], Mapping[str, object]] = dict,
        ttl_seconds: int = TTL_SECONDS,
        audit_seconds: float = 30.0,
        rng: random.Random | None = None,
    ) -> None:
        """`audit_seconds`: how often the key is checked for being still there."""
        self._api = api
        self.name = name
        self._apply = apply
        self._describe = describe
        self._session = ConsulSession(api, name, ttl_seconds)
        self._audit_seconds = audit_seconds
        self._rng = rng or random.Random()
        self._query = BlockingQuery(api, kv_path(FENCES), params={"recurse": "true"}, wait_seconds=60.0)
        self._ledger = FenceLedger()
        self._applying: set[tuple[FenceLedger, ServiceName]] = set()
        self._news = asyncio.Event()
        self._lost = asyncio.Event()
        self._published: tuple[str, GatewayState] | None = None
        """Session and state of the last write that the registry acknowledged."""
        self.announced = asyncio.Event()
        self._is_complained_of = False

    @property
    def applied_index(self) -> int:
        """Highest index up to which all fences are passed, as the registry knows it; 0 while it does not know us."""
        if self._published is None:
            return 0
        state = self._published[1]
        return min((state.applied, *state.behind.values()))

    async def run(self) -> Never:
        """Until cancelled, be seen. Cancelled, it leaves at once instead of letting waiters wait for the TTL."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_session(), name="keep gateway session")
                tasks.create_task(self._follow_fences(tasks), name="follow fences")
                await self._publish_forever()
        finally:
            self._published = None
            await self._session.close()
        raise AssertionError("the publisher never ends by itself")

    async def _keep_session(self) -> Never:
        backoff = self._backoff()
        while True:
            try:
                is_new = not self._session.id
                await self._session.ensure()
                if is_new:
                    self._news.set()
                backoff.succeeded()
                pause = self._session.ttl_seconds / 3
            except SessionLostError as error:
                self._forget(str(error))
                continue
            except RegistryError as error:
                self._complain(error)
                pause = backoff.failed(error)
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Shorter when another loop finds the session lost."""
        try:
            async with asyncio.timeout(seconds):
                await self._lost.wait()
        except TimeoutError:
            pass
        self._lost.clear()

    def _forget(self, reason: str) -> None:
        """The registry lost our session, and perhaps all else with it: its indexes may have begun anew."""
        log.info("gateway_session_lost", gateway=self.name, reason=reason)
        self._session.forget()
        self._published = None
        self._start_over()

    def _start_over(self) -> None:
        self._ledger = FenceLedger()
        self._query.forget_index()
        self._query.cut_short(asyncio.get_running_loop().time())

    async def _follow_fences(self, tasks: asyncio.TaskGroup) -> Never:
        backoff = self._backoff()
        while True:
            ledger = self._ledger
            try:
                poll = await self._query.next()
                fences = fences_in(poll.body)
            except RegistryError as error:
                self._query.forget_index()
                if ledger is self._ledger:
                    self._complain(error)
                    await asyncio.sleep(backoff.failed(error))
                continue
            backoff.succeeded()
            if ledger is not self._ledger:  # asked in an earlier life of the registry
                self._query.forget_index()
                continue
            if poll.went_back:
                ledger = self._ledger = FenceLedger()
            for service in ledger.meet(fences):
                if (ledger, service) not in self._applying:
                    self._applying.add((ledger, service))
                    tasks.create_task(self._catch_up(ledger, service), name=f"apply fence of {service}")
            self._news.set()

    async def _catch_up(self, ledger: FenceLedger, service: ServiceName) -> None:
        try:
            while ledger is self._ledger and not ledger.is_past(service):
                newest = ledger.newest(service)
                await self._apply(service)
                ledger.pass_(service, newest)
                self._news.set()
        finally:
            self._applying.discard((ledger, service))

    async def _publish_forever(self) -> Never:
        backoff = self._backoff()
        while True:
            try:
                async with asyncio.timeout(self._audit_seconds):
                    await self._news.wait()
                is_audit = False
            except TimeoutError:
                is_audit = True
            self._news.clear()
            try:
                await self._publish(is_audit=is_audit)
            except SessionLostError:
                self._lost.set()  # renewing finds it out, and makes another
            except RegistryError as error:
                self._complain(error)
                await asyncio.sleep(backoff.failed(error))
                self._news.set()
            else:
                backoff.succeeded()

    async def _publish(self, *, is_audit: bool) -> None:
        session = self._session.id
        if not session:
            return  # a new one is news
        if is_audit and not await self._is_there(session):
            self._published = None
        wanted = (session, self._ledger.state(self.name))
        if self._published == wanted:
            return
        body = encode_state(wanted[1], **self._describe())
        answer = await self._api.call("PUT", kv_path(PREFIX + self.name), {"acquire": session}, body)
        if answer.body.strip() != b"true":
            raise RegistryUnavailableError(f"the key of gateway {self.name!r} is held by another session")
        if session == self._session.id:
            self._published = wanted
        if not self.announced.is_set():
            log.info("gateway_announced", gateway=self.name)
        self._is_complained_of = False
        self.announced.set()

    async def _is_there(self, session: str) -> bool:
        answer = await self._api.call("GET", kv_path(PREFIX + self.name), missing_ok=True)
        entries = parse_json(answer.body, "the gateway's key") if answer.status != 404 else []
        return any(isinstance(entry, dict) and entry.get("Session") == session for entry in entries or ())

    def _complain(self, error: RegistryError) -> None:
        """Once per outage or refusal. The first try is over: whoever waits for the announcement need not any longer."""
        self.announced.set()
        if not self._is_complained_of:
            self._is_complained_of = True
            log.warning(
                "gateway_not_announced",
                gateway=self.name,
                error=str(error),
                consequence="routing goes on, but whoever waits for a change to be applied may overlook this gateway",
            )

    def _backoff(self) -> Backoff:
        return Backoff(self._rng, longest_seconds=3.0)

"""Keeps one instance in the mesh: registers it, says how it is, and registers it again whenever the mesh forgot it.

Nothing is trusted to last. Discovery may be late, away or restarted, the registry may forget us, this very process may
be stopped and woken: every call has a deadline, every failure another try, and after a long sleep the first thing is a
beat. An app that is not well is not registered before it is: whoever is registered gets requests at once.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Never

from toska_mesh.aio import Latest
from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import HealthStatus, InstanceId, rules
from toska_mesh.sdk.enrolment import Enrolment, Member, NobodyListensError
from toska_mesh.telemetry import event_log

log = event_log("sdk")

CALL_SECONDS: Final = 5.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.1, 5.0
FIRST_BEAT_SECONDS: Final = 1.0
"""After registering. A Go discovery writes an instance and its health in two steps; this closes the gap between."""

RETRY_SECONDS: Final = 1.0
"""After a lost beat, the first time."""

LAST_CALL_SECONDS: Final = 1.0
HEALTH_EVERY_SECONDS: Final = 2.0
HEALTH_LIMIT_SECONDS: Final = 15.0
SERVING: Final = "serving"

REMIND_SECONDS: Final = 60.0
"""A trouble that lasts is told again that often."""

_MOST_REASONS: Final = 4
_OVERSLEPT_SECONDS: Final = 1.0
"""A call that ends so long after its deadline has not waited for the other side: this process was stopped."""


@dataclass(frozen=True, slots=True)
class Condition:
    """How the app is, in the word that gateways act on and in words for people."""

    status: HealthStatus = HealthStatus.HEALTHY
    output: str = SERVING


class _Told:
    """What has been said of a trouble: each of its reasons once, a few at most, and again after a minute."""

    def __init__(self) -> None:
        self._reasons: set[str] = set()
        self._since = float("-inf")

    def is_news(self, reason: str, now: float) -> bool:
        if now - self._since >= REMIND_SECONDS:
            self._reasons.clear()
            self._since = now
        if reason in self._reasons or len(self._reasons) >= _MOST_REASONS:
            return False
        self._reasons.add(reason)
        return True


HealthSource = Callable[[], Awaitable[tuple[HealthStatus, str]]]
"""Asked every two seconds and when `look_again` is called; healthy, degraded or unhealthy, and why."""


async def always_healthy() -> tuple[HealthStatus, str]:
    return HealthStatus.HEALTHY, ""


def wait_seconds(failures: int, rng: random.Random) -> float:
    """Before the next try to register, after so many failures in a row (1 = the first): doubling, bounded, jittered."""
    longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(failures - 1, 10))
    return rng.uniform(longest / 2, longest)


class Membership:
    """One instance's place in the mesh. Lives on one event loop; the enrolment belongs to the caller.

    `keep` does the work. Once `stop_keeping` has returned, nothing is sent any more but by whoever called it.
    """

    def __init__(
        self,
        enrolment: Enrolment,
        member: Member,
        health: HealthSource = always_healthy,
        *,
        heartbeat: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        self.enrolment = enrolment
        self.member = member
        self.instance_id = member.id
        """As the registry knows it; the one that was asked for until it says another."""
        self.may_be_known = False
        """A registration was sent, whatever became of it: leaving has to take it back."""
        self.was_known = False
        """The mesh has acknowledged a registration, at any time."""
        self._health = health
        self._heartbeat = heartbeat
        self._rng = rng or random.Random()
        self._condition: Latest[Condition] = Latest()
        self._look = asyncio.Event()
        self._known: Latest[bool] = Latest()
        self._acknowledged_at = float("-inf")
        self._trouble = "not tried yet"
        self._loop: asyncio.AbstractEventLoop | None = None
        """For questions from other threads: a scrape of metrics may come from one."""
        self._scope: asyncio.Timeout | None = None
        self._line = asyncio.Lock()
        """Held during a call of ours."""
        self._is_leaving = False
        self._is_quiet = asyncio.Event()
        self._is_quiet.set()

    @property
    def is_registered(self) -> bool:
        """Whether the mesh knows us, as far as we know: it said so less than a TTL ago."""
        return not self.why_not

    @property
    def why_not(self) -> str:
        """Why the mesh may not know us, for people; empty when it does."""
        if not self._known.peek() or self._loop is None:
            return self._trouble
        silent = self._loop.time() - self._acknowledged_at
        if self._heartbeat and silent > self.member.ttl_seconds:
            return f"no beat was acknowledged for {silent:.0f} s: {self._trouble}"
        return ""

    @property
    def condition(self) -> Condition:
        """What the app said last."""
        return self._condition.peek() or Condition()

    async def registered(self) -> InstanceId:
        """Wait until the mesh has acknowledged the registration."""
        async for is_known in self._known.updates():
            if is_known:
                break
        return self.instance_id

    def look_again(self) -> None:
        """The app's health has changed, or may have: ask for it now rather than at the next look."""
        self._look.set()

    async def keep(self) -> Never:
        """Register, beat, and register again whenever a beat is refused. Until cancelled."""
        self._loop = asyncio.get_running_loop()
        if not self._is_leaving:
            self._is_quiet.clear()
            try:
                async with asyncio.timeout(None) as self._scope, asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._watch_health(), name=f"look after the health of {self.member.id}")
                    await self._keep_registered()
            except TimeoutError:
                if not self._is_leaving:
                    raise
            finally:
                self._is_quiet.set()
        while True:
            await asyncio.Event().wait()  # left: whoever runs us decides when that is over

    async def stop_keeping(self) -> None:
        """Send nothing more. What was being sent has ended; only if it took too long is it not known how."""
        is_first, self._is_leaving = not self._is_leaving, True
        if is_first and self._scope is not None and not self._is_quiet.is_set():
            await self._cut_off(self._scope)
        await self._is_quiet.wait()

    async def _cut_off(self, scope: asyncio.Timeout) -> None:
        has_line = False
        try:
            # A call cut off in the middle may reach the mesh after what we say next: rather wait for its end.
            async with asyncio.timeout(LAST_CALL_SECONDS):
                has_line = await self._line.acquire()
        except TimeoutError:
            pass
        try:
            if not self._is_quiet.is_set():
                scope.reschedule(asyncio.get_running_loop().time())
            await self._is_quiet.wait()
        finally:
            if has_line:
                self._line.release()

    def left(self, *, is_acknowledged: bool) -> None:
        """We have said that we leave, and the mesh has heard it or not."""
        self.may_be_known = not is_acknowledged
        self._forgotten("left" if is_acknowledged else "left, but nobody could be told")

    async def _keep_registered(self) -> Never:
        while True:
            await self._until_fit()
            await self._register()
            await self._beat_until_refused()
            self._forgotten("the mesh has forgotten this instance")

    async def _until_fit(self) -> None:
        is_told = False
        async for condition in self._condition.updates():
            if condition.status is not HealthStatus.UNHEALTHY:
                return
            self._trouble = f"the app is unhealthy: {condition.output or 'without words'}"
            if not is_told:
                is_told = True
                log.warning("waiting_for_health", instance=self.member.id, reason=condition.output)

    async def _register(self) -> None:
        loop = asyncio.get_running_loop()
        told = _Told()
        failures = 0
        while True:
            may_be_known, self.may_be_known = self.may_be_known, True
            try:
                async with self._line:
                    self.instance_id = await self.enrolment.register(self.member, loop.time() + CALL_SECONDS)
                break
            except RegistryError as exc:
                failures += 1
                self._trouble = str(exc)
                if isinstance(exc, NobodyListensError):
                    self.may_be_known = may_be_known  # nothing was sent
                if told.is_news(self._trouble, loop.time()):
                    log.warning(
                        "registration_refused" if _is_refusal(exc) else "waiting_for_registration",
                        service=self.member.service,
                        instance=self.member.id,
                        reason=self._trouble,
                        tries=failures,
                    )
            await asyncio.sleep(wait_seconds(failures, self._rng))
        self.was_known = True
        self._acknowledged(loop.time())
        self._known.set(True)
        log.info(
            "registered",
            service=self.member.service,
            instance=self.instance_id,
            address=_shown_address(self.member.address),
            port=self.member.port,
        )

    async def _beat_until_refused(self) -> None:
        """Say how the app is, in time and whenever that changes, until somebody answers that he does not know us."""
        if not self._heartbeat:
            await asyncio.Event().wait()
        loop = asyncio.get_running_loop()
        failures = 0
        told = _Told()
        said = HealthStatus.HEALTHY  # what registering says
        next_at = loop.time() + self._rng.uniform(0.5, 1.0) * FIRST_BEAT_SECONDS
        while True:
            condition = await self._when_due(next_at, said, is_failing=failures > 0)
            began = loop.time()
            limit = min(CALL_SECONDS, self.member.beat_seconds)
            try:
                async with self._line:
                    is_known = await self.enrolment.report(
                        self.instance_id, condition.status, condition.output, began + limit
                    )
            except RegistryError as exc:
                failures += 1
                self._trouble = str(exc)
                if failures == 1:
                    told = _Told()
                if told.is_news("any", loop.time()):
                    log.warning("beat_failed", instance=self.instance_id, reason=self._trouble, lost=failures)
                has_overslept = loop.time() > began + limit + _OVERSLEPT_SECONDS
                next_at = loop.time() + (0 if has_overslept else self._retry_seconds(failures))
                continue
            if not is_known:
                log.warning("beat_refused", instance=self.instance_id, consequence="registering again")
                return
            self._acknowledged(loop.time())
            if failures:
                log.info("beats_resumed", instance=self.instance_id, lost=failures)
            if condition.status is not said:
                log.info(
                    "health_reported", instance=self.instance_id, status=condition.status.label, reason=condition.output
                )
            failures, said = 0, condition.status
            next_at = began + self.member.beat_seconds

    async def _when_due(self, next_at: float, said: HealthStatus, *, is_failing: bool) -> Condition:
        """Wait for the next beat's time, or only until the app's status differs from what the mesh was told."""
        try:
            async with asyncio.timeout_at(next_at):
                if is_failing:
                    await asyncio.Event().wait()
                async for condition in self._condition.updates():
                    if condition.status is not said:
                        break
        except TimeoutError:
            pass
        return self.condition

    def _retry_seconds(self, failures: int) -> float:
        longest = min(LONGEST_WAIT_SECONDS, self.member.beat_seconds / 2, RETRY_SECONDS * 2 ** min(failures - 1, 10))
        return self._rng.uniform(longest / 2, longest)

    async def _watch_health(self) -> Never:
        while True:
            self._look.clear()
            condition = await self._ask_health()
            if condition != self._condition.peek():
                self._condition.set(condition)
            try:
                async with asyncio.timeout(HEALTH_EVERY_SECONDS):
                    await self._look.wait()
            except TimeoutError:
                pass

    async def _ask_health(self) -> Condition:
        limit = asyncio.timeout(HEALTH_LIMIT_SECONDS)
        try:
            async with limit:
                status, output = await self._health()
        except Exception as exc:
            # The app's own code, which must not end its membership; what it cannot say is not well.
            words = f"{type(exc).__name__}: {exc}"
            if limit.expired():
                words = f"no answer about the app's health within {HEALTH_LIMIT_SECONDS:g} s"
            return Condition(HealthStatus.UNHEALTHY, words)
        if status is HealthStatus.UNKNOWN:
            return Condition(HealthStatus.UNHEALTHY, output or "the app does not know how it is")
        return Condition(status, output or SERVING)

    def _acknowledged(self, now: float) -> None:
        self._acknowledged_at = now
        self._trouble = ""

    def _forgotten(self, why: str) -> None:
        self._trouble = why
        self._known.set(False)


def _shown_address(address: str) -> str:
    """What others will use: one that means "all of them" is replaced by where the mesh sees us."""
    ip = rules.parse_ip(address)
    is_open = not address or (ip is not None and ip.is_unspecified)
    return f"{address or 'none'} (where the mesh sees us)" if is_open else address


def _is_refusal(exc: RegistryError) -> bool:
    return not isinstance(exc, RegistryUnavailableError)

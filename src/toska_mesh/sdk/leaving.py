"""Leaving the mesh without losing a request: the order of the steps, and what each may cost.

1. mark: say that we are draining, and keep saying it; gateways prefer others from then on.
2. notice: wait until every gateway has applied that.
3. idle: let what is in flight end, still accepting: a service of one instance is asked until it is gone.
4. deregister.
5. last notice: wait until every gateway has applied that too; from then on they answer for us.
6. (the host) close the port, and finish what is left.

Each step may take a part of the time that is left when it begins, so that one that hangs leaves something to those
behind it; while discovery or the registry is away a step is tried again until its part is over, or until all says that
the mesh is gone for good. A second signal ends all waiting at once, and what is waited for is said before anybody
wonders. Nothing here raises for a mesh that does not answer: leaving always ends, and reports how.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeVar

from toska_mesh.errors import RegistryError, RegistryUnavailableError
from toska_mesh.model import HealthStatus
from toska_mesh.model.metadata import DRAIN_NOTE
from toska_mesh.sdk.enrolment import Applied, NobodyListensError
from toska_mesh.sdk.membership import CALL_SECONDS, Membership, wait_seconds
from toska_mesh.telemetry import event_log

log = event_log("sdk")

T = TypeVar("T")

HURRY_SECONDS: Final = 1.0
"""When leaving at once: what one last word to the mesh may cost."""

GONE_SECONDS: Final = 5.0
"""Discovery of this machine is taken for gone when nobody has listened for so long, and nobody has asked us anything.

A restart takes one to three. As long as requests come, gateways route to us and know of us: then we wait on."""

QUIET_SECONDS: Final = 60.0
"""How long ago the last request has to be for that: a service may be asked rarely, and still be asked again."""

TELL_AFTER_SECONDS: Final = 1.0
"""A step that waits for the mesh for longer is said to."""

_TELLING_PART: Final = 1 / 3
"""What a step may take of the time that is left, if it only tells something: for when nobody listens."""

_WAITING_PART: Final = 1 / 2
_BLIND_PART: Final = 5 / 6
"""Waiting without being told: it cannot hang, and where gateways only ask now and then it is all there is."""


_IN_A_ROW_SECONDS: Final = 2.0
"""Tries further apart say nothing of the time between them."""

_REPORT_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 1.0
_NO_ANSWER: Final = "no answer in time"
_HURRIED: Final = "told to leave at once"


class _GivenUpError(Exception):
    """A step has its answer, and it is no."""


class Outcome(StrEnum):
    DONE = "done"
    GIVEN_UP = "given up"
    SKIPPED = "skipped"
    LEFT = "left to the host"
    """Requests still in flight when the mesh was told: they are finished after it."""


@dataclass(frozen=True, slots=True)
class LeaveStep:
    """How one step ended."""

    name: str
    outcome: Outcome
    seconds: float = 0.0
    words: str = ""
    """Why it was given up or skipped, or what is worth knowing of its success."""


@dataclass(frozen=True, slots=True)
class LeaveReport:
    """How an instance left: what was acknowledged, how long it took, what was given up and why."""

    reason: str
    steps: tuple[LeaveStep, ...]
    seconds: float
    is_hurried: bool = False

    @property
    def is_lossless(self) -> bool:
        """Whether the mesh has acknowledged all that it had to, before anybody's request could be lost."""
        return not self.given_up

    @property
    def given_up(self) -> tuple[LeaveStep, ...]:
        return tuple(step for step in self.steps if step.outcome is Outcome.GIVEN_UP)

    def step(self, name: str) -> LeaveStep:
        return next(step for step in self.steps if step.name == name)

    def fields(self) -> dict[str, object]:
        """For one line of the log."""
        told: dict[str, object] = {"reason": self.reason, "seconds": round(self.seconds, 3), "hurried": self.is_hurried}
        for step in self.steps:
            told[step.name] = f"{step.outcome} in {step.seconds:.3f} s" if step.seconds else step.outcome.value
            if step.words:
                told[step.name] = f"{told[step.name]}: {step.words}"
        return told


MARK, NOTICE, IDLE, DEREGISTER, LAST_NOTICE = "mark", "notice", "idle", "deregister", "last_notice"


_WAITS_FOR: Final = {
    MARK: "the mesh to hear that this instance is draining",
    NOTICE: "the gateways to have applied that this instance is draining",
    DEREGISTER: "the mesh to forget this instance",
    LAST_NOTICE: "the gateways to have applied that this instance is gone",
}


async def nothing_in_flight() -> None:
    """For hosts without requests of their own."""


def never_asked() -> float:
    """For hosts without requests of their own."""
    return float("-inf")


@dataclass(frozen=True, slots=True)
class _Silence:
    """Nobody has listened at discovery's place in all tries since `since`, and nobody asked us anything."""

    since: float
    last: float
    asked_at: float


class Leaving:
    """One leave, run once. Lives on the membership's event loop."""

    def __init__(
        self,
        membership: Membership,
        reason: str,
        *,
        drain_seconds: float = 30.0,
        notice_seconds: float = 31.0,
        idle: Callable[[], Awaitable[None]] = nothing_in_flight,
        asked_at: Callable[[], float] = never_asked,
        hurry: asyncio.Event | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`idle` returns once nothing is in flight, `asked_at` says when the last request came (-inf: none did).

        Setting `hurry` ends all waiting; 0 `drain_seconds` never begins.
        `notice_seconds` is how long gateways may take to ask, where the control plane cannot say that they have.
        """
        self._membership = membership
        self._enrolment = membership.enrolment
        self._reason = reason
        self._drain_seconds = drain_seconds
        self._notice_seconds = notice_seconds
        self._idle = idle
        self._asked_at = asked_at
        self._hurry = hurry or asyncio.Event()
        self._rng = rng or random.Random()
        self._ends = 0.0
        self._steps: list[LeaveStep] = []
        self._scope: asyncio.Timeout | None = None
        self._is_hurried = False
        self._can_say = True
        """Whether the control plane says what gateways have applied, as far as we know."""
        self._why_blind = ""
        self._is_known = True
        """Whether anybody knew us when we said that we drain."""
        self._trouble = ""
        """What stands in the way of the present step."""
        self._present = ""
        self._silence: _Silence | None = None

    async def run(self) -> LeaveReport:
        """Leave within the time; what is left of it is the host's, to finish what is in flight."""
        loop = asyncio.get_running_loop()
        membership = self._membership
        began = loop.time()
        self._ends = began + self._drain_seconds
        self._is_hurried = self._drain_seconds <= 0 or self._hurry.is_set()
        await membership.stop_keeping()
        async with asyncio.TaskGroup() as tasks:
            watcher = tasks.create_task(self._watch_hurry(), name=f"hurry {membership.instance_id} when asked to")
            if membership.was_known:
                await self._leave_the_mesh()
            else:
                await self._finish_alone()
            watcher.cancel()
        report = LeaveReport(self._reason, tuple(self._steps), loop.time() - began, self._is_hurried)
        tell = log.info if report.is_lossless else log.warning
        tell("left", service=membership.member.service, instance=membership.instance_id, **report.fields())
        return report

    async def _leave_the_mesh(self) -> None:
        is_marked = await self._step(MARK, self._mark, _TELLING_PART)
        async with asyncio.TaskGroup() as tasks:
            saying = tasks.create_task(self._keep_saying(), name=f"say that {self._membership.instance_id} is draining")
            if is_marked:
                await self._notice(NOTICE)
            else:
                self._skip(NOTICE, "nobody was told")
            await self._step(IDLE, self._until_idle)
            saying.cancel()
        is_gone = await self._step(DEREGISTER, self._deregister, _TELLING_PART)
        self._membership.left(is_acknowledged=is_gone)
        if not is_gone:
            self._skip(LAST_NOTICE, "nobody was told")
        elif is_marked and not self._can_say:
            # Gateways that only ask now and then send nothing to what is not healthy.
            self._skip(LAST_NOTICE, "the first one covers it")
        else:
            await self._notice(LAST_NOTICE)

    async def _finish_alone(self) -> None:
        """Nobody has ever said that he knows us: nobody is to be told, and whoever found us all the same is served."""
        words = "never registered"
        self._skip(MARK, words)
        self._skip(NOTICE, words)
        await self._step(IDLE, self._until_idle)
        if self._membership.may_be_known:
            # A registration whose answer we did not get may have been taken: one word, in case.
            self._ends = asyncio.get_running_loop().time() + HURRY_SECONDS
            is_gone = await self._step(DEREGISTER, self._deregister, 1.0)
            if not is_gone:
                self._steps[-1] = replace(self._steps[-1], outcome=Outcome.SKIPPED, words=words)
        else:
            self._skip(DEREGISTER, words)
        self._skip(LAST_NOTICE, words)
        self._membership.left(is_acknowledged=True)

    async def _mark(self, deadline: float) -> str:
        self._is_known = await self._persistently(self._say_draining, deadline)
        return "" if self._is_known else "nobody knows this instance any more"

    async def _say_draining(self, deadline: float) -> bool:
        membership = self._membership
        # An app that is unhealthy gets no requests; "draining" alone would make it the better choice again.
        is_unwell = membership.condition.status is HealthStatus.UNHEALTHY
        status = HealthStatus.UNHEALTHY if is_unwell else HealthStatus.DEGRADED
        return await self._enrolment.report(membership.instance_id, status, f"{DRAIN_NOTE}: {self._reason}", deadline)

    async def _keep_saying(self) -> None:
        """Beats go on while we wait: an instance that falls silent is taken for dead."""
        loop = asyncio.get_running_loop()
        while self._is_known:
            await asyncio.sleep(self._membership.member.beat_seconds)
            try:
                self._is_known = await self._say_draining(loop.time() + CALL_SECONDS)
            except RegistryError as exc:
                log.debug("beat_failed", instance=self._membership.instance_id, reason=str(exc))

    async def _notice(self, name: str) -> None:
        """Wait until the gateways have applied what was acknowledged, or as long as they may take to ask for it."""
        if self._can_say:
            await self._step(name, self._until_applied)
            if self._can_say:
                return
            self._steps.pop()  # no answer to the question, only that there will never be one
        await self._step(name, self._wait_blindly, _BLIND_PART)

    async def _until_applied(self, deadline: float) -> str:
        service = self._membership.member.service
        # Each try ends a little before the step, so that the report of who is behind is not lost with it.
        left = deadline - asyncio.get_running_loop().time()
        answer_by = deadline - min(_REPORT_SECONDS, left / 4)
        try:
            applied = await self._persistently(
                lambda limit: self._enrolment.wait_applied(service, limit), answer_by, longest_seconds=left
            )
        except RegistryUnavailableError:
            raise
        except RegistryError as exc:
            reason = f"the control plane refuses to say what gateways have applied: {exc}"
            applied = Applied(False, reason, is_supported=False)
        if not applied.is_supported:
            self._can_say, self._why_blind = False, applied.reason
            return ""
        if not applied.is_complete:
            raise _GivenUpError(applied.reason)
        count = len(applied.gateways)
        return f"applied by {count} gateway{'' if count == 1 else 's'}"

    async def _wait_blindly(self, deadline: float) -> str:
        self._trouble = f"{self._why_blind}; waited, for less than the {self._notice_seconds:g} s they may take to ask"
        await asyncio.sleep(self._notice_seconds)
        return f"{self._why_blind}; waited instead"

    async def _until_idle(self, deadline: float) -> str:
        self._trouble = "requests are still in flight"
        await self._idle()
        return ""

    async def _deregister(self, deadline: float) -> str:
        instance_id = self._membership.instance_id
        was_known = await self._persistently(lambda limit: self._enrolment.deregister(instance_id, limit), deadline)
        return "" if was_known else "nobody knew this instance any more"

    async def _persistently(
        self, ask: Callable[[float], Awaitable[T]], until: float, *, longest_seconds: float = CALL_SECONDS
    ) -> T:
        """Ask until there is an answer, or no time left to ask."""
        loop = asyncio.get_running_loop()
        failures = 0
        while loop.time() < until:
            try:
                answer = await ask(min(until, loop.time() + longest_seconds))
                self._silence = None
                return answer
            except RegistryUnavailableError as exc:
                failures += 1
                self._trouble = str(exc)
                if self._is_gone(exc, loop.time()):
                    raise _GivenUpError(f"{exc} for {GONE_SECONDS:g} s, and no request came lately") from exc
            await asyncio.sleep(min(_LONGEST_PAUSE_SECONDS, wait_seconds(failures, self._rng)))
        raise _GivenUpError(self._trouble)

    def _is_gone(self, exc: RegistryUnavailableError, now: float) -> bool:
        if not isinstance(exc, NobodyListensError) or not exc.is_here:
            self._silence = None
            return False
        silence, asked_at = self._silence, self._asked_at()
        goes_on = silence is not None and silence.asked_at == asked_at and now - silence.last <= _IN_A_ROW_SECONDS
        since = silence.since if silence is not None and goes_on else now
        self._silence = _Silence(since, now, asked_at)
        return now - since >= GONE_SECONDS and now - asked_at >= QUIET_SECONDS

    def _tell_what_is_waited_for(self, name: str, deadline: float) -> None:
        if self._is_hurried:
            return
        # Gateways that only ask now and then are waited for at every leave: that is no trouble.
        tell = log.info if name == NOTICE and not self._can_say else log.warning
        tell(
            "leaving_waits",
            instance=self._membership.instance_id,
            waits_for=_WAITS_FOR[name],
            reason="no answer yet" if self._trouble == _NO_ANSWER else self._trouble,
            at_most_seconds=round(deadline - asyncio.get_running_loop().time(), 1),
            hint="the same signal again leaves at once",
        )

    async def _step(self, name: str, work: Callable[[float], Awaitable[str]], part: float = _WAITING_PART) -> bool:
        """Do one step within its time, or be hurried out of it. Whether it was done."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self._is_hurried and name != DEREGISTER:
            self._steps.append(LeaveStep(name, Outcome.GIVEN_UP, 0.0, _HURRIED))
            return False
        deadline = began + (HURRY_SECONDS if self._is_hurried else max(0.0, self._ends - began) * part)
        self._present, self._trouble = name, _NO_ANSWER
        words, outcome = "", Outcome.DONE
        scope = self._scope = asyncio.timeout_at(deadline)
        teller = None
        if name in _WAITS_FOR and deadline - began > 2 * TELL_AFTER_SECONDS:
            teller = loop.call_later(TELL_AFTER_SECONDS, self._tell_what_is_waited_for, name, deadline)
        try:
            async with scope:
                words = await work(deadline)
        except TimeoutError:
            if not scope.expired():
                raise
            words, outcome = self._trouble, Outcome.LEFT if name == IDLE else Outcome.GIVEN_UP
            if self._is_hurried and name != DEREGISTER:
                words, outcome = _HURRIED, Outcome.GIVEN_UP
        except (_GivenUpError, RegistryError) as exc:
            words, outcome = str(exc), Outcome.GIVEN_UP
        finally:
            self._scope = None
            if teller is not None:
                teller.cancel()
        self._steps.append(LeaveStep(name, outcome, loop.time() - began, words))
        return outcome is Outcome.DONE

    def _skip(self, name: str, words: str) -> None:
        self._steps.append(LeaveStep(name, Outcome.SKIPPED, 0.0, words))

    async def _watch_hurry(self) -> None:
        await self._hurry.wait()
        self._is_hurried = True
        scope, loop = self._scope, asyncio.get_running_loop()
        if scope is not None and not scope.expired():
            latest = loop.time() + (HURRY_SECONDS if self._present == DEREGISTER else 0.0)
            scope.reschedule(min(scope.when() or latest, latest))

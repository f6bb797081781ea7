"""Keeping requests away from instances that fail or fall silent, and finding out when they are back.

Two kinds of evidence block an instance: its breaker (failures in a row) and suspicion (a request has waited much longer
than its service usually takes, or for a connection longer than one takes). What ends the block is a small probe of our
own, so that no request waits for an instance that may still be hung; only where a breaker's time is long over and no
probe is answered, one request has to find out. The decisions are the resilience core's; this shell owns the circuits,
reads the clock and runs the probes.

The gateway and the SDK's client use this very code: an instance is treated the same whoever sends the requests.
"""

import asyncio
import ssl
from collections.abc import Callable, Collection, Iterable, Sequence
from random import Random
from typing import Final, Generic, Protocol, TypeVar

from mypy_extensions import mypyc_attr

from toska_mesh.guard.contained import ContainedTasks
from toska_mesh.model import Instance
from toska_mesh.resilience import (
    BreakerPolicy,
    Circuit,
    Outcome,
    Permit,
    RecentLatency,
    RetryBudget,
    RetryPolicy,
    State,
    SuspicionPolicy,
    Try,
)
from toska_mesh.router import Service, Target
from toska_mesh.telemetry import event_log

FIRST_PROBE_PAUSE_SECONDS: Final = 0.5
LONGEST_PROBE_PAUSE_SECONDS: Final = 5.0

UNPROVEN_SECONDS: Final = 10.0
"""How long an instance whose breaker would let a trial through has to answer a probe first."""

TRIAL_WAITS_SECONDS: Final = 5.0
"""How long the trial of an instance is kept for requests that could be repeated elsewhere."""

REPLAY_MAX_BYTES: Final = 64 * 1024
"""Larger request bodies are not kept for another try; such a request is simply not retried."""

LONGEST_LESSON_SECONDS: Final = 15.0
"""Whoever was silent for longer was hung, and is no measure of its service."""

SLOW_DIAL: Final = "the dial is taking too long"

log = event_log("guard")


class Waiting(Protocol):
    """A request that an instance owes an answer, seen from here."""

    deadline: float
    """When it stops waiting, seconds on the loop's clock."""

    @property
    def is_dialling(self) -> bool: ...

    def move_on(self, why: str) -> None:
        """Try another instance now, if that is safe and one is left; otherwise keep waiting."""

    def give_up_waiting(self) -> None:
        """The deadline has passed."""


@mypyc_attr(allow_interpreted_subclasses=True)  # in a compiled build too others add their own state
class Guarded(Target):
    """The router's target with what the guard knows of it. The data path reads `circuit` on every request."""

    __slots__ = ("answered_at", "circuit", "is_gone", "is_reviving", "is_suspect", "latency", "tls", "waiting")

    def __init__(
        self, instance: Instance, policy: BreakerPolicy, latency: RecentLatency, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(instance)
        self.circuit = Circuit(policy)
        self.latency = latency
        """Shared by the instances of one service."""
        self.waiting: dict[Waiting, float] = {}
        """Requests sent of whose answer nothing has come, with the moment of their try; the oldest first."""
        self.answered_at = 0.0
        """When anything came from it last, seconds on the loop's clock."""
        self.is_suspect = False
        self.is_reviving = False
        self.is_gone = False
        self.tls = tls


G = TypeVar("G", bound=Guarded)


class Prober(Protocol):
    """How to find out whether an instance is there. Bounded in time; never raises for what an instance does."""

    async def probe(self, target: Guarded) -> bool:
        """Whether it answers."""


class Guard(Generic[G]):
    """Owner of all circuits. `tasks` runs the probes; everything lives on one event loop.

    `kind` is the class of the targets that the route table is made with.
    """

    def __init__(
        self,
        kind: type[G],
        tasks: ContainedTasks,
        clock: Callable[[], float],
        suspicion: SuspicionPolicy,
        on_transition: Callable[[Guarded, State, State], None],
        prober: Prober,
    ) -> None:
        self._kind = kind
        self._tasks = tasks
        self._clock = clock
        self._suspicion = suspicion
        self._on_transition = on_transition
        self._prober = prober

    # -- the data path

    def choose(
        self, service: Service, key: str | None, tried: Sequence[Target], is_idempotent: bool, now: float
    ) -> G | None:
        """The instance for the next try, admitted by its circuit: the permit is its `circuit.epoch` of this moment.

        None: there is none, or every one that could be asked is behind a breaker.
        """
        while True:
            target = service.pick(now, key, tried)
            if len(tried) > 1 and target in tried:
                # Everybody has failed once: the one that failed just now comes last.
                target = service.pick(now, key, tried[-1:])
            if target is None:
                target = self.last_resort(service, tried)
            if not isinstance(target, self._kind):
                return None
            if target.circuit.is_clean:
                return target
            if target.circuit.state is not State.CLOSED and not is_idempotent:
                target = self._spare_trial(service, key, tried, target, now)
            if self.admit(target, now) is not None:
                return target
            target.is_blocked = True  # somebody else has the one trial
            self._revive(target)  # and may never tell

    def _spare_trial(self, service: Service, key: str | None, tried: Sequence[Target], target: G, now: float) -> G:
        """A trial may fail, and a failed request like this cannot be repeated: rather one that can makes the trial.

        Only for a while: where no such request ever comes, this one has to do.
        """
        if now - target.circuit.retry_at > TRIAL_WAITS_SECONDS:
            return target
        other = service.pick(now, key, (*tried, target))
        return other if isinstance(other, self._kind) and other.circuit.state is State.CLOSED else target

    def admit(self, target: Guarded, now: float) -> Permit | None:
        """Leave for one request, asked only while the circuit is not clean. None: somebody else has the trial."""
        was = target.circuit.state
        permit = target.circuit.admit(now)
        self._after_change(target, was)
        return permit

    def settle(self, target: Guarded, permit: Permit, outcome: Outcome, now: float) -> None:
        """Report how a request ended; called for failures always, for successes while the circuit is not clean."""
        was = target.circuit.state
        target.circuit.settle(permit, outcome, now)
        self._after_change(target, was)
        if target.circuit.state is State.HALF_OPEN and outcome is Outcome.CANCELLED:
            target.is_blocked = target.is_suspect  # the trial's slot is free again

    def answered(self, target: Guarded) -> None:
        """Something came from the instance: the suspicion is over."""
        if target.is_suspect:
            target.is_suspect = False
            target.is_blocked = target.circuit.state is not State.CLOSED
            log.info("instance_answers_again", service=target.instance.service, instance=target.instance.id)

    def last_resort(self, service: Service, tried: Collection[Target]) -> Guarded | None:
        """When every target is blocked: the least loaded one that is only suspect, one not tried yet before others."""
        suspects = [
            target
            for target in service.targets
            if isinstance(target, Guarded) and target.is_suspect and target.circuit.state is State.CLOSED
        ]
        return min(suspects, key=lambda target: (target in tried, target.in_flight), default=None)

    def retry_after_seconds(self, service: Service, now: float) -> float:
        """When the first breaker of the service lets a trial through, or the trial under way has been decided."""
        moments = [
            target.circuit.retry_at if target.circuit.state is State.OPEN else now
            for target in service.targets
            if isinstance(target, Guarded)
        ]
        return max(1.0, min(moments, default=now) - now)

    # -- now and then

    def tick(self, targets: Iterable[Guarded], now: float) -> None:
        """Look for silence. Called about ten times a second with every target of the table."""
        for target in targets:
            if not target.waiting:
                continue
            for request in [request for request in target.waiting if request.deadline <= now]:
                request.give_up_waiting()
            if target.waiting and not target.is_suspect:
                self._look_for_silence(target, now)

    def _look_for_silence(self, target: Guarded, now: float) -> None:
        """Whether a request has waited too long: for its answer by what is usual, for its connection by what is not."""
        policy = self._suspicion
        slow_dials: list[Waiting] = []
        for request, began in target.waiting.items():
            waited = now - began
            if waited < policy.hurried_seconds:
                break  # and so have all that came after it
            patience = request.deadline - began
            # One slow request beside others that are answered is no silence.
            silent = now - max(began, target.answered_at)
            if request.is_dialling:
                bound = policy.dial_threshold_seconds(patience)
                if silent < bound <= waited:
                    slow_dials.append(request)  # it takes no further connections, and answers on those that it has
            else:
                bound = policy.threshold_seconds(target.latency, patience)
            if silent >= bound:
                self._suspect(target, silent)
                return
        for request in slow_dials:
            request.move_on(SLOW_DIAL)

    def _suspect(self, target: Guarded, waited: float) -> None:
        target.is_suspect = True
        target.is_blocked = True
        log.warning(
            "instance_silent",
            service=target.instance.service,
            instance=target.instance.id,
            waited_seconds=round(waited, 3),
            requests_waiting=len(target.waiting),
        )
        for request in list(target.waiting):
            if request.is_dialling:
                request.move_on(SLOW_DIAL)
        self._revive(target)

    def _after_change(self, target: Guarded, was: State) -> None:
        state = target.circuit.state
        if state is was:
            return
        target.is_blocked = target.is_suspect or state is not State.CLOSED
        self._on_transition(target, was, state)
        log.warning(
            "breaker_changed",
            service=target.instance.service,
            instance=target.instance.id,
            previous=was.value,
            current=state.value,
        )
        if state is not State.CLOSED:
            self._revive(target)  # also beside a trial: it may take for ever, or never be reported

    # -- finding out whether it is back

    def _revive(self, target: Guarded) -> None:
        if not target.is_reviving:
            target.is_reviving = True
            self._tasks.create_task(self._ask_until_it_answers(target), name=f"revive {target.instance.id}")

    async def _ask_until_it_answers(self, target: Guarded) -> None:
        pause = FIRST_PROBE_PAUSE_SECONDS
        silent_since: float | None = None
        try:
            while target.is_blocked and (target.waiting or not target.is_gone):
                wait = target.circuit.retry_at - self._clock()
                if target.circuit.state is not State.CLOSED and not target.is_suspect and wait > 0:
                    # In small steps: when a trial fails, what is waited for is another moment, and a nearer one.
                    await asyncio.sleep(min(wait, FIRST_PROBE_PAUSE_SECONDS))
                    continue
                if await self._prober.probe(target):
                    if self._let_back(target):
                        if silent_since is not None:
                            self._learn_from_silence(target, self._clock() - silent_since)
                        return
                elif target.is_suspect:
                    for request, began in list(target.waiting.items()):
                        if silent_since is None and not request.is_dialling:
                            silent_since = began
                        request.move_on("the instance answers neither the request nor a probe")
                elif self._clock() - target.circuit.retry_at > UNPROVEN_SECONDS:
                    target.is_blocked = False  # what takes longer than a probe waits may be well all the same
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PROBE_PAUSE_SECONDS)
        finally:
            target.is_reviving = False

    def _learn_from_silence(self, target: Guarded, seconds: float) -> None:
        """It was not hung: it may do one thing at a time, and take so long for it.

        Where habits are unknown this stands for the answer that nobody waited for. Else all first calls to such a
        service would move on, none would be answered, and its habits would stay unknown.
        """
        if target.latency.samples < self._suspicion.min_samples and seconds <= LONGEST_LESSON_SECONDS:
            target.latency.observe(seconds)

    def _let_back(self, target: Guarded) -> bool:
        """The probe was answered. A suspect that still owes an answer stays passed over: its silence is stronger."""
        if target.is_suspect and target.waiting:
            return False
        self.answered(target)
        if target.circuit.is_open(self._clock()):
            return False
        target.is_blocked = False  # with a circuit that is not closed, the next request is its one trial
        return True


def has_alternative(service: Service, present: Target | None, tried: Collection[Target]) -> bool:
    """Whether another try could go to an instance that this request has not been at."""
    return any(not target.is_blocked and target is not present and target not in tried for target in service.targets)


def plan_retry(
    policy: RetryPolicy,
    attempt: Try,
    retries_done: int,
    goes_elsewhere: bool,
    expires: float,
    budget: RetryBudget,
    rng: Random,
    now: float,
) -> float | None:
    """The pause before another try; None when there is none. Spends from the budget. `expires`: the last moment."""
    pause = policy.next_pause(attempt, retries_done, goes_elsewhere, rng)
    if pause is None or now + pause >= expires:
        return None
    return pause if budget.try_spend(now) else None

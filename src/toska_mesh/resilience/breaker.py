"""The circuit of one upstream: after some failures in a row it is left alone for a while, then tried with one call.

`Breaker` is the decision, an immutable value without clock or lock. `Circuit` is the slotted holder for a hot path: the
same decisions by the same code, but a success on a closed circuit without failures changes nothing and allocates
nothing. Its owner is whoever sends the calls; it lives on one event loop.

What does not count: a call that its own caller gave up (`CANCELLED`), and any call admitted before the last change of
state, because it says nothing about now. A trial whose result never comes gives its slot back after `trial_seconds`.
Failures that are further apart than `window_seconds` are no series.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import NewType


class State(Enum):
    """Closed lets calls through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Outcome(Enum):
    """How a call ended, as far as it judges the upstream."""

    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLED = "cancelled"
    """Our caller left, or sent something wrong: the upstream is not judged."""


Permit = NewType("Permit", int)
"""Leave to make one call: the epoch in which it was given. Hand it back with the outcome."""


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a circuit opens and how it closes again. Raises ValueError for values without a meaning."""

    failure_threshold: int = 3
    """Failures in a row that open the circuit."""
    open_seconds: float = 20.0
    window_seconds: float = 60.0
    """A failure longer ago than this begins no series with the next one."""
    trial_seconds: float = 30.0
    """How long the one trial may take before another is let through."""

    def __post_init__(self) -> None:
        if self.failure_threshold < 1:
            raise ValueError(f"failure_threshold {self.failure_threshold} is below 1")
        for name in ("open_seconds", "window_seconds", "trial_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} is not above 0")


@dataclass(frozen=True, slots=True)
class Breaker:
    """One upstream's circuit. Immutable: every step returns the next one. Times are seconds, monotonic."""

    policy: BreakerPolicy = BreakerPolicy()
    state: State = State.CLOSED
    failures: int = 0  # in a row, while CLOSED
    failed_at: float = 0.0  # the last of them
    retry_at: float = 0.0  # OPEN: when a trial is admitted; HALF_OPEN: when the trial under way counts as lost
    epoch: int = 0  # + 1 at every change of state and at every trial

    def admit(self, now: float) -> tuple["Breaker", Permit | None]:
        """Ask to make one call; without a permit the call is rejected."""
        if self.state is State.CLOSED:
            return self, Permit(self.epoch)
        if now < self.retry_at:
            return self, None
        trial = self._enter(State.HALF_OPEN, retry_at=now + self.policy.trial_seconds)
        return trial, Permit(trial.epoch)

    def settle(self, permit: Permit, outcome: Outcome, now: float) -> "Breaker":
        """Record how the permitted call ended."""
        if permit != self.epoch or self.state is State.OPEN:
            return self  # admitted before the last change of state: says nothing about now
        if outcome is Outcome.CANCELLED:
            # The upstream is not judged; a trial gives its slot back at once.
            return self if self.state is State.CLOSED else replace(self, retry_at=now)
        if outcome is Outcome.SUCCESS:
            if self.state is State.CLOSED:
                return replace(self, failures=0) if self.failures else self
            return self._enter(State.CLOSED)
        is_series = now - self.failed_at <= self.policy.window_seconds
        failures = self.failures + 1 if is_series else 1
        if self.state is State.HALF_OPEN or failures >= self.policy.failure_threshold:
            return self._enter(State.OPEN, retry_at=now + self.policy.open_seconds)
        return replace(self, failures=failures, failed_at=now)

    def is_open(self, now: float) -> bool:
        """Whether `admit` would reject now. Changes nothing."""
        return self.state is not State.CLOSED and now < self.retry_at

    @property
    def is_clean(self) -> bool:
        """Closed, and no failure counted: a success would change nothing."""
        return self.state is State.CLOSED and not self.failures

    def _enter(self, state: State, retry_at: float = 0.0) -> "Breaker":
        return Breaker(self.policy, state, retry_at=retry_at, epoch=self.epoch + 1)


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state, for logs, metrics and whoever keeps `is_blocked` in step."""

    previous: State
    current: State
    retry_at: float
    """Seconds, monotonic: from then on a call may be admitted. 0 when closed."""


class Circuit:
    """The mutable holder of one `Breaker`.

    On a hot path read `is_clean` first: while it is true, `epoch` is the permit and a success need not be settled.

        permit = circuit.epoch if circuit.is_clean else circuit.admit(now)
        ...
        if failed or not circuit.is_clean:
            transition = circuit.settle(permit, outcome, now)
    """

    __slots__ = ("breaker", "epoch", "is_clean")

    def __init__(self, policy: BreakerPolicy = BreakerPolicy()) -> None:
        self.breaker = Breaker(policy)
        self.is_clean = True
        self.epoch = Permit(0)

    @property
    def state(self) -> State:
        return self.breaker.state

    @property
    def retry_at(self) -> float:
        """Seconds, monotonic: until then calls are rejected. 0 when closed."""
        return self.breaker.retry_at

    def is_open(self, now: float) -> bool:
        """Whether `admit` would reject now. Changes nothing."""
        return self.breaker.is_open(now)

    def admit(self, now: float) -> Permit | None:
        """Ask to make one call; None rejects it. While open, the first one after `retry_at` becomes the trial."""
        if self.is_clean:
            return self.epoch
        breaker, permit = self.breaker.admit(now)
        self._hold(breaker)
        return permit

    def settle(self, permit: Permit, outcome: Outcome, now: float) -> Transition | None:
        """Record how the permitted call ended; tells when that changed the state."""
        if self.is_clean and outcome is not Outcome.FAILURE:
            return None
        before = self.breaker
        after = before.settle(permit, outcome, now)
        if after is before:
            return None
        self._hold(after)
        return Transition(before.state, after.state, after.retry_at) if after.state is not before.state else None

    def _hold(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.is_clean = breaker.is_clean
        self.epoch = Permit(breaker.epoch)

    def __repr__(self) -> str:
        return f"<Circuit {self.state.value}, {self.breaker.failures} failures, epoch {self.epoch}>"

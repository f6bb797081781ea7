"""One call, through as many tries as it takes: the gateway's exchange, seen from the caller's side.

The rules are the shared ones (`guard`, `resilience`, `router`): who is asked, what may be repeated and where, what
counts against an instance. This module holds the order of things. Between two awaits a call changes its state in one
synchronous step; the awaits are the try itself, the pause before the next one, and the wait for the registry's first
word. All of it lives on one event loop; a call runs in its caller's task and needs no other.

A try ends early in two ways: its deadline passes, or the guard finds that the instance is silent and moves the call on
(`move_on`). Both interrupt the task as `asyncio.timeout` does, by cancelling it and taking that back; it is done by
hand here, because two coroutines and a reschedule for every call cost as much as the rest of a call's own work.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any, Final, Generic, Protocol, TypeVar

from toska_mesh.errors import (
    CircuitOpenError,
    NoInstanceError,
    UpstreamConnectError,
    UpstreamError,
    UpstreamTimeoutError,
)
from toska_mesh.guard import Guard, Guarded, has_alternative, plan_retry
from toska_mesh.guard.patience import Patience
from toska_mesh.model import ServiceName
from toska_mesh.resilience import RETRYABLE_STATUSES, Failure, Outcome, Permit, RetryBudget, State, Try
from toska_mesh.router import Service
from toska_mesh.sdk import context as contexts
from toska_mesh.sdk.bodies import Upload
from toska_mesh.sdk.transport import Reply, Request, Transport, TryFailedError
from toska_mesh.telemetry import event_log

TIMEOUT_MS: Final = contexts.TIMEOUT_MS
_SHOWN_INSTANCES: Final = 5

_NEVER: Final = float("inf")

R = TypeVar("R", bound=Reply)

log = event_log("sdk.calls")


class Phase(Enum):
    """Where a call stands."""

    BETWEEN = auto()
    """No try is under way."""
    DIALLING = auto()
    """No byte of the request can have reached the instance."""
    SENDING = auto()
    """The caller's body is on its way; nobody owes us an answer yet."""
    WAITING = auto()
    ANSWERED = auto()


_UNDER_WAY: Final = frozenset({Phase.DIALLING, Phase.SENDING, Phase.WAITING})


class Directory(Protocol):
    """Where a call finds services: the newest table."""

    def get(self, name: ServiceName) -> Service | None:
        """The service, if it is in the table under this very name."""

    async def find(self, name: ServiceName, deadline: float) -> Service:
        """Waits for the registry's first word about it. Raises NoInstanceError."""

    def present(self, service: Service) -> Service | None:
        """The service as the newest table has it; None when it is gone."""

    @property
    def stale_note(self) -> str:
        """For the end of an error's text: that the table is only the last known state, and why; empty while it is not.

        Whoever may not be asked by an old table may well be there.
        """


class Stats(Protocol):
    """Who counts."""

    def called(self, service: str, outcome: str, seconds: float, attempts: int) -> None:
        """One call is over. `outcome`: a status, or the name of an error."""


class Sender(Generic[R]):
    """What all calls of one mesh share."""

    def __init__(
        self,
        transport: Transport[R],
        guard: Guard[Any],
        directory: Directory,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        token: Callable[[], str],
        budget: RetryBudget | None = None,
        stats: Stats | None = None,
    ) -> None:
        self.transport = transport
        self.guard = guard
        self.directory = directory
        self.clock = clock
        self.rng = rng
        self.token = token
        self.budget = budget or RetryBudget()
        self.stats = stats


class Call(Generic[R]):
    """See the module. Made for one request, run once."""

    __slots__ = (
        "_attempts",
        "_context",
        "_expires",
        "_failed_at",
        "_inherited",
        "_is_blamed",
        "_is_connected",
        "_is_interrupted",
        "_key",
        "_loop",
        "_moved",
        "_own_end",
        "_patience",
        "_permit",
        "_phase",
        "_request",
        "_sender",
        "_service",
        "_service_name",
        "_started",
        "_target",
        "_task",
        "_timer",
        "_tried",
        "_try_started",
        "deadline",
    )

    deadline: float
    """When the present try is given up, seconds on the loop's clock."""

    def __init__(
        self,
        sender: Sender[R],
        service: ServiceName,
        request: Request,
        key: str | None,
    ) -> None:
        self._sender = sender
        self._service_name = service
        self._request = request
        self._key = key
        self._phase = Phase.BETWEEN
        self._attempts = 0
        self._tried: tuple[Guarded, ...] = ()
        self._failed_at: tuple[tuple[str, str], ...] = ()
        self._target: Guarded | None = None
        self._is_blamed = False
        self._is_connected = False
        self._is_interrupted = False
        self._moved: tuple[float, str] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, patience_of: Callable[[Service], Patience], own_seconds: float) -> R:
        """The answer. Raises UpstreamError in one of its kinds.

        `own_seconds`: the caller's own limit for it all. `patience_of` gives what holds for a service: the caller's
        limits, tightened by the service's metadata.
        """
        sender = self._sender
        self._started = now = sender.clock()
        self._context = context = contexts.current()
        self._inherited = inherited = context.deadline.at if context is not None else _NEVER
        own_end = now + own_seconds
        self._own_end = own_end = own_end if own_end < inherited else inherited
        outcome = "cancelled"
        try:
            if now >= inherited:
                raise self._pointless()
            service = sender.directory.get(self._service_name)
            if service is None:
                service = await sender.directory.find(self._service_name, own_end)
                now = sender.clock()
            self._service = service
            self._patience = patience = patience_of(service)
            expires = self._started + patience.total_timeout
            self._expires = expires if expires < own_end else own_end
            sender.budget.record_request(now)
            task = asyncio.current_task()
            if task is None:
                raise RuntimeError("a call needs a task to run in")
            self._task = task
            self._loop = task.get_loop()
            while True:
                target = sender.guard.choose(service, self._key, self._tried, self._request.is_idempotent, now)
                if target is None:
                    raise self._unservable(service, now)
                pause: float | None
                cancelling = task.cancelling()
                try:
                    headers = self._begin_try(target, now)
                    reply = await sender.transport.send(self._request, target, headers, self)
                except TryFailedError as error:
                    self._disarm()
                    pause = self._on_failed(error)
                except asyncio.CancelledError:
                    if not self._disarm() or task.cancelling() > cancelling:
                        self._withdraw(sender.clock())
                        self._let_go()
                        raise
                    pause = self._on_late()
                except BaseException:
                    # Something is wrong with the request itself: the instance is not judged.
                    self._disarm()
                    self._withdraw(sender.clock())
                    self._let_go()
                    raise
                else:
                    self._disarm()
                    pause = self._on_reply(reply)
                    if pause is None:
                        outcome = str(reply.status)
                        return reply
                    reply._mesh_drop()
                if pause:
                    await asyncio.sleep(pause)
                now = sender.clock()
                service = self._look_service_up() or service
        except UpstreamError as error:
            outcome = type(error).__name__
            raise
        finally:
            if sender.stats is not None:
                sender.stats.called(self._service_name, outcome, sender.clock() - self._started, max(1, self._attempts))

    # -- ending a try from outside

    def _interrupt(self) -> None:
        """Let the try end now. What comes of it is decided where it is awaited."""
        self._timer = None
        if not self._is_interrupted and self._phase in _UNDER_WAY:
            self._is_interrupted = True
            self._task.cancel()

    def _disarm(self) -> bool:
        """The try is over. Whether it was interrupted; the cancelling that did it is taken back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._is_interrupted:
            return False
        self._is_interrupted = False
        self._task.uncancel()
        return True

    def _wait_until(self, deadline: float) -> None:
        self.deadline = deadline
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._interrupt) if deadline != _NEVER else None

    # -- a try

    def _begin_try(self, target: Guarded, now: float) -> Mapping[str, str]:
        """Take a place at the instance; gives the request's headers for this try."""
        request, patience = self._request, self._patience
        self._target = target
        self._permit: Permit = target.circuit.epoch
        self._attempts += 1
        self._try_started = now
        self._is_blamed = self._is_connected = False
        if self._moved is not None:
            self._moved = None
        self._phase = Phase.DIALLING
        target.in_flight += 1
        target.waiting[self] = now
        body = request.body
        if isinstance(body, Upload) and not body.is_over:
            # The service's own patience begins with the end of the request; until then the caller's counts alone.
            body.on_over = self._uploaded
            self._expires = self._own_end
            self._wait_until(self._own_end)
        else:
            deadline = now + patience.response_timeout
            self._wait_until(deadline if deadline < self._expires else self._expires)
        return self._headers(now)

    def _headers(self, now: float) -> Mapping[str, str]:
        sender, given = self._sender, self._request.headers
        headers = dict(given)
        own = {name.lower() for name in given} if given else given
        context = self._context
        if context is not None:
            fields = contexts.outgoing_headers(context, now, sender.rng)
            headers |= {name: value for name, value in fields.items() if name.lower() not in own} if own else fields
        if self.deadline != _NEVER:
            headers[TIMEOUT_MS] = str(int((self.deadline - now) * 1000))
        token = sender.token()
        if token and "authorization" not in own:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def connected(self) -> None:
        """See `transport.Progress`."""
        self._is_connected = True
        if self._phase is not Phase.DIALLING:
            return
        target, body = self._target, self._request.body
        if target is not None and isinstance(body, Upload) and not body.is_over:
            self._phase = Phase.SENDING
            target.waiting.pop(self, None)  # nobody owes us an answer while we still speak
        else:
            self._phase = Phase.WAITING

    def _uploaded(self) -> None:
        """The last of a streamed body has been taken: from now on we wait."""
        target = self._target
        if target is None or self._phase is not Phase.SENDING:
            return
        now = self._sender.clock()
        self._phase = Phase.WAITING
        self._try_started = now
        target.waiting[self] = now
        self._expires = min(now + self._patience.total_timeout, self._own_end)
        self._wait_until(min(now + self._patience.response_timeout, self._expires))

    # -- how it ended

    def _on_reply(self, reply: R) -> float | None:
        """The pause before another try when this answer is not wanted; None when it is the answer."""
        sender, target = self._sender, self._target
        if target is None:
            raise RuntimeError("an answer to no try")
        now = sender.clock()
        guard = sender.guard
        self._phase = Phase.ANSWERED
        target.waiting.pop(self, None)
        target.answered_at = now
        if target.is_suspect:
            guard.answered(target)
        if not self._request.is_open_ended:
            target.latency.observe(now - self._try_started)
        if reply.status in RETRYABLE_STATUSES:
            self._blame(now)
            pause = self._plan_retry(Failure.STATUS, now)
            if pause is not None:
                self._try_over(f"it answered {reply.status}")
                return pause
        elif not target.circuit.is_clean and target.circuit.state is State.HALF_OPEN:
            # An answer that begins decides a trial: its body may be a stream that goes on for hours.
            guard.settle(target, self._permit, Outcome.SUCCESS, now)
            self._permit = target.circuit.epoch
        reply._mesh_belongs_to(target.instance, self._attempts, self._expires)
        reply._mesh_on_over(self._body_over if reply.status not in RETRYABLE_STATUSES else self._unwanted_body_over)
        return None

    def _body_over(self, outcome: Outcome) -> None:
        """The body of the answer has ended, long after the call perhaps."""
        target, self._target = self._target, None
        if target is None:
            return
        target.in_flight -= 1
        if outcome is Outcome.FAILURE and target in self._tried:
            return  # counted before
        if outcome is Outcome.FAILURE or not target.circuit.is_clean:
            self._sender.guard.settle(target, self._permit, outcome, self._sender.clock())

    def _unwanted_body_over(self, outcome: Outcome) -> None:
        """ "Not me, not now" has been counted when it came; its end is no news, least of all good."""
        self._body_over(Outcome.CANCELLED)

    def _on_failed(self, error: TryFailedError) -> float:
        """The pause before the next try. Raises when there is none."""
        body = self._request.body
        if isinstance(body, Upload) and body.error is not None:
            self._withdraw(self._sender.clock())
            self._let_go()
            raise body.error
        now = self._sender.clock()
        self._blame(now)
        failure = error.failure if self._is_connected else Failure.CONNECT
        return self._next(failure, error.why, now, error)

    def _on_late(self) -> float:
        """The try was ended from outside: by the guard, or because its time was up."""
        now = self._sender.clock()
        if self._moved is not None:
            pause, why = self._moved
            # No failure for the breaker: suspicion keeps calls away as long as the silence lasts, and a slow instance
            # that does one thing at a time must not be switched off for it.
            self._withdraw(now)
            self._try_over(why)
            return pause
        if now >= self._inherited:
            self._withdraw(now)  # whoever waits for our caller has given up: that judges nobody
        else:
            self._blame(now)
        if self._is_connected or now >= self._expires:
            return self._next(Failure.TIMEOUT, "no answer in time", now, None)
        return self._next(Failure.CONNECT, "no connection in time", now, None)

    def _next(self, failure: Failure, why: str, now: float, cause: Exception | None) -> float:
        pause = self._plan_retry(failure, now)
        target = self._target
        self._try_over(why)
        if pause is None:
            raise self._failed(failure, why, target, now) from cause
        return pause

    def _try_over(self, why: str) -> None:
        target = self._target
        self._let_go()
        if target is None:
            return
        log.debug(
            "try_failed",
            service=self._service_name,
            instance=target.instance.id,
            attempt=self._attempts,
            reason=why,
        )
        self._tried += (target,)
        self._failed_at += ((target.instance.id, why),)

    def _plan_retry(self, failure: Failure, now: float) -> float | None:
        sender, request = self._sender, self._request
        service = self._look_service_up()
        attempt = Try(
            failure,
            idempotent=request.is_idempotent,
            bytes_sent=self._is_connected,
            body_kept=request.body.is_repeatable,
        )
        goes_elsewhere = service is not None and has_alternative(service, self._target, self._tried)
        return plan_retry(
            self._patience.retry,
            attempt,
            self._attempts - 1,
            goes_elsewhere,
            self._expires,
            sender.budget,
            sender.rng,
            now,
        )

    def _look_service_up(self) -> Service | None:
        """The service as the present table has it: instances may have come and gone since the last try."""
        present = self._sender.directory.present(self._service)
        if present is not None:
            self._service = present
        return present

    def _blame(self, now: float) -> None:
        """Count the failure against the instance, once per call however often it is tried there.

        A trial is counted all the same: whoever has it owes its outcome.
        """
        target = self._target
        if target is None or self._is_blamed:
            return
        if target not in self._tried or target.circuit.state is State.HALF_OPEN:
            self._is_blamed = True
            self._sender.guard.settle(target, self._permit, Outcome.FAILURE, now)

    def _withdraw(self, now: float) -> None:
        """Give the permit of the present try back, without a judgement."""
        target = self._target
        if target is not None and not target.circuit.is_clean and not self._is_blamed:
            self._sender.guard.settle(target, self._permit, Outcome.CANCELLED, now)

    def _let_go(self) -> None:
        target, self._target = self._target, None
        self._phase = Phase.BETWEEN
        if target is not None:
            target.in_flight -= 1
            target.waiting.pop(self, None)

    # -- what the guard asks (see toska_mesh.guard.Waiting)

    @property
    def is_dialling(self) -> bool:
        return self._phase is Phase.DIALLING

    def move_on(self, why: str) -> None:
        """Leave a silent instance for another, if that is safe and there is one; otherwise keep waiting."""
        if self._phase not in (Phase.DIALLING, Phase.WAITING) or self._moved is not None:
            return
        service = self._look_service_up()
        if service is None or not has_alternative(service, self._target, self._tried):
            return
        now = self._sender.clock()
        failure = Failure.CONNECT if self.is_dialling else Failure.TIMEOUT
        pause = self._plan_retry(failure, now)
        if pause is not None:
            self._moved = (pause, why)
            self._interrupt()

    def give_up_waiting(self) -> None:
        """The try's own timer says so to the moment."""

    # -- what the caller is told

    def _pointless(self) -> UpstreamError:
        return UpstreamTimeoutError(
            f"{self._service_name}: not called, as whoever waits for the answer has given up",
            service=self._service_name,
        )

    def _unservable(self, service: Service, now: float) -> UpstreamError:
        name, before = service.name, self._before() + self._sender.directory.stale_note
        if not service.targets:
            reasons = [f"{standing.target.instance.id} is {standing.reason}" for standing in service.everything]
            shown = "; ".join(reasons[:_SHOWN_INSTANCES]) or "it has none"
            more = f"; and {len(reasons) - _SHOWN_INSTANCES} more" if len(reasons) > _SHOWN_INSTANCES else ""
            return NoInstanceError(
                f"{name}: no instance may be asked: {shown}{more}{before}", service=name, attempts=self._attempts
            )
        seconds = self._sender.guard.retry_after_seconds(service, now)
        return CircuitOpenError(
            f"{name}: the breakers of all {len(service.targets)} instances are open, the first for another"
            f" {seconds:.3g} s{before}",
            seconds,
            service=name,
            instance=self._failed_at[-1][0] if self._failed_at else "",
            attempts=self._attempts,
        )

    def _failed(self, failure: Failure, why: str, target: Guarded | None, now: float) -> UpstreamError:
        request = self._request
        instance = target.instance if target is not None else None
        where = f"{instance.id} ({instance.endpoint.authority})" if instance is not None else "nobody"
        tries = f"{self._attempts} tries" if self._attempts > 1 else "1 try"
        text = (
            f"{self._service_name}: {request.method} {request.path} failed after {tries}"
            f" in {now - self._started:.3g} s, the last at {where}: {why}{self._before(-1)}"
        )
        kind = UpstreamTimeoutError if failure is Failure.TIMEOUT else UpstreamConnectError
        return kind(
            text,
            service=self._service_name,
            instance=instance.id if instance is not None else "",
            attempts=self._attempts,
        )

    def _before(self, end: int | None = None) -> str:
        """What the tries before came to."""
        tried = [f"{instance}: {why}" for instance, why in self._failed_at[:end]]
        return f"; tried before: {'; '.join(tried[-_SHOWN_INSTANCES:])}" if tried else ""

"""Delivery: from the outbox to a broker, for ever, whatever becomes of the broker.

Many messages are under way at once, but of each lane only one (see `lanes.py`). Whatever is not confirmed when a
connection ends is sent again over the next one: at least once, in order per lane. The broker itself is behind
`BrokerSession`, so that this loop can be tried against every kind of trouble on a virtual clock.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Never, Protocol

from toska_mesh.errors import MessagingError
from toska_mesh.messaging.envelope import Outgoing
from toska_mesh.messaging.metrics import MessagingMetrics
from toska_mesh.messaging.outbox import Outbox
from toska_mesh.messaging.store import Stored
from toska_mesh.telemetry import event_log

log = event_log("messaging.delivery")


class BrokerLostError(MessagingError):
    """There is no usable connection (any more); everything unconfirmed has to be sent again."""


class MessageRefusedError(MessagingError):
    """The broker answered that it did not take this one message (negative confirm)."""


class BrokerSession(Protocol):
    """One connection to a broker, topology declared, from connect to loss."""

    async def publish(self, outgoing: Outgoing) -> None:
        """Return when the broker has confirmed. Raises MessageRefusedError, or BrokerLostError."""

    async def watch(self) -> Never:
        """Run beside the publishing; raises BrokerLostError when the connection is lost or silent for too long."""

    @property
    def is_blocked(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """Durations in seconds. Waiting times double from `base` to `max` and lose up to half by chance."""

    window: int = 128
    """Messages under way at once."""
    base_seconds: float = 0.5
    max_seconds: float = 30.0
    stable_seconds: float = 10.0
    """A connection that lived this long is followed by a quick try, a shorter one by a longer wait."""

    def pause_seconds(self, failures: int, rng: random.Random) -> float:
        """Wait after so many failures in a row (1 or more)."""
        exponent = min(failures - 1, 16)  # bounded before it overflows
        return min(self.max_seconds, self.base_seconds * 2.0**exponent) * rng.uniform(0.5, 1.0)


class Delivery:
    """Owns the connection. `connect` opens one session; it raises BrokerLostError when the broker cannot be had."""

    def __init__(
        self,
        outbox: Outbox,
        connect: Callable[[], AbstractAsyncContextManager[BrokerSession]],
        metrics: MessagingMetrics,
        policy: DeliveryPolicy,
        rng: random.Random,
    ) -> None:
        self._outbox = outbox
        self._connect = connect
        self._metrics = metrics
        self._policy = policy
        self._rng = rng
        self._session: BrokerSession | None = None
        self._under_way = 0
        self._room = asyncio.Event()
        self._refusals: dict[str, int] = {}
        self.trouble = "not connected yet"

    @property
    def is_connected(self) -> bool:
        return self._session is not None

    @property
    def is_blocked(self) -> bool:
        return self._session is not None and self._session.is_blocked

    async def run(self) -> Never:
        """Until cancelled: connect, deliver, and after a loss wait a little and begin again."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            try:
                async with self._connect() as session:
                    _pass_cancellation_on()
                    self._note_connected(session, failures)
                    await self._deliver(session)
            except MessagingError as exc:
                _pass_cancellation_on()
                self._note_trouble(str(exc))
            finally:
                self._session = None
                self._under_way = 0
                self._refusals.clear()
                self._outbox.reset()
            failures = 1 if loop.time() - began >= self._policy.stable_seconds else failures + 1
            await asyncio.sleep(self._policy.pause_seconds(failures, self._rng))

    async def _deliver(self, session: BrokerSession) -> Never:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(session.watch(), name="watch the broker")
                while True:
                    await self._wait_for_room()
                    for stored in await self._outbox.take(self._policy.window - self._under_way):
                        self._under_way += 1
                        tasks.create_task(self._send(session, stored), name=f"deliver event {stored.seq}")
        except BaseExceptionGroup as group:
            expected, others = group.split(MessagingError)
            if expected is None or others is not None:
                raise
            raise _first(expected) from group
        raise AssertionError("unreachable: the loop above ends only by an exception")

    async def _send(self, session: BrokerSession, stored: Stored) -> None:
        lane = stored.outgoing.lane
        try:
            await session.publish(stored.outgoing)
        except MessageRefusedError as exc:
            self._hold(stored, str(exc))
        else:
            self._outbox.delivered(stored)
            if self._refusals.pop(lane, None):
                log.info("event_taken_at_last", lane=lane)
        finally:
            self._under_way -= 1
            self._room.set()

    async def _wait_for_room(self) -> None:
        while self._under_way >= self._policy.window:
            self._room.clear()
            await self._room.wait()

    def _hold(self, stored: Stored, reason: str) -> None:
        """Try a refused message again later; only its own lane waits for it."""
        lane = stored.outgoing.lane
        failures = self._refusals[lane] = self._refusals.get(lane, 0) + 1
        self._metrics.delivery_failures.labels("refused").inc()
        if failures == 1:
            log.warning("event_refused", lane=lane, exchange=stored.outgoing.exchange, reason=reason)
        self._outbox.refused(stored)
        pause = self._policy.pause_seconds(failures, self._rng)
        asyncio.get_running_loop().call_later(pause, self._outbox.release, lane)

    def _note_connected(self, session: BrokerSession, failures: int) -> None:
        self._session = session
        self.trouble = ""
        log.info("broker_connected", tries=failures + 1, waiting=self._outbox.waiting)

    def _note_trouble(self, reason: str) -> None:
        """Log a change of the trouble, not each of its repetitions."""
        self._metrics.delivery_failures.labels("connection").inc()
        if reason != self.trouble:
            log.warning("broker_unavailable", reason=reason, waiting=self._outbox.waiting)
        self.trouble = reason


def _pass_cancellation_on() -> None:
    """Do not go on when we were cancelled and somebody kept it to himself.

    A TaskGroup that is cancelled while a child fails reports the failure alone (before Python 3.13), and `wait_for`,
    which the AMQP client uses, returns a result that came at the same moment (before 3.12).
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _first(group: BaseExceptionGroup[MessagingError]) -> MessagingError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first

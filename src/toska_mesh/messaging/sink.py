"""Puts messaging together: `open_event_sink` is all that a daemon needs."""

import asyncio
import base64
import contextlib
import fcntl
import os
import platform
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Never
from uuid import UUID, uuid4

from prometheus_client import CollectorRegistry

from toska_mesh import __version__
from toska_mesh.errors import ConfigError, PublishError
from toska_mesh.messaging.address import BrokerAddress, parse_broker_url
from toska_mesh.messaging.api import EventSink, SinkState
from toska_mesh.messaging.delivery import Delivery, DeliveryPolicy
from toska_mesh.messaging.envelope import HostInfo, Sender, encode
from toska_mesh.messaging.metrics import MessagingMetrics
from toska_mesh.messaging.null import NullSink
from toska_mesh.messaging.outbox import Outbox, OutboxLimits
from toska_mesh.messaging.rabbitmq import RabbitTimeouts, open_session
from toska_mesh.messaging.store import OutboxStore, count_waiting
from toska_mesh.model import MeshMessage
from toska_mesh.telemetry import event_log

LOCK_NAME: Final = "outbox.lock"

log = event_log("messaging")


def _utcnow() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """What tests and unusual installations change."""

    limits: OutboxLimits = field(default_factory=OutboxLimits)
    delivery: DeliveryPolicy = field(default_factory=DeliveryPolicy)
    timeouts: RabbitTimeouts = field(default_factory=RabbitTimeouts)
    flush_seconds: float = 3.0
    """On exit, how long events may still go out while the broker is connected. The rest stays on disk."""


@contextlib.asynccontextmanager
async def open_event_sink(
    rabbitmq_url: str,
    data_dir: Path,
    source: str,
    metrics: CollectorRegistry,
    *,
    data_dir_variable: str = "DATA_DIR",
    options: SinkOptions | None = None,
) -> AsyncIterator[EventSink]:
    """The daemon's event sink; delivery runs inside the block and events left over stay in `data_dir`.

    `source` is the process's name in envelopes. An empty `rabbitmq_url` gives a sink that only logs. Raises
    ConfigError when the URL is none, when `data_dir` cannot be written, or when another process uses it.
    """
    if not rabbitmq_url.strip():
        _warn_about_leftovers(data_dir)
        yield NullSink(MessagingMetrics(metrics))
        return
    options = options or SinkOptions()
    address = parse_broker_url(rabbitmq_url)
    sender = _this_process(source, address)
    with (
        _locked(data_dir, data_dir_variable),
        contextlib.closing(OutboxStore(data_dir, data_dir_variable)) as store,
        ThreadPoolExecutor(1, thread_name_prefix="outbox") as executor,
    ):
        counters = MessagingMetrics(metrics)
        outbox = Outbox(store, executor, counters, _utcnow, options.limits)
        delivery = Delivery(
            outbox,
            lambda: open_session(address, source, options.timeouts),
            counters,
            options.delivery,
            random.Random(),
        )
        sink = OutboxSink(outbox, delivery, sender, counters, _utcnow, uuid4)
        counters.follow(lambda: sink.state)
        log.info("outbox_opened", broker=str(address), data_dir=str(data_dir), waiting=outbox.waiting)
        failure: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(outbox.run(), name="write the outbox")
            delivering = tasks.create_task(delivery.run(), name="deliver events")
            try:
                yield sink
            except Exception as exc:
                failure = exc  # the block's own: to leave as it came, not as a group of one
            finally:
                await _flush(outbox, delivery, options.flush_seconds)
                await _end(delivering)
                await _write_out(outbox, options.limits.write_seconds)
                writing.cancel()
        if failure is not None:
            raise failure


class OutboxSink:
    """An EventSink that keeps events on disk until the broker has confirmed them."""

    def __init__(
        self,
        outbox: Outbox,
        delivery: Delivery,
        sender: Sender,
        metrics: MessagingMetrics,
        utcnow: Callable[[], datetime],
        new_id: Callable[[], UUID],
    ) -> None:
        self._outbox = outbox
        self._delivery = delivery
        self._sender = sender
        self._metrics = metrics
        self._utcnow = utcnow
        self._new_id = new_id

    async def publish(self, message: MeshMessage) -> None:
        """See `EventSink.publish`."""
        try:
            outgoing = encode(
                message,
                self._sender,
                message_id=self._new_id(),
                new_conversation=self._new_id(),
                now=self._utcnow(),
            )
        except ValueError as exc:
            self._metrics.refused.labels("invalid").inc()
            raise PublishError(str(exc)) from exc
        await self._outbox.put(outgoing)

    @property
    def state(self) -> SinkState:
        trouble = self._delivery.trouble
        if self._delivery.is_blocked:
            trouble = "the broker takes no messages for now (its memory or disk alarm)"
        return SinkState(
            is_enabled=True,
            is_connected=self._delivery.is_connected,
            is_blocked=self._delivery.is_blocked,
            waiting=self._outbox.waiting,
            waiting_bytes=self._outbox.waiting_bytes,
            oldest_age_seconds=self._outbox.oldest_age_seconds,
            trouble=trouble,
        )


async def _flush(outbox: Outbox, delivery: Delivery, seconds: float) -> None:
    """Let what waits go out, as long as a broker takes it and patience lasts."""
    if delivery.is_connected and not delivery.is_blocked:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await outbox.until_empty()
    if outbox.waiting:
        log.warning("events_left_on_disk", waiting=outbox.waiting, reason=delivery.trouble or "no time left")


async def _end(task: asyncio.Task[Never]) -> None:
    """Cancel until it is over: libraries on the way may swallow a cancellation. Closing takes less than 5 s."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=5.0)


async def _write_out(outbox: Outbox, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await outbox.close()


@contextlib.contextmanager
def _locked(folder: Path, variable: str) -> Iterator[None]:
    """Hold the folder's lock; the kernel releases it with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"{variable}={str(folder)!r} cannot hold the event outbox: {exc}") from exc
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigError(
                f"{variable}={str(folder)!r} is in use by another process; give each process a folder of its own"
            ) from exc
        yield
    finally:
        os.close(handle)


def _this_process(source: str, broker: BrokerAddress) -> Sender:
    host = HostInfo(
        machine_name=socket.gethostname(),
        process_name=source,
        process_id=os.getpid(),
        assembly="toska-mesh",
        assembly_version=__version__,
        framework_version=platform.python_version(),
        operating_system_version=f"{platform.system()} {platform.release()}",
    )
    bus_id = base64.b32encode(uuid4().bytes).decode("ascii").rstrip("=").lower()
    return Sender(host, broker, bus_id)


def _warn_about_leftovers(folder: Path) -> None:
    waiting = count_waiting(folder)
    if waiting:
        log.warning("events_wait_without_broker", waiting=waiting, data_dir=str(folder), hint="set RABBITMQ_URL")

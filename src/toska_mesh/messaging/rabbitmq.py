"""One connection to RabbitMQ as a `BrokerSession`: connect, declare, publish with confirms, notice every way it dies.

Reconnecting, order and repetition are delivery's business. What aio-pika raises becomes BrokerLostError or
MessageRefusedError here and nowhere else.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Never

import aio_pika
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractExchange
from aio_pika.exceptions import AMQPError, DeliveryError
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

from toska_mesh.errors import MessagingError
from toska_mesh.messaging.address import BrokerAddress
from toska_mesh.messaging.delivery import BrokerLostError, MessageRefusedError
from toska_mesh.messaging.envelope import CONTENT_TYPE, Outgoing
from toska_mesh.messaging.topology import declare_topology
from toska_mesh.telemetry import event_log

log = event_log("messaging.rabbitmq")

# The client logs each failure of its own, at every try, in its own words; ours say the same once.
for _name in ("aiormq", "aio_pika"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class RabbitTimeouts:
    """Seconds. `confirm`: a broker that owes a confirm for so long, and is not blocked by an alarm, counts as dead."""

    connect: float = 10.0
    confirm: float = 30.0
    close: float = 2.0
    watch_interval: float = 1.0


class _Transport(TransportFactory):
    """Opens the socket and remembers it: a connection to a frozen broker can only be ended by aborting it."""

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, self._writer = await factory.create(url, **kwargs)
        return reader, self._writer

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


class RabbitSession:
    """See `BrokerSession`. Made by `open_session`."""

    def __init__(self, connection: aio_pika.Connection, channel: AbstractChannel, timeouts: RabbitTimeouts) -> None:
        self._connection = connection
        self._channel = channel
        self._timeouts = timeouts
        self._exchanges: dict[str, AbstractExchange] = {}
        self._unconfirmed: dict[int, float] = {}
        self._sent = 0
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.is_blocked = False
        connection.close_callbacks.add(self._on_close)
        channel.close_callbacks.add(self._on_close)

    @property
    def is_lost(self) -> bool:
        return self._lost.done()

    async def publish(self, outgoing: Outgoing) -> None:
        """Persistent, routing key empty, not mandatory: an event that nobody listens to is delivered."""
        if self._lost.done():
            raise BrokerLostError(self._lost.result())
        self._sent += 1
        number = self._sent
        message = Message(
            outgoing.body,
            headers={"publishId": str(number)},
            content_type=CONTENT_TYPE,
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=str(outgoing.message_id),
            correlation_id=str(outgoing.correlation_id),
        )
        self._unconfirmed[number] = asyncio.get_running_loop().time()
        try:
            exchange = await self._exchange(outgoing.exchange)
            await exchange.publish(message, routing_key="", mandatory=False)
        except DeliveryError as exc:
            raise MessageRefusedError(f"the broker refused the message: {exc}") from exc
        except (AMQPError, OSError, RuntimeError) as exc:
            raise BrokerLostError(f"the connection broke: {exc}") from exc
        except asyncio.CancelledError as exc:
            # The client ends waiting publishes by this when a connection closes; it is not meant for our task.
            task = asyncio.current_task()
            if task is not None and task.cancelling() == 0:
                raise BrokerLostError("the connection closed") from exc
            raise
        finally:
            del self._unconfirmed[number]

    async def watch(self) -> Never:
        """Heartbeats notice a dead connection (aiormq); this notices a broker that is alive but does not confirm."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeouts.watch_interval):
                    raise BrokerLostError(await asyncio.shield(self._lost))
            await self._look_for_alarm()
            now = asyncio.get_running_loop().time()
            if self.is_blocked:  # a blocked broker owes nothing until it reads again
                self._unconfirmed = dict.fromkeys(self._unconfirmed, now)
            oldest = min(self._unconfirmed.values(), default=now)
            if now - oldest > self._timeouts.confirm:
                self._on_close(None, TimeoutError(f"no confirm for {self._timeouts.confirm:g} s"))

    async def _exchange(self, name: str) -> AbstractExchange:
        exchange = self._exchanges.get(name)
        if exchange is None:
            exchange = self._exchanges[name] = await self._channel.get_exchange(name, ensure=False)
        return exchange

    async def _look_for_alarm(self) -> None:
        """`ready` of the client returns at once unless RabbitMQ sent `connection.blocked`."""
        transport = self._connection.transport
        was_blocked, self.is_blocked = self.is_blocked, False
        try:
            async with asyncio.timeout(0.01):
                if transport is not None:
                    await transport.ready()
        except TimeoutError:
            self.is_blocked = True
        if self.is_blocked != was_blocked:
            log.warning("broker_blocked" if self.is_blocked else "broker_unblocked")

    def _on_close(self, _: object, exc: BaseException | None = None) -> None:
        if not self._lost.done():
            self._lost.set_result(f"the connection ended: {_words(exc)}")


@contextlib.asynccontextmanager
async def open_session(
    address: BrokerAddress, process_name: str, timeouts: RabbitTimeouts
) -> AsyncIterator[RabbitSession]:
    """Connect, declare, hand out, close. Raises BrokerLostError when the broker cannot be used (any reason)."""
    transport = _Transport()
    connection = aio_pika.Connection(
        address.connection_url, client_properties={"connection_name": process_name, "product": "toska-mesh"}
    )
    connection.kwargs["transport_factory"] = transport
    session: RabbitSession | None = None
    try:
        session = await _connect(connection, address, timeouts, transport)
        yield session
    finally:
        if session is None or session.is_lost:
            transport.abort()  # nothing that could still be said would be heard
        await _close(connection, transport, timeouts)


async def _connect(
    connection: aio_pika.Connection, address: BrokerAddress, timeouts: RabbitTimeouts, transport: _Transport
) -> RabbitSession:
    # A frozen broker's kernel still accepts. Aborting the socket lets the client unwind by itself; the timeout is for
    # what happens before there is a socket.
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeouts.connect
    abort = loop.call_at(deadline, transport.abort)
    try:
        async with asyncio.timeout(timeouts.connect + timeouts.close):
            await connection.connect()
            await declare_topology(connection)
            channel = await connection.channel(publisher_confirms=True)
            return RabbitSession(connection, channel, timeouts)
    except TimeoutError as exc:
        raise BrokerLostError(f"{address} did not answer within {timeouts.connect:g} s") from exc
    except MessagingError as exc:
        raise BrokerLostError(f"{address}: {exc}") from exc
    except (AMQPError, OSError, RuntimeError, ValueError) as exc:
        if loop.time() >= deadline:
            raise BrokerLostError(f"{address} did not answer within {timeouts.connect:g} s") from exc
        raise BrokerLostError(f"{address} cannot be used: {_words(exc)}") from exc
    finally:
        abort.cancel()


async def _close(connection: aio_pika.Connection, transport: _Transport, timeouts: RabbitTimeouts) -> None:
    for _ in range(2):  # politely; then, should the broker not answer, without it
        with contextlib.suppress(TimeoutError, AMQPError, OSError, RuntimeError):
            async with asyncio.timeout(timeouts.close):
                await connection.close()
                return
        transport.abort()


def _words(exc: BaseException | None) -> str:
    """The client's errors, some of which have no text of their own."""
    if exc is None:
        return "closed"
    return str(exc) or type(exc).__name__

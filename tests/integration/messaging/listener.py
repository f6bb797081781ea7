"""A consumer as MassTransit sets one up: an exchange and a queue of its own name, bound to the message exchanges."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import aio_pika
from aio_pika import ExchangeType
from aio_pika.abc import AbstractIncomingMessage
from tests.support.wait import eventually

from toska_mesh.messaging.decode import Received, decode

NAMESPACE = "ToskaMesh.Common.Messaging"


class Listener:
    """Collects what arrives in its queue, in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.raw: list[AbstractIncomingMessage] = []

    @property
    def received(self) -> list[Received]:
        return [decode(message.body) for message in self.raw]

    async def wait_for(self, count: int, seconds: float = 20) -> list[Received]:
        await eventually(lambda: len(self.raw) >= count, seconds=seconds, what=f"{count} messages")
        return self.received

    async def take(self, queue: aio_pika.abc.AbstractQueue) -> None:
        with suppress(aio_pika.exceptions.AMQPError, asyncio.CancelledError, RuntimeError):
            async with queue.iterator(no_ack=True) as messages:
                async for message in messages:
                    self.raw.append(message)


async def declare_endpoint(url: str, name: str, exchanges: Sequence[str]) -> None:
    """The durable entities of a MassTransit receive endpoint; the message exchanges are declared by it as well."""
    async with await aio_pika.connect(url, timeout=10) as connection:
        channel = await connection.channel()
        endpoint = await channel.declare_exchange(name, ExchangeType.FANOUT, durable=True)
        queue = await channel.declare_queue(name, durable=True)
        await queue.bind(endpoint, routing_key="")
        for exchange in exchanges:
            source = await channel.declare_exchange(f"{NAMESPACE}:{exchange}", ExchangeType.FANOUT, durable=True)
            await endpoint.bind(source, routing_key="")


@asynccontextmanager
async def listening(url: str, *exchanges: str, name: str = "") -> AsyncIterator[Listener]:
    """Consume for the length of the block; the queue stays in the broker afterwards."""
    listener = Listener(name or f"test-{secrets.token_hex(4)}")
    await declare_endpoint(url, listener.name, exchanges)
    async with await aio_pika.connect(url, timeout=10) as connection, asyncio.TaskGroup() as tasks:
        channel = await connection.channel()
        task = tasks.create_task(listener.take(await channel.get_queue(listener.name)))
        try:
            yield listener
        finally:
            task.cancel()

"""The exchanges and bindings that MassTransit expects of a publisher, declared when the publisher connects.

At the connect and not at the first event, because a consumer may bind to an exchange without declaring it, and dies
when there is none. Every exchange is a durable fanout without arguments; another kind is refused by the broker (406).
"""

from collections.abc import Awaitable, Callable

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused

from toska_mesh.errors import MessagingError
from toska_mesh.messaging.contracts import CONTRACTS, EVENT_INTERFACE
from toska_mesh.telemetry import event_log

log = event_log("messaging.topology")


async def declare_topology(connection: AbstractConnection) -> None:
    """Declare every exchange of the contracts and bind each event's to the interface's.

    A user without the right to configure may publish to exchanges that an operator declared: then they must exist.
    Raises MessagingError when an exchange exists in another form, or is missing and may not be declared.
    """
    await _declare(connection, EVENT_INTERFACE.exchange)
    for contract in CONTRACTS.values():
        await _declare(connection, contract.exchange)
    for contract in CONTRACTS.values():
        if contract.is_event:
            await _bind(connection, contract.exchange)


async def _declare(connection: AbstractConnection, name: str) -> None:
    try:
        await _on_channel(connection, lambda channel: channel.declare_exchange(name, ExchangeType.FANOUT, durable=True))
    except ChannelPreconditionFailed as exc:
        raise MessagingError(
            f"exchange {name} exists in another form than a durable fanout without arguments; delete it, "
            f"it is declared anew ({exc})"
        ) from exc
    except ChannelAccessRefused as refusal:
        try:
            await _on_channel(
                connection, lambda channel: channel.declare_exchange(name, ExchangeType.FANOUT, passive=True)
            )
        except ChannelNotFoundEntity as exc:
            raise MessagingError(f"exchange {name} is missing and this user may not declare it ({refusal})") from exc


async def _bind(connection: AbstractConnection, source: str) -> None:
    async def bind(channel: AbstractChannel) -> None:
        interface = await channel.get_exchange(EVENT_INTERFACE.exchange, ensure=False)
        await interface.bind(source, routing_key="")

    try:
        await _on_channel(connection, bind)
    except ChannelAccessRefused as exc:
        # The binding may be there already; without it only consumers of the interface go without.
        log.warning("binding_not_declared", source=source, destination=EVENT_INTERFACE.exchange, reason=str(exc))


async def _on_channel(connection: AbstractConnection, work: Callable[[AbstractChannel], Awaitable[object]]) -> None:
    """A channel of its own for each step: the broker closes a channel with every refusal."""
    async with connection.channel(publisher_confirms=False) as channel:
        await work(channel)

"""MassTransit 8.1's JSON envelope, written.

Pure: ids and times are given by the caller. Every field that MassTransit writes is written, nulls included, so that
readers in any language find what they expect. Reading is `decode.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import orjson

from toska_mesh.messaging.address import BrokerAddress
from toska_mesh.messaging.contracts import body_of, contract_of, iso_time, lane_of, well_formed
from toska_mesh.model import CommandResponse, MeshMessage, RestartService

CONTENT_TYPE = "application/vnd.masstransit+json"
MASS_TRANSIT_VERSION = "8.1.0"
"""The version whose envelope this module writes."""


@dataclass(frozen=True, slots=True)
class HostInfo:
    """Who wrote a message: the envelope's `host` block (MassTransit's `BusHostInfo`)."""

    machine_name: str
    process_name: str
    process_id: int
    assembly: str
    assembly_version: str
    framework_version: str
    operating_system_version: str

    def to_json(self) -> dict[str, object]:
        return {
            "machineName": self.machine_name,
            "processName": self.process_name,
            "processId": self.process_id,
            "assembly": self.assembly,
            "assemblyVersion": self.assembly_version,
            "frameworkVersion": self.framework_version,
            "massTransitVersion": MASS_TRANSIT_VERSION,
            "operatingSystemVersion": self.operating_system_version,
        }


@dataclass(frozen=True, slots=True)
class Sender:
    """One running publisher. `bus_id` makes its source address unique, as MassTransit's temporary bus queue does."""

    host: HostInfo
    broker: BrokerAddress
    bus_id: str

    @property
    def source_address(self) -> str:
        name = f"{_safe_name(self.host.machine_name)}_{_safe_name(self.host.process_name)}_bus_{self.bus_id}"
        return self.broker.uri(name, "?temporary=true")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message ready for the broker: from here on bytes, so that what is on disk is what is sent."""

    message_id: UUID
    correlation_id: UUID
    lane: str
    contract: str
    exchange: str
    body: bytes


def encode(
    message: MeshMessage, sender: Sender, *, message_id: UUID, new_conversation: UUID, now: datetime
) -> Outgoing:
    """Wrap a message. `new_conversation` is used unless the message's correlation id is itself a UUID.

    Raises ValueError for what JSON cannot hold (a naive time, foreign objects in a response's data): what is not valid
    JSON sends some consumers into an endless redelivery and must never leave this process.
    """
    contract = contract_of(message)
    correlation_id = message.command_id if isinstance(message, RestartService | CommandResponse) else message.event_id
    envelope: dict[str, object] = {
        "messageId": str(message_id),
        "requestId": None,
        "correlationId": str(correlation_id),
        "conversationId": str(_conversation(message, new_conversation)),
        "initiatorId": None,
        "sourceAddress": sender.source_address,
        "destinationAddress": sender.broker.uri(contract.exchange),
        "responseAddress": None,
        "faultAddress": None,
        "messageType": list(contract.urns),
        "message": body_of(message),
        "expirationTime": None,
        "sentTime": iso_time(now),
        "headers": {},
        "host": sender.host.to_json(),
    }
    return Outgoing(
        message_id=message_id,
        correlation_id=correlation_id,
        lane=lane_of(message),
        contract=contract.name,
        exchange=contract.exchange,
        body=to_json(envelope),
    )


def _conversation(message: MeshMessage, new_conversation: UUID) -> UUID:
    """The request's correlation id, when it is a UUID, is the conversation; else the message begins one."""
    text = None if isinstance(message, CommandResponse) else message.correlation_id
    try:
        return UUID(text) if text else new_conversation
    except ValueError:
        return new_conversation


def to_json(envelope: dict[str, object]) -> bytes:
    """JSON that every reader takes: UTF-8, null for what is no number. Raises ValueError for foreign objects."""
    try:
        return orjson.dumps(envelope)
    except TypeError:
        pass  # lone surrogates, or what JSON cannot hold at all
    try:
        return orjson.dumps(_well_formed(envelope))
    except TypeError as exc:
        raise ValueError(f"the message cannot be written as JSON: {exc}") from exc


def _well_formed(value: object) -> object:
    match value:
        case str():
            return well_formed(value)
        case Mapping():
            return {_well_formed(key): _well_formed(item) for key, item in value.items()}
        case list() | tuple():
            return [_well_formed(item) for item in value]
        case _:
            return value


def _safe_name(text: str) -> str:
    return "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in text)

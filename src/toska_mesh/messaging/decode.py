"""MassTransit's JSON envelope, read: for consumers of ours, and to prove in tests what we write.

As lenient as a MassTransit 8 consumer and a little more: property names in any case, optional fields absent, and ids
that are no GUIDs, as the family's Go daemons write them, become stable UUIDs made from their text.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from uuid import UUID

import orjson

from toska_mesh.errors import MessagingError
from toska_mesh.messaging.contracts import CONTRACTS
from toska_mesh.model import (
    AlertTriggered,
    CommandResponse,
    ConfigurationChanged,
    HealthStatus,
    InstanceDeregistered,
    InstanceHealthChanged,
    InstanceId,
    InstanceRegistered,
    MeshMessage,
    RestartService,
    ServiceName,
)

_FOREIGN_IDS = UUID("6f1d0f8e-6c0e-5d3a-9b57-0d2f6a6f5c11")
"""Namespace of the UUIDs made from foreign ids; fixed, so that a redelivery is recognised."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message with what its envelope says about it. Ids are the sender's text, whatever form they have."""

    message: MeshMessage
    message_id: str | None
    correlation_id: str | None
    conversation_id: str | None
    source_address: str | None
    sent_at: datetime | None


def decode(payload: bytes) -> Received:
    """Read one envelope. Raises MessagingError when it is no envelope, of no known type, or lacks a required field."""
    try:
        document = orjson.loads(payload.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as exc:
        raise MessagingError(f"the payload is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise MessagingError("the payload is no envelope: not a JSON object")
    envelope = _Fields(document)
    body = envelope.get("message")
    if not isinstance(body, dict):
        raise MessagingError("the envelope has no message")
    # eventId, commandId and timestamp have defaults on the C# side, so a sender may leave them out.
    own_id = envelope.text("correlationId") or envelope.text("messageId")
    defaults = {"eventId": own_id, "commandId": own_id, "timestamp": envelope.text("sentTime")}
    return Received(
        message=_reader(envelope.get("messageType"))(_Fields(body, defaults)),
        message_id=envelope.text("messageId"),
        correlation_id=envelope.text("correlationId"),
        conversation_id=envelope.text("conversationId"),
        source_address=envelope.text("sourceAddress"),
        sent_at=_time(envelope.text("sentTime")) if envelope.text("sentTime") else None,
    )


class _Fields:
    """A JSON object read by name in any case; what is absent or null comes from `defaults`."""

    def __init__(self, document: Mapping[str, object], defaults: Mapping[str, object] = MappingProxyType({})) -> None:
        self._values = {key.casefold(): value for key, value in document.items()}
        self._defaults = defaults

    def get(self, name: str) -> object:
        value = self._values.get(name.casefold())
        return self._defaults.get(name) if value is None else value

    def text(self, name: str) -> str | None:
        value = self.get(name)
        if value is None or isinstance(value, str):
            return value
        raise MessagingError(f"{name} is {value!r}, not a string")

    def required(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise MessagingError(f"the message lacks {name}")
        return value

    def id(self, name: str) -> UUID:
        text = self.required(name)
        try:
            return UUID(text)
        except ValueError:
            return uuid.uuid5(_FOREIGN_IDS, text)

    def time(self, name: str) -> datetime:
        return _time(self.required(name))

    def status(self, name: str) -> HealthStatus:
        try:
            return HealthStatus.from_label(self.required(name))
        except ValueError as exc:
            raise MessagingError(f"{name}: {exc}") from exc

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise MessagingError(f"{name} is {value!r}, not a boolean")

    def number(self, name: str) -> int:
        value = self.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value or 0
        raise MessagingError(f"{name} is {value!r}, not an integer")

    def map(self, name: str) -> dict[str, object]:
        value = self.get(name)
        if value is None or isinstance(value, dict):
            return value or {}
        raise MessagingError(f"{name} is {value!r}, not an object")

    def words(self, name: str) -> dict[str, str]:
        return {key: value for key, value in self.map(name).items() if isinstance(value, str)}


def _registered(body: _Fields) -> MeshMessage:
    return InstanceRegistered(
        event_id=body.id("eventId"),
        timestamp=body.time("timestamp"),
        correlation_id=body.text("correlationId"),
        service=ServiceName(body.required("serviceName")),
        instance_id=InstanceId(body.required("serviceId")),
        address=body.required("address"),
        port=body.number("port"),
        metadata=body.words("metadata"),
    )


def _deregistered(body: _Fields) -> MeshMessage:
    return InstanceDeregistered(
        event_id=body.id("eventId"),
        timestamp=body.time("timestamp"),
        correlation_id=body.text("correlationId"),
        service=ServiceName(body.required("serviceName")),
        instance_id=InstanceId(body.required("serviceId")),
        reason=body.text("reason"),
    )


def _health_changed(body: _Fields) -> MeshMessage:
    return InstanceHealthChanged(
        event_id=body.id("eventId"),
        timestamp=body.time("timestamp"),
        correlation_id=body.text("correlationId"),
        service=ServiceName(body.required("serviceName")),
        instance_id=InstanceId(body.required("serviceId")),
        previous=body.status("previousStatus"),
        current=body.status("currentStatus"),
        output=body.text("healthCheckOutput"),
    )


def _configuration_changed(body: _Fields) -> MeshMessage:
    return ConfigurationChanged(
        event_id=body.id("eventId"),
        timestamp=body.time("timestamp"),
        correlation_id=body.text("correlationId"),
        key=body.required("configKey"),
        previous_value=body.text("previousValue"),
        new_value=body.required("newValue"),
        changed_by=body.required("changedBy"),
    )


def _alert_triggered(body: _Fields) -> MeshMessage:
    return AlertTriggered(
        event_id=body.id("eventId"),
        timestamp=body.time("timestamp"),
        correlation_id=body.text("correlationId"),
        alert_name=body.required("alertName"),
        severity=body.required("severity"),
        message=body.required("message"),
        source=body.required("source"),
        tags=body.words("tags"),
    )


def _restart_service(body: _Fields) -> MeshMessage:
    return RestartService(
        command_id=body.id("commandId"),
        timestamp=body.time("timestamp"),
        correlation_id=body.text("correlationId"),
        instance_id=InstanceId(body.required("serviceId")),
        reason=body.text("reason"),
        force=body.flag("force"),
    )


def _command_response(body: _Fields) -> MeshMessage:
    return CommandResponse(
        command_id=body.id("commandId"),
        success=body.flag("success"),
        message=body.text("message"),
        data=body.map("data"),
    )


_READERS: Mapping[type, Callable[[_Fields], MeshMessage]] = {
    InstanceRegistered: _registered,
    InstanceDeregistered: _deregistered,
    InstanceHealthChanged: _health_changed,
    ConfigurationChanged: _configuration_changed,
    AlertTriggered: _alert_triggered,
    RestartService: _restart_service,
    CommandResponse: _command_response,
}
_READERS_BY_URN = {contract.urns[0].casefold(): _READERS[kind] for kind, contract in CONTRACTS.items()}


def _reader(message_type: object) -> Callable[[_Fields], MeshMessage]:
    """The first URN of the list that we know decides; URNs compare without case."""
    urns = [urn for urn in message_type if isinstance(urn, str)] if isinstance(message_type, list) else []
    for urn in urns:
        reader = _READERS_BY_URN.get(urn.casefold())
        if reader is not None:
            return reader
    raise MessagingError(f"no known message type among {urns}")


def _time(text: str | None) -> datetime:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError as exc:
        raise MessagingError(f"{text!r} is no ISO 8601 time") from exc
    if moment.utcoffset() is None:
        raise MessagingError(f"{text!r} has no offset from UTC")
    return moment

"""The message contracts as the C# side of the mesh family declares them: names, exchanges, URNs and JSON bodies.

Pure. A body keeps what a .NET reader demands: required fields are never null or missing, ids are dashed GUIDs, times
carry their offset, and maps have no blank keys and no two keys that a case-insensitive dictionary takes for one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TypeVar, assert_never

from toska_mesh.model import (
    AlertTriggered,
    CommandResponse,
    ConfigurationChanged,
    InstanceDeregistered,
    InstanceHealthChanged,
    InstanceRegistered,
    MeshMessage,
    RestartService,
)

NAMESPACE = "ToskaMesh.Common.Messaging"
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Contract:
    """One .NET type. `exchange` and `urns` follow MassTransit's naming of entities and messages."""

    name: str
    is_event: bool

    @property
    def exchange(self) -> str:
        return f"{NAMESPACE}:{self.name}"

    @property
    def urns(self) -> tuple[str, ...]:
        """The concrete type first: some clients read only the first one. Events also implement the interface."""
        own = f"urn:message:{NAMESPACE}:{self.name}"
        return (own, f"urn:message:{NAMESPACE}:{EVENT_INTERFACE.name}") if self.is_event else (own,)


EVENT_INTERFACE = Contract("IMeshEvent", is_event=False)
"""The interface of the five events: an exchange of its own that every event exchange is bound to."""

CONTRACTS: Mapping[type, Contract] = MappingProxyType(
    {
        InstanceRegistered: Contract("ServiceRegisteredEvent", is_event=True),
        InstanceDeregistered: Contract("ServiceDeregisteredEvent", is_event=True),
        InstanceHealthChanged: Contract("ServiceHealthChangedEvent", is_event=True),
        ConfigurationChanged: Contract("ConfigurationChangedEvent", is_event=True),
        AlertTriggered: Contract("AlertTriggeredEvent", is_event=True),
        RestartService: Contract("RestartServiceCommand", is_event=False),
        CommandResponse: Contract("CommandResponse", is_event=False),
    }
)


def contract_of(message: MeshMessage) -> Contract:
    return CONTRACTS[type(message)]


def body_of(message: MeshMessage) -> dict[str, object]:
    """The `message` object of the envelope, in camelCase, every field present. Raises ValueError for a naive time."""
    match message:
        case InstanceRegistered():
            return _event(message) | {
                "serviceId": _text(message.instance_id),
                "serviceName": _text(message.service),
                "address": _text(message.address),
                "port": message.port,
                "metadata": distinct_keys(message.metadata),
            }
        case InstanceDeregistered():
            return _event(message) | {
                "serviceId": _text(message.instance_id),
                "serviceName": _text(message.service),
                "reason": message.reason,
            }
        case InstanceHealthChanged():
            return _event(message) | {
                "serviceId": _text(message.instance_id),
                "serviceName": _text(message.service),
                "previousStatus": message.previous.label,
                "currentStatus": message.current.label,
                "healthCheckOutput": message.output,
            }
        case ConfigurationChanged():
            return _event(message) | {
                "configKey": _text(message.key),
                "previousValue": message.previous_value,
                "newValue": _text(message.new_value),
                "changedBy": _text(message.changed_by),
            }
        case AlertTriggered():
            return _event(message) | {
                "alertName": _text(message.alert_name),
                "severity": _text(message.severity),
                "message": _text(message.message),
                "source": _text(message.source),
                "tags": distinct_keys(message.tags),
            }
        case RestartService():
            return {
                "commandId": str(message.command_id),
                "timestamp": iso_time(message.timestamp),
                "correlationId": message.correlation_id,
                "serviceId": _text(message.instance_id),
                "reason": message.reason,
                "force": message.force,
            }
        case CommandResponse():
            return {
                "commandId": str(message.command_id),
                "success": message.success,
                "message": message.message,
                "data": distinct_keys(message.data),
            }
        case _:
            assert_never(message)


def lane_of(message: MeshMessage) -> str:
    """Messages of one lane keep their order; lanes are independent. Everything about one service is one lane."""
    match message:
        case InstanceRegistered() | InstanceDeregistered() | InstanceHealthChanged():
            return f"service:{message.service or message.instance_id}"
        case ConfigurationChanged():
            return f"config:{message.key}"
        case AlertTriggered():
            return f"alert:{message.source}"
        case RestartService():
            return f"restart:{message.instance_id}"
        case CommandResponse():
            return f"response:{message.command_id}"
        case _:
            assert_never(message)


def iso_time(moment: datetime) -> str:
    """ISO 8601 with offset, always with six digits of seconds. Raises ValueError for a time without a zone."""
    if moment.utcoffset() is None:
        raise ValueError(f"{moment!r} has no time zone; published times are UTC")
    return moment.isoformat(timespec="microseconds")


def distinct_keys(pairs: Mapping[str, V]) -> dict[str, V]:
    """The pairs that a case-insensitive .NET dictionary can take: no blank key, no key twice in another case.

    The first spelling of a key wins. `upper` before `casefold` because .NET compares upper-cased letters.
    """
    kept: dict[str, V] = {}
    seen: set[str] = set()
    for given, value in pairs.items():
        key = well_formed(given)
        folded = key.upper().casefold()
        if key.strip() and folded not in seen:
            seen.add(folded)
            kept[key] = value
    return kept


def well_formed(text: str) -> str:
    """The same text with U+FFFD, Unicode's replacement character, for each lone surrogate.

    JSON can escape lone surrogates, so they arrive from outside; UTF-8 cannot hold them.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _event(
    event: InstanceRegistered | InstanceDeregistered | InstanceHealthChanged | ConfigurationChanged | AlertTriggered,
) -> dict[str, object]:
    return {
        "eventId": str(event.event_id),
        "timestamp": iso_time(event.timestamp),
        "correlationId": event.correlation_id,
    }


def _text(value: str | None) -> str:
    """A required field: a reader cannot construct the message from null, so nothing becomes an empty string."""
    return value or ""

"""What a MassTransit 8 consumer accepts, written down from its behaviour and independent of our own decoder.

`accept` raises AssertionError for whatever would send a message to `<queue>_error` or `<queue>_skipped`.
"""

import json
import re
from datetime import datetime
from urllib.parse import urlsplit

_DASHED = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,7})?(Z|[+-]\d\d:\d\d)")

_EVENT = {"eventId": "guid", "timestamp": "time", "correlationId": "text?"}
CONTRACTS = {
    "ServiceRegisteredEvent": _EVENT
    | {"serviceId": "text", "serviceName": "text", "address": "text", "port": "int", "metadata": "words"},
    "ServiceDeregisteredEvent": _EVENT | {"serviceId": "text", "serviceName": "text", "reason": "text?"},
    "ServiceHealthChangedEvent": _EVENT
    | {
        "serviceId": "text",
        "serviceName": "text",
        "previousStatus": "status",
        "currentStatus": "status",
        "healthCheckOutput": "text?",
    },
    "ConfigurationChangedEvent": _EVENT
    | {"configKey": "text", "previousValue": "text?", "newValue": "text", "changedBy": "text"},
    "AlertTriggeredEvent": _EVENT
    | {"alertName": "text", "severity": "text", "message": "text", "source": "text", "tags": "words"},
    "RestartServiceCommand": {
        "commandId": "guid",
        "timestamp": "time",
        "correlationId": "text?",
        "serviceId": "text",
        "reason": "text?",
        "force": "bool",
    },
    "CommandResponse": {"commandId": "guid", "success": "bool", "message": "text?", "data": "map"},
}


def accept(payload: bytes, contract: str) -> dict:
    """Deserialise as a consumer of this contract does; gives the body."""
    envelope = json.loads(payload.decode("utf-8", "strict"), parse_constant=_refuse)
    names = {name.lower(): value for name, value in envelope.items()}
    assert isinstance(names.get("message"), dict), "no message: error queue"
    urns = [urn.lower() for urn in names["messagetype"]]
    assert f"urn:message:toskamesh.common.messaging:{contract.lower()}" in urns, "skipped"
    for name in ("messageid", "requestid", "correlationid", "conversationid", "initiatorid"):
        if names.get(name):
            assert _DASHED.fullmatch(names[name]), f"{name}: FormatException"
    for name in ("sourceaddress", "destinationaddress", "responseaddress", "faultaddress"):
        if names.get(name):
            parts = urlsplit(names[name])
            assert parts.scheme, name
            assert parts.hostname, name
            assert not re.search(r"[\s<>\"{}|\\^`]", names[name]), name
    if names.get("senttime"):
        _time(names["senttime"])
    assert isinstance(names["host"]["processId"], int)
    for name, kind in CONTRACTS[contract].items():
        assert name in names["message"], f"{name} is missing"
        _check(name, kind, names["message"][name])
    return names["message"]


def _check(name: str, kind: str, value: object) -> None:
    match kind:
        case "guid":
            assert _DASHED.fullmatch(str(value)), f"{name}: JsonException"
        case "time":
            _time(value)
        case "text":
            assert isinstance(value, str), f"{name} is required"
        case "text?":
            assert value is None or isinstance(value, str), name
        case "int":
            assert type(value) is int, name
            assert -(2**31) <= value < 2**31, name
        case "bool":
            assert type(value) is bool, name
        case "status":
            assert value in ("Unknown", "Healthy", "Unhealthy", "Degraded"), name
        case "words" | "map":
            assert isinstance(value, dict), name
            assert all(key.strip() for key in value), f"{name}: blank key"
            assert len({key.upper() for key in value}) == len(value), f"{name}: keys differ only by case"
            if kind == "words":
                assert all(isinstance(item, str) for item in value.values()), name


def _time(value: object) -> None:
    assert _ISO.fullmatch(str(value)), f"{value!r} is no ISO 8601 time with offset"
    datetime.fromisoformat(str(value))


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")

"""Shapes of the REST API: the JSON of the C# generation to the letter, in both directions.

camelCase names, enums as integers, nulls written, ISO 8601 times. Names in requests are matched without regard to case,
as that generation's reader does. Pure.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from toska_mesh.discovery.validation import HealthCheck, InvalidArgumentError, RegisterInstance
from toska_mesh.model import HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.model.metadata import own_metadata

YEAR_ONE = "0001-01-01T00:00:00Z"
_SPAN = re.compile(r"(?:(\d+)\.)?(\d{1,2}):(\d{1,2}):(\d{1,2})(?:\.\d+)?\Z")


def api_response(
    data: object, now: datetime, message: str | None = None, errors: list[str] | None = None, success: bool = True
) -> dict[str, object]:
    """The wrapper around every body."""
    return {
        "success": success,
        "data": data,
        "message": message,
        "errors": errors,
        "timestamp": time_text(now),
        "traceId": None,
    }


def time_text(moment: datetime | None) -> str:
    return YEAR_ONE if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def instance_json(instance: Instance, last_beat: datetime | None) -> dict[str, object]:
    return {
        "serviceName": instance.service,
        "serviceId": instance.id,
        "address": instance.endpoint.host,
        "port": instance.endpoint.port,
        "status": int(instance.status),
        "metadata": own_metadata(instance.metadata),
        "registeredAt": time_text(instance.registered_at),
        "lastHealthCheck": time_text(last_beat),
    }


def tracking_json(instance: Instance, last_beat: datetime | None) -> dict[str, object]:
    return {
        "serviceId": instance.id,
        "serviceName": instance.service,
        "registeredAt": time_text(instance.registered_at),
        "deregisteredAt": None,
        "lastUpdated": time_text(last_beat or instance.registered_at),
        "status": int(instance.status),
        "lastHealthCheck": None if last_beat is None else time_text(last_beat),
        "metadata": own_metadata(instance.metadata),
    }


def metadata_summary_json(service: ServiceName, instances: tuple[Instance, ...], now: datetime) -> dict[str, object]:
    """Per key: how many instances carry it, and its distinct values without regard to case."""
    values: dict[str, dict[str, str]] = {}
    counts: dict[str, int] = {}
    for instance in instances:
        for key, value in own_metadata(instance.metadata).items():
            counts[key] = counts.get(key, 0) + 1
            values.setdefault(key, {}).setdefault(value.lower(), value)
    return {
        "serviceName": service,
        "instanceCount": len(instances),
        "generatedAt": time_text(now),
        "keys": [
            {"key": key, "instanceCount": counts[key], "values": sorted(values[key].values())} for key in sorted(counts)
        ],
    }


def registration_from(body: object) -> RegisterInstance:
    """Raises InvalidArgumentError naming the field of the wrong shape."""
    fields = _object("the body", body)
    return RegisterInstance(
        service=ServiceName(_text(fields, "serviceName")),
        id=InstanceId(_text(fields, "serviceId")),
        address=_text(fields, "address"),
        port=_whole(fields, "port"),
        metadata=_texts(fields, "metadata"),
        health_check=_health_check(fields.get("healthcheck")),
    )


def report_from(body: object) -> tuple[int, str]:
    """Status (a number or its word) and output of a health report."""
    fields = _object("the body", body)
    status = fields.get("status")
    if isinstance(status, str):
        try:
            status = int(HealthStatus.from_label(status))
        except ValueError as exc:
            raise InvalidArgumentError(f"status: {exc}") from exc
    elif not isinstance(status, int) or isinstance(status, bool):
        raise InvalidArgumentError(
            f"status {status!r} should be 1 or Healthy, 2 or Unhealthy, 3 or Degraded, as a number or as a text"
        )
    return status, _text(fields, "output")


def metadata_from(body: object) -> Mapping[str, str] | None:
    """The new metadata; None when the body carries none."""
    fields = _object("the body", body)
    return None if fields.get("metadata") is None else _texts(fields, "metadata")


def seconds_of_span(name: str, span: object) -> int:
    """`hh:mm:ss` or `d.hh:mm:ss` in whole seconds; null is 0 (not said)."""
    if span is None:
        return 0
    match = _SPAN.match(span) if isinstance(span, str) else None
    if match is None:
        raise InvalidArgumentError(f"{name} {span!r} is no time span; write hh:mm:ss, such as 00:00:30")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _health_check(value: object) -> HealthCheck:
    if value is None:
        return HealthCheck()
    fields = _object("healthCheck", value)
    return HealthCheck(
        endpoint=_text(fields, "endpoint"),
        interval_seconds=seconds_of_span("healthCheck.interval", fields.get("interval")),
        timeout_seconds=seconds_of_span("healthCheck.timeout", fields.get("timeout")),
        unhealthy_threshold=_whole(fields, "unhealthyThreshold"),
    )


def _object(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{name} should be a JSON object")
    return {str(key).lower(): item for key, item in value.items()}


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name.lower())
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} {value!r} should be a text")
    return value


def _whole(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name.lower(), 0)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgumentError(f"{name} {value!r} should be a whole number")
    return value


def _texts(fields: Mapping[str, object], name: str) -> dict[str, str]:
    value = fields.get(name.lower())
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise InvalidArgumentError(f"{name} should be a JSON object of texts")
    return dict(value)

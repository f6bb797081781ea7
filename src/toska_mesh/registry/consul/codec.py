"""Consul's JSON to and from the mesh's values. Pure; nothing here knows how the bytes travelled.

Shapes: Consul HTTP API, agent/service/register, health/service and catalog/services.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import orjson

from toska_mesh.errors import RegistryError
from toska_mesh.model import Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.model.metadata import DRAIN_NOTE, REGISTERED_AT
from toska_mesh.registry.api import Registration

CONSUL_SERVICE = "consul"
"""The registry's own entry in its catalog."""

MAINTENANCE_CHECKS = ("_node_maintenance", "_service_maintenance:")
SILENCE = ("TTL expired", "Agent not live or unreachable")
"""Outputs that Consul itself writes when it heard nothing: from an instance, from an agent."""

CHECK_WORDS: Mapping[HealthStatus, str] = MappingProxyType(
    {HealthStatus.HEALTHY: "passing", HealthStatus.DEGRADED: "warning", HealthStatus.UNHEALTHY: "critical"}
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered instance as the registry holds it: the value and where it came from."""

    instance: Instance
    node: str
    modify_index: int
    is_silent: bool
    """Unhealthy only because the registry heard nothing: its TTL ran out, or its agent is away."""


@dataclass(frozen=True, slots=True)
class ServiceReading:
    """One answer of `health/service/<name>`. `entries` is sorted by instance id, one entry per id."""

    entries: tuple[Entry, ...] = ()
    dropped: tuple[str, ...] = ()
    """Sentences about entries that cannot be used, each naming the instance and the reason."""
    dropped_marks: frozenset[tuple[str, str, int]] = frozenset()

    @property
    def instances(self) -> tuple[Instance, ...]:
        return tuple(entry.instance for entry in self.entries)

    @property
    def marks(self) -> frozenset[tuple[str, str, int]]:
        """(node, instance id, modify index) of everything that was read, usable or not."""
        read = ((entry.node, entry.instance.id, entry.modify_index) for entry in self.entries)
        return self.dropped_marks.union(read)


def parse_json(body: bytes, what: str) -> Any:
    """Raises RegistryError when the body is no JSON: whoever answered is no Consul."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RegistryError(f"the registry's answer to {what} is not JSON: {error}") from error


def service_names(body: bytes) -> dict[ServiceName, tuple[str, ...]]:
    """`catalog/services`: names with their tags, without the registry itself."""
    answer = parse_json(body, "catalog/services")
    if not isinstance(answer, dict):
        raise RegistryError("the registry's answer to catalog/services is no object")
    answer.pop(CONSUL_SERVICE, None)
    # Most services carry no tags, and this is done for all of them at every change.
    return {ServiceName(name): tuple(sorted(map(str, tags))) if tags else () for name, tags in answer.items()}


def service_reading(service: ServiceName, body: bytes) -> ServiceReading:
    """`health/service/<name>`. Entries that cannot be used are dropped with a reason; only a foreign body raises."""
    answer = parse_json(body, f"health/service/{service}")
    if not isinstance(answer, list):
        raise RegistryError(f"the registry's answer to health/service/{service} is no list")
    best: dict[InstanceId, Entry] = {}
    dropped: list[str] = []
    marks: set[tuple[str, str, int]] = set()
    for item in answer:
        try:
            entry = _entry(service, item)
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            node, instance_id, modify_index = _mark(item)
            dropped.append(f"instance {instance_id!r} on node {node!r}: {error}")
            marks.add((node, instance_id, modify_index))
            continue
        rival = best.get(entry.instance.id)
        if rival is not None:
            # Consul's ids are unique per node only. After an agent was replaced the old node's copy lingers.
            entry, rival = sorted((entry, rival), key=_preference, reverse=True)
            dropped.append(
                f"instance {rival.instance.id!r} on node {rival.node!r}: the same id is on node {entry.node!r}"
            )
            marks.add((rival.node, rival.instance.id, rival.modify_index))
        best[entry.instance.id] = entry
    entries = tuple(best[instance_id] for instance_id in sorted(best))
    return ServiceReading(entries, tuple(dropped), frozenset(marks))


def _preference(entry: Entry) -> tuple[bool, int, int]:
    usable = entry.instance.status in (HealthStatus.HEALTHY, HealthStatus.DEGRADED)
    return usable, entry.instance.create_index, entry.modify_index


def _entry(service: ServiceName, item: Mapping[str, Any]) -> Entry:
    node, registered = item["Node"], item["Service"]
    metadata = {str(key): str(value) for key, value in (registered.get("Meta") or {}).items()}
    status, output, is_silent = judge_checks(item.get("Checks") or ())
    instance = Instance(
        service=service,
        id=InstanceId(str(registered["ID"])),
        endpoint=Endpoint(
            str(registered.get("Address") or node.get("Address") or ""), int(registered.get("Port") or 0)
        ),
        status=status,
        metadata=MappingProxyType(metadata),
        registered_at=parse_time(metadata.get(REGISTERED_AT, "")),
        output=output,
        create_index=int(registered.get("CreateIndex") or 0),
    )
    return Entry(instance, str(node.get("Node") or ""), int(registered.get("ModifyIndex") or 0), is_silent)


def _mark(item: Any) -> tuple[str, str, int]:
    """(node, instance id, modify index) of an entry of any shape."""
    parts = item if isinstance(item, dict) else {}
    node, registered = parts.get("Node"), parts.get("Service")
    name = node.get("Node") if isinstance(node, dict) else None
    if not isinstance(registered, dict):
        return str(name or "?"), "?", 0
    index = registered.get("ModifyIndex")
    return str(name or "?"), str(registered.get("ID") or "?"), index if isinstance(index, int) else 0


def judge_checks(checks: Iterable[Mapping[str, Any]]) -> tuple[HealthStatus, str, bool]:
    """Status of an instance from its own and its node's checks, the output that decided, and whether it is silence.

    Any critical or maintenance: Unhealthy; else any warning: Degraded; else all passing: Healthy; none: Unknown.
    """
    worst, output, is_silent, seen = HealthStatus.HEALTHY, "", True, False
    severity = {HealthStatus.HEALTHY: 0, HealthStatus.UNKNOWN: 1, HealthStatus.DEGRADED: 2, HealthStatus.UNHEALTHY: 3}
    for check in checks:
        seen = True
        status = _check_status(check)
        text = str(check.get("Output") or "")
        if status is HealthStatus.UNHEALTHY:
            is_silent = is_silent and _is_silence(check, text)
        is_drain_note = text.startswith(DRAIN_NOTE)  # not to be lost behind other words of the same weight
        if severity[status] > severity[worst] or (status is worst and (not output or is_drain_note)):
            worst, output = status, _explain(check, text)
    if not seen:
        return HealthStatus.UNKNOWN, "", False
    if worst is HealthStatus.HEALTHY:
        return worst, "", False
    return worst, output, is_silent and worst is HealthStatus.UNHEALTHY


def _check_status(check: Mapping[str, Any]) -> HealthStatus:
    if _is_maintenance(check):
        return HealthStatus.UNHEALTHY
    match check.get("Status"):
        case "passing":
            return HealthStatus.HEALTHY
        case "warning":
            return HealthStatus.DEGRADED
        case "critical" | "maintenance":
            return HealthStatus.UNHEALTHY
        case _:
            return HealthStatus.UNKNOWN


def _is_maintenance(check: Mapping[str, Any]) -> bool:
    return str(check.get("CheckID") or "").startswith(MAINTENANCE_CHECKS)


def _is_silence(check: Mapping[str, Any], output: str) -> bool:
    return not _is_maintenance(check) and (not output or output.startswith(SILENCE))


def _explain(check: Mapping[str, Any], output: str) -> str:
    if _is_maintenance(check):
        return f"maintenance: {check.get('Notes') or output or 'no reason given'}"
    if str(check.get("ServiceID") or "") or not output:
        return output
    return f"node check {check.get('Name') or check.get('CheckID')}: {output}"


def parse_time(text: str) -> datetime | None:
    """UTC of an RFC 3339 text; None when it is none."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # within a day of the first or last year, an offset leads out of the calendar
        return None


def check_id(instance_id: InstanceId) -> str:
    return f"service:{instance_id}"


def registration_body(registration: Registration) -> bytes:
    """Body of `PUT agent/service/register`, in the layout that every control plane of the mesh family writes.

    Raises ValueError for a registration whose check would begin as Unknown.
    """
    if registration.status not in CHECK_WORDS:
        raise ValueError("an instance cannot be registered as Unknown; use Healthy, Degraded or Unhealthy")
    return orjson.dumps(
        {
            "ID": registration.id,
            "Name": registration.service,
            "Address": registration.address,
            "Port": registration.port,
            "Meta": dict(registration.metadata),
            "Check": {
                "CheckID": check_id(registration.id),
                "Name": f"{registration.service} TTL Health",
                "Notes": f"{registration.note} (revision {_revision(registration)})",
                "TTL": go_duration(registration.ttl_seconds),
                "DeregisterCriticalServiceAfter": go_duration(registration.deregister_after_seconds),
                # A TTL check begins critical unless told otherwise: without this the instance is born unhealthy.
                "Status": CHECK_WORDS[registration.status],
            },
        }
    )


def _revision(registration: Registration) -> str:
    """A short digest of what is registered.

    In the check's notes it makes a changed port or metadata a changed check, which followers see at once; they would
    have to search for it otherwise (see `sweep`).
    """
    content = [registration.address, registration.port, sorted(registration.metadata.items())]
    return blake2b(orjson.dumps(content), digest_size=4).hexdigest()


def go_duration(seconds: int) -> str:
    """Whole seconds as Go's `time.Duration` prints them: `35s`, `1m0s`, `1h0m5s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"

"""What has to be announced when an instance changes: the one place where events come from.

`Announced` is what the world has been told about an instance. Everything that happens, whether a caller asked for it
or the registry did it by itself, is a step from one such state to the next, and the events are the difference. So the
same fact told twice is no event, and whatever was missed shows up as a difference later. Pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from toska_mesh.model import (
    HealthStatus,
    Instance,
    InstanceDeregistered,
    InstanceHealthChanged,
    InstanceId,
    InstanceRegistered,
    ServiceName,
)
from toska_mesh.model.metadata import own_metadata

Event = InstanceRegistered | InstanceDeregistered | InstanceHealthChanged

MANUAL = "Manual deregistration"
EXPIRED = "Expired: removed by the registry"
REMOVED = "Removed from the registry by somebody else"


@dataclass(frozen=True, slots=True)
class Announced:
    """One instance as the world knows it. `metadata` is the service's own, without bookkeeping."""

    service: ServiceName
    id: InstanceId
    address: str
    port: int
    metadata: Mapping[str, str]
    status: HealthStatus

    def has_content_of(self, other: "Announced") -> bool:
        return replace(self, status=other.status) == other


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every event carries besides what happened: where its id and time come from, and whose request caused it."""

    new_id: Callable[[], UUID]
    utcnow: Callable[[], datetime]
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """An instance about which the registry says something else than the world was told."""

    id: InstanceId
    before: Announced | None
    after: Announced | None
    output: str = ""


def announced_of(instance: Instance) -> Announced:
    return Announced(
        instance.service,
        instance.id,
        instance.endpoint.host,
        instance.endpoint.port,
        own_metadata(instance.metadata),
        instance.status,
    )


def events_between(
    before: Announced | None, after: Announced | None, stamp: Stamp, reason: str = MANUAL, output: str = ""
) -> tuple[Event, ...]:
    """The events that lead from `before` to `after`, in order; none when they are equal.

    `reason` is for a departure, `output` the words that came with a status. A new instance is taken for healthy, so
    that a registration is one event; any other first status is a second one.
    """
    if after is None:
        return () if before is None else (_deregistered(before, stamp, reason),)
    if before is None:
        return (_registered(after, stamp), *_status_events(HealthStatus.HEALTHY, after, stamp, output))
    if before.service != after.service:
        moved = _deregistered(before, stamp, f"The id was registered again for service {after.service}")
        return (moved, *events_between(None, after, stamp, reason, output))
    content = () if before.has_content_of(after) else (_registered(after, stamp),)
    return (*content, *_status_events(before.status, after, stamp, output))


def difference_of(instance_id: InstanceId, before: Announced | None, observed: Instance | None) -> Difference | None:
    """How what the registry shows of one instance differs from what was announced; None when it does not."""
    after = None if observed is None else announced_of(observed)
    if before == after:
        return None
    return Difference(instance_id, before, after, "" if observed is None else observed.output)


def departure_reason(before: Announced) -> str:
    """Why an instance that nobody deregistered through us is gone: the registry itself only reaps unhealthy ones."""
    return EXPIRED if before.status is HealthStatus.UNHEALTHY else REMOVED


def summary_of(before: Announced | None, after: Announced | None, output: str = "") -> tuple[str, str]:
    """What happened to an instance and why, in words for people who read the log."""
    if after is None:
        return "deregistered", departure_reason(before) if before else MANUAL
    if before is None:
        return "registered", "Registered through discovery, announced late"
    if before.service != after.service:
        return f"registered for {after.service}", f"The id was registered again, before for {before.service}"
    if before.status is not after.status:
        return f"{before.status.label} to {after.status.label}", output
    return "content", "Registered again through discovery, announced late"


def _registered(after: Announced, stamp: Stamp) -> InstanceRegistered:
    return InstanceRegistered(
        event_id=stamp.new_id(),
        timestamp=stamp.utcnow(),
        correlation_id=stamp.correlation_id,
        service=after.service,
        instance_id=after.id,
        address=after.address,
        port=after.port,
        metadata=after.metadata,
    )


def _deregistered(before: Announced, stamp: Stamp, reason: str) -> InstanceDeregistered:
    return InstanceDeregistered(
        event_id=stamp.new_id(),
        timestamp=stamp.utcnow(),
        correlation_id=stamp.correlation_id,
        service=before.service,
        instance_id=before.id,
        reason=reason,
    )


def _status_events(previous: HealthStatus, after: Announced, stamp: Stamp, output: str) -> tuple[Event, ...]:
    if previous is after.status:
        return ()
    return (
        InstanceHealthChanged(
            event_id=stamp.new_id(),
            timestamp=stamp.utcnow(),
            correlation_id=stamp.correlation_id,
            service=after.service,
            instance_id=after.id,
            previous=previous,
            current=after.status,
            output=output or None,
        ),
    )

"""What discovery knows about an instance besides the registry, and what it writes into the registry about it.

A `Record` is all that is needed to register an instance again after the registry lost it. Its bookkeeping also travels
as metadata in the registry, so that it survives the loss of this process's own store and reaches other replicas; there
it is taken off again before anybody sees it. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from toska_mesh.model import Instance, InstanceId, ServiceName
from toska_mesh.model import metadata as keys
from toska_mesh.model.rules import DEFAULT_INTERVAL_SECONDS, MIN_TTL_SECONDS, ttl_seconds


@dataclass(frozen=True, slots=True)
class Record:
    """One instance as last registered. `metadata` is the service's own, without bookkeeping."""

    service: ServiceName
    id: InstanceId
    address: str
    port: int
    metadata: Mapping[str, str]
    ttl_seconds: int
    registered_at: datetime
    owner: str | None = None

    def has_content_of(self, other: "Record") -> bool:
        """Whether both say the same about the instance, whoever said it and when."""
        return replace(self, registered_at=other.registered_at, owner=other.owner) == other

    def is_at_the_place_of(self, other: "Record") -> bool:
        """Whether requests to both go to the same service at the same place."""
        return (self.service, self.address, self.port) == (other.service, other.address, other.port)


def registry_metadata(record: Record) -> dict[str, str]:
    """The metadata to write: the service's own plus as much bookkeeping as the registry's limit leaves room for."""
    wanted = {keys.REGISTERED_AT: format_time(record.registered_at), keys.TTL_SECONDS: str(record.ttl_seconds)}
    if record.owner is not None and len(record.owner.encode()) <= keys.MAX_VALUE_CHARS:
        wanted = {keys.OWNER: record.owner, **wanted}
    room = keys.MAX_PAIRS - len(record.metadata)
    return {**record.metadata, **dict(list(wanted.items())[:room])}


def record_of(instance: Instance) -> Record | None:
    """The record of an instance that some discovery registered; None for one that came to the registry otherwise."""
    registered_at = parse_time(instance.metadata.get(keys.REGISTERED_AT, ""))
    if registered_at is None:
        return None
    ttl = instance.metadata.get(keys.TTL_SECONDS, "")
    return Record(
        service=instance.service,
        id=instance.id,
        address=instance.endpoint.host,
        port=instance.endpoint.port,
        metadata=keys.own_metadata(instance.metadata),
        ttl_seconds=max(MIN_TTL_SECONDS, int(ttl)) if _is_count(ttl) else ttl_seconds(DEFAULT_INTERVAL_SECONDS),
        registered_at=registered_at,
        owner=instance.metadata.get(keys.OWNER) or None,
    )


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds, `Z` at the end."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):  # within a day of the first or last year, an offset leads out of the calendar
        return None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 6

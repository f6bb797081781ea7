"""What the embedded registry holds: immutable values, and how they are written to a row and read back. Pure.

A value is replaced, never altered; so `is` tells whether an answer made from it is still good.
"""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson


class Status(StrEnum):
    PASSING = "passing"
    WARNING = "warning"
    CRITICAL = "critical"


class Behavior(StrEnum):
    """What happens to a session's keys when it ends."""

    RELEASE = "release"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Service:
    id: str
    name: str
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] | None = None
    """None when the registration said nothing: Consul's catalog then answers null."""
    address: str = ""
    port: int = 0
    tagged_addresses: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    weights: tuple[int, int] = (1, 1)
    """For passing and for warning."""
    enable_tag_override: bool = False
    create_index: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    id: str
    name: str
    status: Status = Status.CRITICAL
    notes: str = ""
    output: str = ""
    service_id: str = ""
    """Empty for a check of the node."""
    service_name: str = ""
    service_tags: tuple[str, ...] = ()
    kind: str = "ttl"
    ttl_seconds: float = 0.0
    """0 = never expires."""
    deregister_after_seconds: float = 0.0
    """How long the check may be critical before its service is removed; 0 = for ever."""
    create_index: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of the key-value store."""

    key: str
    value: bytes = b""
    flags: int = 0
    session: str = ""
    lock_index: int = 0
    create_index: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    id: str
    name: str
    behavior: Behavior = Behavior.RELEASE
    lock_delay_ns: int = 15_000_000_000
    ttl: str = ""
    """As it was given; `ttl_seconds` is what it means, 0 = no expiry."""
    ttl_seconds: float = 0.0
    node_checks: tuple[str, ...] = ("serfHealth",)
    service_checks: tuple[str, ...] | None = None
    create_index: int = 0
    modify_index: int = 0


def to_row(value: Service | Check | Entry | Session) -> bytes:
    """The stored form. Field names are part of the file format."""
    return orjson.dumps(value, default=lambda raw: b64encode(raw).decode())


def service_from_row(row: bytes) -> Service:
    raw = orjson.loads(row)
    tagged = {name: (address, port) for name, (address, port) in raw.pop("tagged_addresses").items()}
    return Service(**{**raw, "tags": tuple(raw["tags"]), "weights": tuple(raw["weights"]), "tagged_addresses": tagged})


def check_from_row(row: bytes) -> Check:
    raw = orjson.loads(row)
    return Check(**{**raw, "status": Status(raw["status"]), "service_tags": tuple(raw["service_tags"])})


def entry_from_row(row: bytes) -> Entry:
    raw: dict[str, Any] = orjson.loads(row)
    return Entry(**{**raw, "value": b64decode(raw["value"])})


def session_from_row(row: bytes) -> Session:
    raw = orjson.loads(row)
    service_checks = raw["service_checks"]
    return Session(
        **{
            **raw,
            "behavior": Behavior(raw["behavior"]),
            "node_checks": tuple(raw["node_checks"]),
            "service_checks": None if service_checks is None else tuple(service_checks),
        }
    )

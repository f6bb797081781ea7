"""What a caller may ask for. Every refusal names the field, the value and what would be right.

Limits of metadata are the registry's (`model.metadata`): checked here because the registry's own refusal would name
neither the field nor the limit. Pure.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from toska_mesh.discovery import address
from toska_mesh.errors import MeshError
from toska_mesh.model import HealthStatus, InstanceId, ServiceName
from toska_mesh.model import metadata as keys

DEFAULT_INTERVAL_SECONDS = 30
MAX_INTERVAL_SECONDS = 86_400
TTL_GRACE_SECONDS = 5
MIN_TTL_SECONDS = 10
MAX_NAME_CHARS = 128
MAX_ID_CHARS = 255
MAX_OUTPUT_CHARS = 4_000
"""The registry keeps a check's last words; longer ones are cut, they are for people."""

REGISTRY_OWN_NAME = "consul"

_EMPTY: Mapping[str, str] = MappingProxyType({})
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:@~+=-]*\Z")
_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_PATH = re.compile(r"/[\x21-\x7e]*\Z")


class InvalidArgumentError(MeshError):
    """The caller asked for something that cannot be; the text is meant for the caller."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """What a caller says about its health check; zero and empty mean "not said"."""

    endpoint: str = ""
    interval_seconds: int = 0
    timeout_seconds: int = 0
    unhealthy_threshold: int = 0


@dataclass(frozen=True, slots=True)
class RegisterInstance:
    """A registration as asked for, before the address is resolved and the id is chosen."""

    service: ServiceName
    id: InstanceId
    address: str
    port: int
    metadata: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    health_check: HealthCheck = field(default_factory=HealthCheck)


def ttl_seconds(interval_seconds: int) -> int:
    """How long a beat keeps an instance alive: the interval (30 s when not said) plus 5 s, at least 10 s."""
    interval = interval_seconds if interval_seconds > 0 else DEFAULT_INTERVAL_SECONDS
    return max(MIN_TTL_SECONDS, interval + TTL_GRACE_SECONDS)


def check_registration(asked: RegisterInstance) -> RegisterInstance:
    """The registration with what may be filled in filled in. Raises InvalidArgumentError at the first wrong field."""
    check_service_name(asked.service)
    if asked.id:
        check_instance_id(asked.id)
    if reason := address.problem_with(asked.address):
        raise InvalidArgumentError(f"address {asked.address!r} {reason}")
    if not 0 < asked.port < 65536:
        raise InvalidArgumentError(f"port {asked.port} is not between 1 and 65535")
    if asked.health_check.interval_seconds > MAX_INTERVAL_SECONDS:
        raise InvalidArgumentError(
            f"healthCheck.intervalSeconds {asked.health_check.interval_seconds} is above {MAX_INTERVAL_SECONDS} (a day)"
        )
    _check_path("healthCheck.endpoint", asked.health_check.endpoint)
    metadata = dict(asked.metadata)
    if asked.health_check.endpoint and not metadata.get(keys.HEALTH_CHECK_ENDPOINT):
        metadata[keys.HEALTH_CHECK_ENDPOINT] = asked.health_check.endpoint  # else nobody would ever probe it
    check_metadata(metadata)
    return RegisterInstance(asked.service, asked.id, asked.address, asked.port, metadata, asked.health_check)


def check_service_name(name: str) -> None:
    if not name:
        raise InvalidArgumentError("serviceName is empty; give the service a name such as `orders`")
    if len(name) > MAX_NAME_CHARS or not _NAME.match(name):
        raise InvalidArgumentError(
            f"serviceName {_shown(name)} is not 1 to {MAX_NAME_CHARS} letters, digits, dots, underscores or hyphens"
            " that begin and end with a letter or digit"
        )
    if name.lower() == REGISTRY_OWN_NAME:
        raise InvalidArgumentError(f"serviceName {name!r} is the registry's own name; choose another")


def check_instance_id(instance_id: str) -> None:
    if not instance_id:
        raise InvalidArgumentError("serviceId is empty; use the id that Register answered")
    if len(instance_id) > MAX_ID_CHARS or not _ID.match(instance_id):
        raise InvalidArgumentError(
            f"serviceId {_shown(instance_id)} is not 1 to {MAX_ID_CHARS} characters of A-Z a-z 0-9 . _ : @ ~ + = -"
            " that begin with a letter, digit or underscore"
        )


def check_metadata(metadata: Mapping[str, str]) -> None:
    if len(metadata) > keys.MAX_PAIRS:
        raise InvalidArgumentError(f"metadata has {len(metadata)} pairs; at most {keys.MAX_PAIRS} are possible")
    for key, value in metadata.items():
        if not 0 < len(key) <= keys.MAX_KEY_CHARS or not _KEY.match(key):
            raise InvalidArgumentError(
                f"metadata key {_shown(key)} is not 1 to {keys.MAX_KEY_CHARS} letters, digits, underscores or hyphens"
                " (dots are not possible)"
            )
        if key.lower().startswith(keys.RESERVED_PREFIX):
            raise InvalidArgumentError(f"metadata key {key!r} begins with {keys.RESERVED_PREFIX!r}, which is reserved")
        size = len(value.encode())
        if size > keys.MAX_VALUE_CHARS:
            raise InvalidArgumentError(
                f"metadata value of {key!r} has {size} bytes; at most {keys.MAX_VALUE_CHARS} are possible"
            )
    _check_scheme(metadata.get(keys.SCHEME, ""))
    _check_path(f"metadata {keys.HEALTH_CHECK_ENDPOINT}", metadata.get(keys.HEALTH_CHECK_ENDPOINT, ""))
    for key in (keys.TCP_PORT, keys.GRPC_PORT):
        _check_port_text(key, metadata.get(key, ""))


def check_status(status: int) -> HealthStatus:
    """A status that somebody may report. `Unknown` says nothing, so it must not keep an instance alive."""
    if status in (HealthStatus.HEALTHY, HealthStatus.UNHEALTHY, HealthStatus.DEGRADED):
        return HealthStatus(status)
    raise InvalidArgumentError(f"status {status} says nothing; report 1 (Healthy), 2 (Unhealthy) or 3 (Degraded)")


def shorten_output(output: str) -> str:
    return output if len(output) <= MAX_OUTPUT_CHARS else output[: MAX_OUTPUT_CHARS - 1] + "…"


def _check_scheme(scheme: str) -> None:
    if scheme and scheme.lower() not in keys.SCHEMES:
        raise InvalidArgumentError(f"metadata scheme {_shown(scheme)} is not one of {', '.join(keys.SCHEMES)}")


def _check_path(name: str, path: str) -> None:
    # It is written right behind `host:port`: without the slash it could change the host that is asked.
    if path and not _PATH.match(path):
        raise InvalidArgumentError(f"{name} {_shown(path)} is not a path that begins with `/`, such as /health")


def _check_port_text(key: str, text: str) -> None:
    if text and not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) < 65536):
        raise InvalidArgumentError(f"metadata {key} {_shown(text)} is not a port between 1 and 65535")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")

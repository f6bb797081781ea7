"""Registration bodies: what they may hold, what is wrong with them, and the values they mean. Pure.

Order and wording of the refusals are Consul 1.8.7's. What only a full Consul can do (probing checks, sidecars) is
refused with a sentence that says so.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address
from typing import Any

from toska_mesh.registryd.api.http import ApiError, request_error
from toska_mesh.registryd.gojson import (
    BodyError,
    Struct,
    anything,
    boolean,
    duration,
    integer,
    named,
    text,
    text_map,
    texts,
)
from toska_mesh.registryd.values import Check, Service, Status

_CHECK_FIELDS = named(
    check_id=text,
    name=text,
    status=text,
    notes=text,
    script_args=texts,
    args=texts,
    http=text,
    header=anything,
    method=text,
    body=text,
    tcp=text,
    interval=duration,
    alias_node=text,
    alias_service=text,
    docker_container_id=text,
    shell=text,
    grpc=text,
    grpc_use_tls=boolean,
    tls_skip_verify=boolean,
    timeout=duration,
    ttl=duration,
    success_before_passing=integer,
    failures_before_critical=integer,
    proxy_http=text,
    proxy_grpc=text,
    deregister_critical_service_after=duration,
    output_max_size=integer,
)
_CHECK_TYPE = Struct("structs.CheckType", _CHECK_FIELDS)
_CHECK_DEFINITION = Struct(
    "structs.CheckDefinition",
    {name: pair for name, pair in _CHECK_FIELDS.items() if name not in ("check_id", "checkid")}
    | named(id=text, service_id=text, token=text),
)
_ADDRESS = Struct("structs.ServiceAddress", named(address=text, port=integer))
_WEIGHTS = Struct("structs.Weights", named(passing=integer, warning=integer))
_SERVICE = Struct(
    "structs.ServiceDefinition",
    named(
        kind=text,
        id=text,
        name=text,
        tags=texts,
        address=text,
        tagged_addresses=_ADDRESS.read_map,
        meta=text_map,
        port=integer,
        check=_CHECK_TYPE.read,
        checks=_CHECK_TYPE.read_list,
        weights=_WEIGHTS.read,
        token=text,
        enable_tag_override=boolean,
        proxy=anything,
        connect=anything,
    ),
)
_CHECK_UPDATE = Struct("agent.checkUpdate", named(status=text, output=text))

_META_KEY = re.compile(r"[A-Za-z0-9_-]+")
_UNROUTABLE = ("0.0.0.0", "::", "[::]")
_PROBES = ("script_args", "args", "http", "tcp", "grpc", "docker_container_id", "alias_node", "alias_service")
_INTERVAL_PROBES = ("script_args", "args", "http", "tcp", "grpc", "docker_container_id")
TTL_ONLY = (
    "the embedded registry keeps TTL checks only: it does not probe (HTTP, TCP, gRPC, script, Docker and alias checks "
    "need a Consul agent; in the mesh probing is the health monitor's job)"
)


def read(struct: Struct, value: object) -> dict[str, Any]:
    try:
        return struct.read(value)
    except BodyError as exc:
        raise request_error(exc) from exc


def service_registration(value: object) -> tuple[Service, list[Check]]:
    """The instance and its checks. Raises ApiError."""
    found = read(_SERVICE, value)
    name = found.get("name", "")
    if not name:
        raise ApiError(400, "Missing service name")
    address = found.get("address", "")
    if address in _UNROUTABLE:
        raise ApiError(400, "Invalid service address")
    weights = _weights(found.get("weights"))
    _check_meta(found.get("meta") or {})
    specs = [spec for spec in [found.get("check"), *found.get("checks", ())] if spec and any(spec.values())]
    for spec in specs:
        _check_spec(spec)
        if spec.get("status", "") not in ("", *Status):
            raise ApiError(400, "Status for checks must 'passing', 'warning', 'critical'")
    if found.get("kind") or _says_something(found.get("proxy")) or _says_something(found.get("connect")):
        raise ApiError(400, "the embedded registry has no Connect: Kind, Proxy and Connect need a Consul agent")
    port = found.get("port", 0)
    service = Service(
        id=found.get("id") or name,
        name=name,
        tags=found.get("tags", ()),
        meta=found.get("meta"),
        address=address,
        port=port,
        tagged_addresses=_tagged_addresses(found.get("tagged_addresses", {}), address, port),
        weights=weights,
        enable_tag_override=found.get("enable_tag_override", False),
    )
    checks = []
    for number, spec in enumerate(specs, 1):
        default_id = f"service:{service.id}" + (f":{number}" if len(specs) > 1 else "")
        default_name = f"Service '{service.name}' check"
        checks.append(_check(spec, spec.get("check_id") or default_id, spec.get("name") or default_name, service.id))
    return service, checks


def check_registration(value: object) -> Check:
    """A check on its own. Raises ApiError."""
    found = read(_CHECK_DEFINITION, value)
    if not found.get("name"):
        raise ApiError(400, "Missing check name")
    if found.get("status", "") not in ("", *Status):
        raise ApiError(400, "Bad check status")
    _check_spec(found)
    return _check(found, found.get("id") or found["name"], found["name"], found.get("service_id", ""))


def check_update(value: object) -> tuple[Status, str]:
    found = read(_CHECK_UPDATE, value)
    status = found.get("status", "")
    if status not in tuple(Status):
        raise ApiError(400, f"Invalid check status: '{status}'")
    return Status(status), found.get("output", "")


def _check(spec: Mapping[str, Any], check_id: str, name: str, service_id: str) -> Check:
    return Check(
        id=check_id,
        name=name,
        status=Status(spec.get("status") or Status.CRITICAL),
        notes=spec.get("notes", ""),
        service_id=service_id,
        ttl_seconds=spec["ttl"] / 1e9,
        deregister_after_seconds=max(spec.get("deregister_critical_service_after", 0), 0) / 1e9,
    )


def _check_spec(spec: Mapping[str, Any]) -> None:
    ttl, interval = spec.get("ttl", 0), spec.get("interval", 0)
    is_interval = any(spec.get(kind) for kind in _INTERVAL_PROBES)
    is_alias = bool(spec.get("alias_node") or spec.get("alias_service"))
    reason = ""
    if interval > 0 and ttl > 0:
        reason = "Interval and TTL cannot both be specified"
    elif is_interval and interval <= 0:
        reason = "Interval must be > 0 for Script, HTTP, or TCP checks"
    elif is_interval and is_alias:
        reason = "Interval cannot be set for Alias checks"
    elif is_alias and ttl > 0:
        reason = "TTL must be not be set for Alias checks"
    elif not is_interval and not is_alias and ttl <= 0:
        reason = "TTL must be > 0 for TTL checks"
    elif any(spec.get(kind) for kind in _PROBES):
        reason = TTL_ONLY
    if reason:
        raise ApiError(400, f"Invalid check: {reason}")


def _weights(found: Mapping[str, int] | None) -> tuple[int, int]:
    if found is None:
        return 1, 1
    passing, warning = found.get("passing", 0), found.get("warning", 0)
    if passing < 1:
        raise ApiError(400, "Invalid Weights: Passing must be greater than 0")
    if warning < 0:
        raise ApiError(400, "Invalid Weights: Warning must be greater or equal than 0")
    if passing > 65535 or warning > 65535:
        raise ApiError(400, "Invalid Weights: DNS Weight must be between 0 and 65535")
    return passing, warning


def _check_meta(meta: Mapping[str, str]) -> None:
    if len(meta) > 64:
        raise ApiError(400, "Invalid Service Meta: Node metadata cannot contain more than 64 key/value pairs")
    for key, value in meta.items():
        if reason := _meta_fault(key, value):
            raise ApiError(400, f"Invalid Service Meta: Couldn't load metadata pair ('{key}', '{value}'): {reason}")


def _meta_fault(key: str, value: str) -> str:
    if not key:
        return "Key cannot be blank"
    if not _META_KEY.fullmatch(key):
        return "Key contains invalid characters"
    if len(key) > 128:
        return "Key is too long (limit: 128 characters)"
    if key.startswith("consul-"):
        return "Key prefix 'consul-' is reserved for internal use"
    if len(value.encode("utf-8", "replace")) > 512:
        return "Value is too long (limit: 512 characters)"
    return ""


def _tagged_addresses(given: Mapping[str, Mapping[str, Any]], address: str, port: int) -> Mapping[str, tuple[str, int]]:
    """What was given, and the service's own address under its family's names."""
    tagged = {name: (item.get("address", ""), item.get("port", 0)) for name, item in given.items()}
    try:
        family = "ipv4" if isinstance(ip_address(address), IPv4Address) else "ipv6"
    except ValueError:
        return dict(sorted(tagged.items()))
    for name in (f"lan_{family}", f"wan_{family}"):
        tagged.setdefault(name, (address, port))
    return dict(sorted(tagged.items()))


def _says_something(value: object) -> bool:
    """Whether a Connect or Proxy structure asks for anything; clients send empty ones as a matter of course."""
    if isinstance(value, Mapping):
        return any(_says_something(item) for item in value.values())
    if isinstance(value, list):
        return bool(value)
    return value not in (None, False, "", 0)

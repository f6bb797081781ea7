"""What to probe, and whether that is allowed: from an instance's metadata to a `ProbePlan`. Pure.

Addresses and paths are written by whoever may register a service, so they are hostile input: the request goes to the
registered address and nowhere else, and never to a link-local one, where clouds hand out credentials. What cannot or
must not be probed gives a plan of kind `none` with the reason; it is neutral, never a failure of the instance.
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum

from toska_mesh.model import Instance
from toska_mesh.model.metadata import GRPC_PORT, HEALTH_CHECK_ENDPOINT, SCHEME, TCP_PORT

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

NOT_CONFIGURED = "No probe configuration available"


class ProbeKind(StrEnum):
    """Values of `probeType` in the status API."""

    HTTP = "http"
    TCP = "tcp"
    GRPC = "grpc"
    NONE = "none"
    CIRCUIT_BREAKER = "circuit-breaker"
    """Never planned; reported while the breaker skips a probe."""


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """How one instance is probed. Equal plans ask the same thing, so a changed plan starts a new judgement."""

    kind: ProbeKind
    host: str = ""
    """A DNS name or an IP address without brackets."""
    port: int = 0
    path: str = ""
    """HTTP only: path and query, origin form (RFC 9112 section 3.2.1)."""
    tls: bool = False
    address: IpAddress | None = None
    """The host when it is an IP address; a name is resolved and checked at each probe."""
    reason: str = ""
    """Why there is no probe; empty for every kind but `none`."""

    @property
    def is_probed(self) -> bool:
        return self.kind is not ProbeKind.NONE

    @property
    def authority(self) -> str:
        """`host:port` for the Host header, IPv6 in brackets (RFC 3986 section 3.2.2)."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# Metadata services outside the link-local ranges: AWS over IPv6, Alibaba, Azure's wire server.
_METADATA_SERVICES = frozenset(
    ipaddress.ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")
)
# Origin form: visible ASCII without the fragment mark. A second leading slash is read as an authority by some servers.
_PATH = re.compile(r"/(?!/)[!\"$-~]*", re.ASCII)
_HTTP_SCHEMES = {"http": False, "https": True}
_GRPC_SCHEMES = {"grpc": False, "grpcs": True}


def plan_probe(instance: Instance, *, allow_link_local: bool = False) -> ProbePlan:
    """Decide how to probe `instance`.

    `scheme=grpc` (or `grpcs`) wins; then `health_check_endpoint`, `grpc_port`, `scheme=tcp`, `tcp_port`, in this order,
    because every SDK writes an HTTP endpoint by default while the ports are written by an operator who has none.
    """
    metadata = instance.metadata
    scheme = metadata.get(SCHEME, "").strip().lower() or "http"
    endpoint = metadata.get(HEALTH_CHECK_ENDPOINT, "").strip()
    host, own_port = instance.endpoint.host, instance.endpoint.port
    grpc_port, tcp_port = metadata.get(GRPC_PORT, "").strip(), metadata.get(TCP_PORT, "").strip()
    try:
        if scheme in _GRPC_SCHEMES:
            port = _port(GRPC_PORT, grpc_port) if grpc_port else own_port
            plan = _plan(ProbeKind.GRPC, host, port, tls=_GRPC_SCHEMES[scheme])
        elif endpoint and scheme != "tcp":
            plan = _plan(ProbeKind.HTTP, host, own_port, path=_path(endpoint), tls=_is_https(scheme))
        elif grpc_port:
            plan = _plan(ProbeKind.GRPC, host, _port(GRPC_PORT, grpc_port), tls=scheme == "https")
        elif tcp_port or scheme == "tcp":
            plan = _plan(ProbeKind.TCP, host, _port(TCP_PORT, tcp_port) if tcp_port else own_port)
        else:
            return ProbePlan(ProbeKind.NONE, reason=NOT_CONFIGURED)
    except ValueError as exc:
        return ProbePlan(ProbeKind.NONE, reason=f"Not probed: {exc}")
    if plan.address is not None and (objection := object_to(plan.address, allow_link_local=allow_link_local)):
        return ProbePlan(ProbeKind.NONE, reason=f"Not probed: {objection}")
    return plan


def object_to(address: IpAddress, *, allow_link_local: bool = False) -> str:
    """Why `address` must not be probed; empty when it may be. Asked again for what a name resolved to."""
    bare = address
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        bare = address.ipv4_mapped
    if bare.is_unspecified:
        return f"address {address} names no host"
    if bare.is_multicast or bare == ipaddress.IPv4Address("255.255.255.255"):
        return f"address {address} is no single host"
    if not allow_link_local and (bare.is_link_local or bare in _METADATA_SERVICES):
        return (
            f"address {address} is link-local or a cloud's metadata service; HEALTHMONITOR_ALLOW_LINK_LOCAL permits it"
        )
    return ""


def _plan(kind: ProbeKind, host: str, port: int, *, path: str = "", tls: bool = False) -> ProbePlan:
    address: IpAddress | None = None
    host = host.strip().removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})", host):
            raise ValueError(f"address {host[:80]!r} is neither a host name nor an IP address") from None
    return ProbePlan(kind, host, port, path, tls, address)


def _is_https(scheme: str) -> bool:
    if scheme not in _HTTP_SCHEMES:
        raise ValueError(f"scheme {scheme[:40]!r} cannot be probed; use http, https, grpc, grpcs or tcp")
    return _HTTP_SCHEMES[scheme]


def _path(endpoint: str) -> str:
    if not _PATH.fullmatch(endpoint):
        raise ValueError(f"{HEALTH_CHECK_ENDPOINT} {endpoint[:80]!r} must be a path that starts with one '/'")
    return endpoint


def _port(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise ValueError(f"{key} {text[:40]!r} is no port between 1 and 65535")
    return int(text)

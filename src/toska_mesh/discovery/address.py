"""Which address an instance is registered under: the one it asks for, or the one it calls from.

Services in containers bind `0.0.0.0` and advertise just that, so an address that nobody can reach is replaced by the
caller's. What is refused here would let a registration steer the gateway and the health probes to places that are no
service: link-local addresses (cloud metadata), multicast, and texts that only look like a host. Pure.
"""

import ipaddress
import re
from functools import lru_cache
from urllib.parse import unquote

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

LAST_RESORT = "127.0.0.1"
"""When neither the request nor the transport names an address (a Unix socket): the caller is on this machine."""

MAX_HOST_CHARS = 253  # RFC 1035 section 2.3.4, written without the trailing dot
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z")
_LOOKS_NUMERIC = re.compile(r"([0-9]+|0[xX][0-9A-Fa-f]*)\Z")


def parse_ip(text: str) -> IPAddress | None:
    """The address in `text`, brackets removed and IPv4-mapped IPv6 unwrapped; None when it is none."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


@lru_cache(maxsize=4096)  # a connection has the same peer for all its beats
def peer_ip(peer: str) -> IPAddress | None:
    """The address in gRPC's peer text (`ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5`); None for other transports."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    return parse_ip(rest.rpartition(":")[0])


def problem_with(address: str) -> str | None:
    """Why `address` cannot be an instance's address, or None. Empty and unspecified ones are fine: see `resolve`."""
    host = address.strip()
    ip = parse_ip(host)
    if ip is not None:
        if getattr(ip, "scope_id", None):
            return "has a zone, which means nothing on another machine; use an address without `%`"
        if ip.is_link_local or ip.is_multicast or ip == ipaddress.IPv4Address("255.255.255.255"):
            return "is a link-local, multicast or broadcast address; use a host name or a unicast address"
        return None
    if not host:
        return None
    labels = host.removesuffix(".").split(".")
    if len(host) > MAX_HOST_CHARS or not all(_LABEL.match(label) for label in labels):
        return "is neither an IP address nor a host name; use for example 10.0.0.7 or orders.internal, without a port"
    if _LOOKS_NUMERIC.match(labels[-1]):
        # WHATWG URL, "ends in a number": many libraries read 127.1 or 0x7f000001 as an IPv4 address.
        return "looks like an IPv4 address but is none; write four decimal numbers"
    return None


def resolve(requested: str, caller: IPAddress | None) -> str:
    """The address to register; `requested` has passed `problem_with`.

    A host name or a reachable IP is kept. Nothing (empty, `0.0.0.0`, `::`) becomes the caller's address, loopback or
    not. A loopback address means this machine to the caller, so a caller from elsewhere is registered under its own.
    """
    host = requested.strip().removesuffix(".")
    ip = parse_ip(host)
    if host and ip is None:
        return host
    if ip is None or ip.is_unspecified:
        return LAST_RESORT if caller is None or caller.is_unspecified else str(caller)
    if ip.is_loopback and caller is not None and not (caller.is_loopback or caller.is_unspecified):
        return str(caller)
    return str(ip)

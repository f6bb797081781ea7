"""Which address an instance is registered under: the one it asks for, or the one it calls from.

Services in containers bind `0.0.0.0` and advertise just that, so an address that nobody can reach is replaced by the
caller's. What may not be an address at all is refused before (`model.rules`). Pure.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import unquote

from toska_mesh.model.rules import IPAddress, parse_ip

_LOOPBACK_4, _LOOPBACK_6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
LAST_RESORT = str(_LOOPBACK_4)
"""When neither the request nor the transport names an address (a Unix socket): the caller is on this machine."""


@lru_cache(maxsize=4096)  # a connection has the same peer for all its beats
def peer_ip(peer: str) -> IPAddress | None:
    """The address in gRPC's peer text (`ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5`); None for other transports."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    return parse_ip(rest.rpartition(":")[0])


def resolve(requested: str, caller: IPAddress | None) -> str:
    """The address to register; `requested` has passed `rules.problem_with_address`.

    A host name or a reachable IP is kept. Nothing (empty, `0.0.0.0`, `::`) becomes the caller's address, loopback or
    not. A loopback address means this machine to the caller, so a caller from elsewhere is registered under its own.
    """
    host = requested.strip().removesuffix(".")
    ip = parse_ip(host)
    if host and ip is None:
        return host
    if ip is not None and ip.version == 4 and ip.is_unspecified and caller == _LOOPBACK_6:
        return str(_LOOPBACK_4)  # it listens on all of IPv4, and came by the other name of this machine
    if ip is None or ip.is_unspecified:
        return LAST_RESORT if caller is None or caller.is_unspecified else str(caller)
    if ip.is_loopback and caller is not None and not (caller.is_loopback or caller.is_unspecified):
        return str(caller)
    return str(ip)

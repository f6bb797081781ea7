"""Who the client is, and what the upstream is told about it: X-Forwarded-* and Forwarded (RFC 7239). Pure.

A client can write any header, so its own values count only when the peer that sent them is a trusted proxy. The
client's address is then the rightmost one in the list that is not itself a trusted proxy.
"""

import ipaddress
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HOPS = 64
"""More addresses than any real chain of proxies has; a longer list is cut at its untrusted (left) end."""


class TrustedProxies:
    """Answers whether an address belongs to a trusted proxy; remembers a bounded number of answers."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        self._known: dict[str, bool] = {}

    def trusts(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            known = self._look_up(address)
            if len(self._known) < 4096:
                self._known[address] = known
        return known

    def _look_up(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        ip = mapped or ip
        return any(ip in network for network in self._networks if network.version == ip.version)


def plain_address(text: str) -> str:
    """An address from a forwarded list without quotes, brackets, port or zone; empty when it is no IP address.

    `"[2001:db8::1]:4711"` (RFC 7239 section 6) and `192.0.2.43:47011` are seen in the field. A zone means something to
    the machine that wrote it alone (RFC 4007 section 6), and any text can stand in it.
    """
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return ""
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.IPv6Address(int(ip)))
    return str(ip)


def client_address(peer: str, forwarded_for: str, proxies: TrustedProxies) -> str:
    """The rightmost address that is no trusted proxy, reading from the peer backwards through `X-Forwarded-For`.

    An entry that is no address ends the walk: what lies left of it cannot be believed.
    """
    address = peer
    for entry in reversed(forwarded_for.split(",")[-MAX_HOPS:]):
        if not proxies.trusts(address):
            break
        candidate = plain_address(entry)
        if not candidate:
            break
        address = candidate
    return address


def forwarded_element(peer: str, host: bytes, scheme: str) -> bytes:
    """One element of the `Forwarded` header (RFC 7239 section 4)."""
    node = f'"[{peer}]"' if ":" in peer else peer
    quoted_host = host.replace(b"\\", b"").replace(b'"', b"")
    return b'for=%b;host="%b";proto=%b' % (node.encode(), quoted_host, scheme.encode())

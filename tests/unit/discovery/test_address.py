"""Which address is registered."""

import ipaddress

import pytest

from toska_mesh.discovery.address import peer_ip, resolve
from toska_mesh.model.rules import parse_ip, problem_with_address

ROUTABLE = ipaddress.ip_address("10.9.8.7")
LOOPBACK = ipaddress.ip_address("127.0.0.1")
LOOPBACK_6 = ipaddress.IPv6Address("::1")


@pytest.mark.parametrize(
    ("asked", "caller", "registered"),
    [
        pytest.param("10.0.0.5", ROUTABLE, "10.0.0.5", id="a reachable address is kept"),
        pytest.param("orders.internal", ROUTABLE, "orders.internal", id="a host name is kept"),
        pytest.param("  10.0.0.5 ", ROUTABLE, "10.0.0.5", id="blanks around do not count"),
        pytest.param("2001:db8::1", ROUTABLE, "2001:db8::1", id="IPv6"),
        pytest.param("[2001:db8::1]", ROUTABLE, "2001:db8::1", id="brackets are taken off"),
        pytest.param("::ffff:10.0.0.5", ROUTABLE, "10.0.0.5", id="mapped IPv4 is unwrapped"),
        pytest.param("", ROUTABLE, "10.9.8.7", id="nothing becomes the caller"),
        pytest.param("0.0.0.0", ROUTABLE, "10.9.8.7", id="unspecified becomes the caller"),
        pytest.param("::", ROUTABLE, "10.9.8.7", id="unspecified IPv6 becomes the caller"),
        pytest.param("0.0.0.0", LOOPBACK, "127.0.0.1", id="unspecified becomes a loopback caller too"),
        pytest.param("0.0.0.0", LOOPBACK_6, "127.0.0.1", id="all of IPv4 is not at the IPv6 name of this machine"),
        pytest.param("::", LOOPBACK_6, "::1", id="all of IPv6 is"),
        pytest.param("", None, "127.0.0.1", id="no caller known"),
        pytest.param("127.0.0.1", ROUTABLE, "10.9.8.7", id="loopback from elsewhere becomes the caller"),
        pytest.param("::1", ROUTABLE, "10.9.8.7", id="IPv6 loopback from elsewhere becomes the caller"),
        pytest.param("127.0.0.1", LOOPBACK, "127.0.0.1", id="loopback from here is kept"),
        pytest.param("127.0.0.1", None, "127.0.0.1", id="loopback is kept when the caller is unknown"),
        pytest.param("localhost", ROUTABLE, "localhost", id="a name is a name"),
    ],
)
def test_resolve(asked: str, caller: ipaddress.IPv4Address | ipaddress.IPv6Address | None, registered: str) -> None:
    assert problem_with_address(asked) is None
    assert resolve(asked, caller) == registered


@pytest.mark.parametrize(
    "address",
    [
        "user@host",
        "host/path",
        "host:80",
        "http://host",
        "ho st",
        "-host",
        "host..name",
        "a" * 64,
        "169.254.169.254",
        "fe80::1",
        "fe80::1%eth0",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "127.1",
        "0x7f000001",
        "2130706433",
        "1.2.3.4.5",
        "hôte",
    ],
)
def test_what_is_no_address_of_a_service(address: str) -> None:
    assert problem_with_address(address)


@pytest.mark.parametrize(
    ("peer", "ip"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:[2001:db8::1]:4711", "2001:db8::1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[::ffff:10.0.0.1]:4711", "10.0.0.1"),
        ("unix:/run/x.sock", None),
        ("", None),
        ("ipv4:nonsense", None),
    ],
)
def test_the_peers_address(peer: str, ip: str | None) -> None:
    assert peer_ip(peer) == (None if ip is None else ipaddress.ip_address(ip))


def test_no_ip_is_none() -> None:
    assert parse_ip("orders") is None

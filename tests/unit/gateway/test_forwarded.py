"""Whom the gateway believes, and what it says about the client."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.gateway.forwarded import TrustedProxies, client_address, forwarded_element, plain_address

PROXIES = TrustedProxies([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")])


@pytest.mark.parametrize(
    ("peer", "given", "client"),
    [
        ("192.0.2.1", "6.6.6.6", "192.0.2.1"),
        ("10.0.0.1", "6.6.6.6", "6.6.6.6"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "7.7.7.7, 6.6.6.6", "6.6.6.6"),
        ("10.0.0.1", "7.7.7.7, 6.6.6.6, 10.0.0.2", "6.6.6.6"),
        ("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "6.6.6.6, garbage, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "6.6.6.6:4711", "6.6.6.6"),
        ("10.0.0.1", '"[2001:db9::1]:4711"', "2001:db9::1"),
        ("10.0.0.1", "2001:db9::1, [2001:db8::5]", "2001:db9::1"),
        ("2001:db8::1", "::ffff:6.6.6.6", "6.6.6.6"),
        ("10.0.0.1", "fe80::1%eth0", "fe80::1"),
        ("10.0.0.1", 'fe80::1%a"b\\', "fe80::1"),
        ("10.0.0.1", '"[fe80::1%25a"b]:1"', "fe80::1"),
        ("10.0.0.1", "6.6.6.6%a", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9, 2001:db8::5%a, 2001:db8::6%b", "9.9.9.9"),
        ("10.0.0.1", "1.1.1.1," + "10.0.0.2," * 500 + "10.0.0.2", "10.0.0.2"),
    ],
)
def test_the_rightmost_untrusted_address_is_the_client(peer: str, given: str, client: str) -> None:
    assert client_address(peer, given, PROXIES) == client


@given(st.text(max_size=60) | st.text(max_size=9).map("fe80::1%".__add__))
def test_any_text_gives_an_address(given: str) -> None:
    address = client_address("10.0.0.1", given, PROXIES)
    assert ipaddress.ip_address(address)
    assert set(address) <= set("0123456789abcdef.:")


@pytest.mark.parametrize("text", ["", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "[::1", "a:b:c", "1.2.3.4, "])
def test_plain_address_of_nonsense(text: str) -> None:
    assert plain_address(text) in ("", "::1")


def test_mapped_addresses_are_trusted_as_their_own_kind() -> None:
    assert PROXIES.trusts("::ffff:10.1.1.1")
    assert not PROXIES.trusts("::ffff:11.1.1.1")
    assert not PROXIES.trusts("unknown")


def test_forwarded_element() -> None:
    assert forwarded_element("1.2.3.4", b"a:80", "http") == b'for=1.2.3.4;host="a:80";proto=http'
    assert forwarded_element("::1", b'a"\\b', "https") == b'for="[::1]";host="ab";proto=https'

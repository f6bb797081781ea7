"""From a parsed head to what the upstream gets."""

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.gateway import problems
from toska_mesh.gateway.forwarded import TrustedProxies
from toska_mesh.gateway.problems import Problem
from toska_mesh.gateway.request import Peer, RequestHead, make_head, read_block
from toska_mesh.telemetry.trace import RequestIds

Fields = list[tuple[bytes, bytes]]
HOST = (b"Host", b"shop.example")


def read(
    *fields: tuple[bytes, bytes],
    method: bytes = b"GET",
    target: bytes = b"/api/orders/",
    version: str = "1.1",
    address: str = "192.0.2.1",
) -> RequestHead:
    peer = Peer(address, "http", TrustedProxies([ipaddress.ip_network("127.0.0.0/8")]))
    return make_head(method, target, read_block(version, list(fields), peer), peer, RequestIds(random.Random(1)))


def sent(head: RequestHead) -> list[tuple[str, str]]:
    lines = head.fields.decode("latin-1").split("\r\n")
    assert lines[-2:] == ["", ""]
    pairs = [line.partition(": ") for line in lines[:-2]]
    return [(name, value) for name, _, value in pairs]


@pytest.mark.parametrize(
    ("fields", "version", "keep_alive"),
    [
        ([], "1.1", True),
        ([], "1.0", False),
        ([(b"Connection", b"Keep-Alive")], "1.0", True),
        ([(b"Connection", b"close")], "1.1", False),
        ([(b"Connection", b"x, CLOSE")], "1.1", False),
        ([(b"Connection", b"close"), (b"Connection", b"keep-alive")], "1.1", False),
        ([(b"Connection", b"keep-alive"), (b"Connection", b"close")], "1.0", False),
    ],
)
def test_persistence(fields: Fields, version: str, keep_alive: bool) -> None:
    assert read(HOST, *fields, version=version).keep_alive is keep_alive


@pytest.mark.parametrize(
    ("fields", "method", "target", "version", "problem"),
    [
        ([], b"GET", b"/", "1.1", problems.BAD_HOST),
        ([HOST, HOST], b"GET", b"/", "1.1", problems.BAD_HOST),
        ([HOST, HOST], b"GET", b"/", "1.0", problems.BAD_HOST),
        ([(b"Host", b"a b")], b"GET", b"/", "1.1", problems.BAD_HOST),
        ([(b"Host", b"[::1")], b"GET", b"/", "1.1", problems.BAD_HOST),
        ([(b"Host", b"a:b:1")], b"GET", b"/", "1.1", problems.BAD_HOST),
        ([HOST], b"GET", b"/", "2.0", problems.BAD_VERSION),
        ([HOST], b"GET", b"/", "0.9", problems.BAD_VERSION),
        ([HOST], b"CONNECT", b"a:443", "1.1", problems.METHOD_NOT_ALLOWED),
        ([HOST], b"CONNECT", b"/api/orders/", "1.1", problems.METHOD_NOT_ALLOWED),
        ([HOST], b"GET", b"/..", "1.1", problems.BAD_TARGET),
        ([HOST], b"GET", b"http://a<b/", "1.1", problems.BAD_TARGET),
        ([HOST, (b"Transfer-Encoding", b"gzip, chunked")], b"POST", b"/", "1.1", problems.NOT_IMPLEMENTED),
        ([HOST, (b"Transfer-Encoding", b"chunked")], b"POST", b"/", "1.0", problems.BAD_FRAMING),
        ([HOST, (b"Max-Forwards", b"0")], b"TRACE", b"/", "1.1", problems.METHOD_NOT_ALLOWED),
    ],
)
def test_refused(fields: Fields, method: bytes, target: bytes, version: str, problem: Problem) -> None:
    head = read(*fields, method=method, target=target, version=version)
    assert head.refusal is not None
    assert head.refusal[0] is problem


@pytest.mark.parametrize("name", [b"Authorization", b"Origin", b"Access-Control-Request-Method", b"Max-Forwards"])
@pytest.mark.parametrize("values", [(b"1", b"2"), (b"1", b"1"), (b"", b"1"), (b"1", b"")])
def test_what_is_decided_on_may_not_be_said_twice(name: bytes, values: tuple[bytes, bytes]) -> None:
    once, twice = (name, values[0]), (name.lower(), values[1])
    assert read(HOST, once).refusal is None
    refusal = read(HOST, once, twice).refusal
    assert refusal is not None
    assert refusal[0] is problems.BAD_REQUEST
    assert name.decode().lower() in refusal[1].lower()


@pytest.mark.parametrize(
    ("method", "given", "goes_on"),
    [
        (b"OPTIONS", b"1", "0"),
        (b"OPTIONS", b"010", "9"),
        (b"TRACE", b"70", "69"),
        (b"TRACE", b"9" * 5000, "999999999"),
        (b"OPTIONS", b"-1", "-1"),
        (b"OPTIONS", b"0, 0", "0, 0"),
        (b"TRACE", b"", ""),
        (b"TRACE", b"\xb2", "\xb2"),
        (b"GET", b"0", "0"),
        (b"POST", b"7", "7"),
    ],
)
def test_max_forwards_is_counted_down(method: bytes, given: bytes, goes_on: str) -> None:
    head = read(HOST, (b"Max-Forwards", given), method=method)
    assert head.refusal is None
    assert head.path == b"/api/orders/"
    fields = sent(head)
    assert [value for name, value in fields if name == "Max-Forwards"] == [goes_on]
    assert dict(fields)["X-Forwarded-For"] == "192.0.2.1"
    trusted = read(HOST, (b"X-Forwarded-For", b"6.6.6.6"), (b"max-forwards", given), method=method, address="127.0.0.1")
    assert dict(sent(trusted))["Max-Forwards"] == goes_on
    assert dict(sent(trusted))["X-Forwarded-For"] == "6.6.6.6, 127.0.0.1"


@pytest.mark.parametrize("given", [b"0", b"000"])
def test_the_last_forward_of_options_ends_at_the_gateway(given: bytes) -> None:
    head = read(HOST, (b"Max-Forwards", given), method=b"OPTIONS", target=b"/api/orders/?a=b")
    assert (head.refusal, head.path, head.query) == (None, b"*", b"")


@pytest.mark.parametrize(
    "host", [b"", b"a", b"a:80", b"a:", b"[2001:db8::1]:80", b"a_b.example", b"xn--bcher-kva.example"]
)
def test_hosts(host: bytes) -> None:
    assert read((b"Host", host)).refusal is None


def test_the_authority_of_the_target_replaces_host() -> None:
    fields = dict(sent(read(HOST, target=b"http://other.example:81/x")))
    assert fields["X-Forwarded-Host"] == "other.example:81"
    assert "Host" not in fields


UPGRADE = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]


def test_upgrade_is_passed_only_where_it_can_be_answered() -> None:
    assert dict(sent(read(HOST, *UPGRADE)))["Upgrade"] == "websocket"
    for head in (
        read(HOST, *UPGRADE, version="1.0"),
        read(HOST, UPGRADE[0], (b"Upgrade", b"h2c")),
        read(HOST, UPGRADE[0]),
        read(HOST, UPGRADE[1]),
        read(HOST, *UPGRADE, (b"Content-Length", b"3"), method=b"POST"),
    ):
        assert head.upgrade is None
        assert head.refusal is None
        assert not {"Upgrade", "Connection"} & dict(sent(head)).keys()
    assert read(HOST, *UPGRADE, (b"Transfer-Encoding", b"chunked"), method=b"POST").refusal is not None


def test_expect_goes_on_only_in_front_of_a_body() -> None:
    expect = (b"Expect", b"100-Continue")
    assert dict(sent(read(HOST, expect, (b"Content-Length", b"3"))))["Expect"] == "100-continue"
    for head in (read(HOST, expect), read(HOST, expect, (b"Content-Length", b"3"), version="1.0")):
        assert "Expect" not in dict(sent(head))


def test_a_stranger_s_word_about_itself_is_replaced() -> None:
    given = [(b"X-Forwarded-For", b"6.6.6.6"), (b"X-Forwarded-Proto", b"https"), (b"Forwarded", b"for=6.6.6.6")]
    stranger = read(HOST, *given)
    assert stranger.client_address == "192.0.2.1"
    assert dict(sent(stranger))["X-Forwarded-For"] == "192.0.2.1"
    assert dict(sent(stranger))["X-Forwarded-Proto"] == "http"
    known = read(HOST, *given, address="127.0.0.1")
    assert known.client_address == "6.6.6.6"
    assert dict(sent(known))["X-Forwarded-For"] == "6.6.6.6, 127.0.0.1"
    assert dict(sent(known))["Forwarded"].startswith("for=6.6.6.6, for=127.0.0.1;")


NAMES = st.sampled_from(
    [b"Host", b"Connection", b"Content-Length", b"X-A", b"Upgrade", b"TE", b"Expect", b"X-Forwarded-For", b"Keep-Alive",
     b"X-Request-ID", b"Authorization",
     b"traceparent", b"b3", b"Forwarded", b"Origin", b"Trailer", b"transfer-encoding"]
)  # fmt: skip
VALUES = st.sampled_from(
    [
        b"a",
        b"close",
        b"keep-alive, X-A, content-length, host",
        b"upgrade",
        b"chunked",
        b"trailers",
        b"100-continue",
        b"1",
    ]
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=12))
def test_whatever_comes_the_upstream_gets_one_framing_and_no_hop_by_hop_field(fields: Fields) -> None:
    fields = [(name, b"12" if name == b"Content-Length" else value) for name, value in fields]
    head = read(*fields, method=b"POST")
    names = [name.lower() for name, _ in sent(head)]
    assert names.count("content-length") + names.count("transfer-encoding") <= 1
    assert not {"host", "keep-alive", "proxy-connection"} & set(names)
    for single in ("x-forwarded-for", "x-request-id", "x-correlation-id", "forwarded", "connection", "upgrade", "te"):
        assert names.count(single) <= 1
    if "upgrade" in names:
        assert not head.has_body

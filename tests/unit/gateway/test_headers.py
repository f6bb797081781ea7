"""How header fields are told apart."""

import pytest

from toska_mesh.gateway.headers import MAX_SPELLINGS, Kind, KindTable, has_token, may_be_trailer, named_by_connection


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"Keep-Alive", Kind.HOP_BY_HOP),
        (b"PROXY-CONNECTION", Kind.HOP_BY_HOP),
        (b"Proxy-Authorization", Kind.HOP_BY_HOP),
        (b"tE", Kind.TE),
        (b"host", Kind.HOST),
        (b"Transfer-Encoding", Kind.TRANSFER_ENCODING),
        (b"X-Own", Kind.END_TO_END),
        (b"transfer_encoding", Kind.HOP_BY_HOP),
        (b"X_Forwarded_For", Kind.HOP_BY_HOP),
        (b"X-Forwarded_For", Kind.HOP_BY_HOP),
        (b"x_own", Kind.END_TO_END),
    ],
)
def test_kinds_in_any_case(name: bytes, kind: Kind) -> None:
    table = KindTable()
    assert table[name] == table[name.swapcase()] == kind


def test_invented_names_are_remembered_in_bounded_number() -> None:
    table = KindTable()
    for number in range(MAX_SPELLINGS * 2):
        assert table[b"x-%d" % number] == Kind.END_TO_END
    assert len(table) == MAX_SPELLINGS
    assert table[b"Host"] == Kind.HOST


def test_fields_named_by_connection() -> None:
    assert named_by_connection(b"X-A, keep-alive , ,x-b") == {b"x-a", b"x-b"}
    for protected in (
        b"close",
        b"keep-alive",
        b"Host, content-length, Transfer-Encoding, connection",
        b"authorization",
        b"Origin, Authorization",
    ):
        assert named_by_connection(protected) == frozenset()


def test_trailers() -> None:
    for name in (b"X-Sum", b"Server-Timing", b"grpc-status", b"Digest"):
        assert may_be_trailer(name)
    for name in (
        b"Host",
        b"content-length",
        b"Cookie",
        b"Set-Cookie",
        b"Content-Type",
        b"AUTHORIZATION",
        b"X_Request_ID",
    ):
        assert not may_be_trailer(name)


def test_tokens() -> None:
    assert has_token(b"a, Close ,b", b"close")
    assert not has_token(b"closed, not-close", b"close")

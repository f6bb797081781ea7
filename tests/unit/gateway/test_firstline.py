"""First lines that the parser would let through and we do not."""

import pytest

from toska_mesh.gateway.firstline import USUAL, LineCheck, targets_of_kin

HOST = b"Host: a\r\n\r\n"


def checked(raw: bytes) -> LineCheck:
    check = LineCheck()
    check.begin(raw, USUAL.match(raw))
    return check


@pytest.mark.parametrize(
    ("raw", "method", "version"),
    [
        pytest.param(b"GET /x HTTP/1.1\r\n", b"GET", "1.1", id="usual"),
        pytest.param(b"\r\n\r\nGET /x HTTP/1.1\r\n", b"GET", "1.1", id="behind empty lines"),
        pytest.param(b"GET /x HTTP/1.0\r\n", b"GET", "1.0", id="HTTP/1.0"),
        pytest.param(b"PROPFIND /x HTTP/1.1\r\n", b"PROPFIND", "1.1", id="rare method"),
        pytest.param(b"abcGET /x HTTP/1.1\r\n", b"GET", "1.1", id="behind a body"),
        pytest.param(b"GET /x HTTP/1.1\r\nX: GET /y RTSP/1.0\r\n", b"GET", "1.1", id="kin of another target"),
    ],
)
def test_lines_in_order(raw: bytes, method: bytes, version: str) -> None:
    assert checked(raw + HOST).is_in_order(method, b"/x", version)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"GET /x RTSP/1.1\r\n", id="RTSP"),
        pytest.param(b"GET /x  RTSP/1.1\r\n", id="RTSP behind two spaces"),
        pytest.param(b"GET /x ICE/1.1\r\n", id="ICE"),
        pytest.param(b"GET /x RTSP/1.1\r\nX: GET /x HTTP/1.1\r\n", id="RTSP with a line in order behind it"),
        pytest.param(b"GET  /x HTTP/1.1\r\n", id="two spaces"),
        pytest.param(b"GET /x  HTTP/1.1\r\n", id="two spaces before the version"),
        pytest.param(b"GET /x\r\n", id="no version"),
    ],
)
def test_lines_not_in_order(raw: bytes) -> None:
    check = checked(raw + HOST)
    assert not check.is_in_order(b"GET", b"/x", "1.1")
    assert check.is_of_kin(b"/x") is (b"RTSP" in raw or b"ICE" in raw)


def test_each_line_of_a_read_is_looked_for_behind_the_one_before() -> None:
    check = checked(b"GET /x HTTP/1.1\r\n" + HOST + b"GET /x HTTP/1.1\r\n" + HOST + b"GET  /x HTTP/1.1\r\n" + HOST)
    assert [check.is_in_order(b"GET", b"/x", "1.1") for _ in range(3)] == [True, True, False]


def test_a_line_in_pieces() -> None:
    check = checked(b"GET /x RT")
    check.add(b"SP/1.0\r\n")
    assert not check.is_in_order(b"GET", b"/x", "1.0")
    check = checked(b"G")
    check.add(b"ET /x HTTP/1.1\r")
    check.add(b"\n")
    assert check.is_in_order(b"GET", b"/x", "1.1")
    check.forget()
    assert not check.is_in_order(b"GET", b"/x", "1.1")


def test_targets_of_kin() -> None:
    assert targets_of_kin(b"GET /x HTTP/1.1\r\n") == frozenset()
    assert targets_of_kin(b"GET /x RTSP/1.0\r\nSOURCE /y   ICE/1.0\r\n RTSP/1.0") == {b"/x", b"/y", b"ICE/1.0\r\n"}
    assert targets_of_kin(b" RTSP/1" * 3) == {b"", b"RTSP/1"}

"""Which origins may read answers."""

from toska_mesh.gateway.cors import Cors


def test_any_origin() -> None:
    cors = Cors(True, ())
    assert b"Access-Control-Allow-Origin: *\r\n" in cors.response_fields(b"https://a")
    assert b"Access-Control-Allow-Origin: *\r\n" in (cors.preflight_fields(b"null") or b"")


def test_a_list() -> None:
    cors = Cors(False, ["https://App.example"])
    assert b"Access-Control-Allow-Origin: https://app.EXAMPLE\r\nVary: Origin\r\n" in cors.response_fields(
        b"https://app.EXAMPLE"
    )
    for other in (b"https://app.example.evil", b"http://app.example", b"null", b"https://app.example:444", b""):
        assert cors.response_fields(other) == b"Vary: Origin\r\n"
        assert cors.preflight_fields(other) is None


def test_none() -> None:
    assert Cors(False, ()).preflight_fields(b"https://a") is None

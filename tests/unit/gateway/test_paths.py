"""Request targets: what is forwarded byte for byte, what is resolved, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.gateway.paths import BadTargetError, is_plain, parse_target, service_key, split_service


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", b"/", b""),
        (b"/a//b/", b"/a//b/", b""),
        (b"/a%2Fb%20c", b"/a%2Fb%20c", b""),
        (b"/a?", b"/a", b"?"),
        (b"/a?x=/../y", b"/a", b"?x=/../y"),
        (b"/a;v=1/..;/b", b"/a;v=1/..;/b", b""),
        (b"/.a/..b/...", b"/.a/..b/...", b""),
        (b"/a/./b", b"/a/b", b""),
        (b"/a/../b", b"/b", b""),
        (b"/a/%2e%2E/b", b"/b", b""),
        (b"/a/.%2e/b", b"/b", b""),
        (b"/a/b/..", b"/a/", b""),
        (b"/a/.", b"/a/", b""),
        (b"/a/..", b"/", b""),
        (b"//..", b"/", b""),
        (b"/a%2f..%2fb", b"/a%2f..%2fb", b""),
    ],
)
def test_origin_form(target: bytes, path: bytes, query: bytes) -> None:
    assert parse_target(target) == (path, query, b"")


@pytest.mark.parametrize(
    ("target", "path", "query", "authority"),
    [
        (b"http://a", b"/", b"", b"a"),
        (b"HTTPS://a:80/x?y", b"/x", b"?y", b"a:80"),
        (b"http://a?y", b"/", b"?y", b"a"),
        (b"http://[::1]:80/x/../z", b"/z", b"", b"[::1]:80"),
    ],
)
def test_absolute_form(target: bytes, path: bytes, query: bytes, authority: bytes) -> None:
    assert parse_target(target) == (path, query, authority)


@pytest.mark.parametrize(
    "target",
    [
        b"",
        b"a/b",
        b"*",
        b"/..",
        b"/../a",
        b"/a/../../b",
        b"/%2e%2e/a",
        b"/a#b",
        b"/a?b#c",
        b"/a\\b",
        b"ftp://a/b",
        b"http:///b",
        b"http://me@a/b",
        b"http://a/b#c",
        b"http://a/..",
    ],
)
def test_refused(target: bytes) -> None:
    with pytest.raises(BadTargetError):
        parse_target(target)


SEGMENTS = st.lists(
    st.sampled_from([b"", b".", b"..", b"%2e", b"%2E.", b"%2e%2e", b"a", b"%61", b"...", b"a%2f..", b"api"]), max_size=8
)


@given(SEGMENTS)
def test_resolution_is_final_and_stays_below_the_root(segments: list[bytes]) -> None:
    try:
        target = parse_target(b"/" + b"/".join(segments))
    except BadTargetError:
        return
    assert target.path.startswith(b"/")
    assert parse_target(target.path) == target
    for segment in target.path.split(b"/"):
        assert segment.replace(b"%2e", b".").replace(b"%2E", b".") not in (b".", b"..")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/api/orders/items/1", (b"orders", b"/items/1")),
        (b"/api/orders", (b"orders", b"/")),
        (b"/api/orders/", (b"orders", b"/")),
        (b"/api/orders//x", (b"orders", b"//x")),
        (b"/api/", (b"", b"/")),
        (b"/api", None),
        (b"/API/orders", None),
        (b"/other/api/orders", None),
    ],
)
def test_split_service(path: bytes, found: tuple[bytes, bytes] | None) -> None:
    assert split_service(path, b"/api/") == found


def test_service_key() -> None:
    assert service_key(b"Orders") == service_key(b"%4frders") == "orders"
    assert service_key(b"a%2Fb") == "a/b"
    assert "\ufffd" in service_key(b"%ff")


@given(st.text("ab./%2eE#?\\\\", max_size=12).map(lambda text: f"/{text}".encode()))
def test_a_plain_target_is_one_that_parsing_only_cuts_at_the_question_mark(target: bytes) -> None:
    if is_plain(target):
        path, mark, query = target.partition(b"?")
        assert parse_target(target) == (path, mark + query, b"")

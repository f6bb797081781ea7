"""What metadata may say about a route: each key's values, who wins, and that nothing is ever loosened unasked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.router.build import instance

from toska_mesh.gateway.routepolicy import (
    Operator,
    RateLimit,
    RoutePolicy,
    combine,
    describe,
    host_name,
)
from toska_mesh.model import Instance
from toska_mesh.model import metadata as keys
from toska_mesh.resilience import RetryPolicy

RESERVED = ("/health/", "/api/dashboard/", "/api/")


def operator(may_relax: bool = False, has_keys: bool = False, body: int = 1000, retries: int = 3) -> Operator:
    """30 s for a try, 90 s for all of them."""
    return Operator(RoutePolicy(30.0, 90.0, RetryPolicy(retries), body, has_keys), may_relax, RESERVED)


def saying(key: str, value: str, id: str = "a", created: int = 1) -> Instance:
    return instance(id, created=created, **{key: value})


def policy_of(key: str, value: str, **options: bool) -> RoutePolicy:
    return combine([saying(key, value)], operator(**options))


def test_services_that_say_nothing_share_the_operators_policy() -> None:
    ours = operator()
    beats = instance("a", **{"toska-registered-at": "2026-01-01T00:00:00Z", "toska-ttl-seconds": "30", "version": "1"})
    assert combine([], ours) is combine([instance("b")], ours) is combine([beats], ours) is ours.default


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        (keys.TIMEOUT_MS, "500", "total_timeout", 0.5),
        (keys.TIMEOUT_MS, " 500 ", "response_timeout", 0.5),
        (keys.TIMEOUT_MS, "90000", "total_timeout", 90.0),
        (keys.TRY_TIMEOUT_MS, "200", "response_timeout", 0.2),
        (keys.TRY_TIMEOUT_MS, "200", "total_timeout", 90.0),
        (keys.RETRIES, "0", "retry", RetryPolicy(0)),
        (keys.RETRIES, "3", "retry", RetryPolicy(3)),
        (keys.MAX_REQUEST_BYTES, "999", "max_request_bytes", 999),
        (keys.RATE_LIMIT, "50/10s", "rate_limit", RateLimit(50, 10.0)),
        (keys.RATE_LIMIT, "5/m", "rate_limit", RateLimit(5, 60.0)),
        (keys.RATE_LIMIT, "5/250ms", "rate_limit", RateLimit(5, 0.25)),
        (keys.RATE_LIMIT, "1/1h", "rate_limit", RateLimit(1, 3600.0)),
        (keys.AUTH, "Required", "needs_token", True),
        (keys.PREFIX, "keep", "keeps_prefix", True),
        (keys.PREFIX, "strip", "keeps_prefix", False),
        (keys.PATH, "/shop", "paths", ("/shop",)),
        (keys.PATH, "/shop/, /a/b:c", "paths", ("/shop", "/a/b:c")),
        (keys.PATH, "/", "paths", ("",)),
        (keys.PATH, "/apis,/healthy", "paths", ("/apis", "/healthy")),
    ],
)
def test_a_value_that_tightens_or_equals_counts(key: str, value: str, field: str, expected: object) -> None:
    policy = policy_of(key, value)
    assert getattr(policy, field) == expected
    assert policy.origins[key] == "a"


@pytest.mark.parametrize(
    ("key", "value", "holds"),
    [
        (keys.TIMEOUT_MS, "90001", "90000"),
        (keys.TRY_TIMEOUT_MS, "30001", "30000"),
        (keys.RETRIES, "4", "3"),
        (keys.MAX_REQUEST_BYTES, "1001", "1000"),
        (keys.MAX_REQUEST_BYTES, "0", "1000"),
    ],
)
def test_a_value_that_loosens_is_ignored_and_told(key: str, value: str, holds: str) -> None:
    policy = policy_of(key, value)
    default = operator().default
    assert (policy.response_timeout, policy.total_timeout, policy.retry, policy.max_request_bytes) == (
        default.response_timeout,
        default.total_timeout,
        default.retry,
        default.max_request_bytes,
    )
    (ignored,) = policy.ignored
    assert (ignored.key, ignored.value, ignored.instance, ignored.operator) == (key, value, "a", holds)
    assert "raise" in ignored.reason
    assert key not in policy.origins


def test_what_may_relax_lets_through() -> None:
    assert policy_of(keys.TIMEOUT_MS, "200000", may_relax=True).total_timeout == 200.0
    assert policy_of(keys.TIMEOUT_MS, "40000", may_relax=True).response_timeout == 40.0
    assert policy_of(keys.TRY_TIMEOUT_MS, "60000", may_relax=True).response_timeout == 60.0
    assert policy_of(keys.RETRIES, "9", may_relax=True).retry.count == 9
    assert policy_of(keys.MAX_REQUEST_BYTES, "0", may_relax=True).max_request_bytes == 0
    assert policy_of(keys.MAX_REQUEST_BYTES, "0", may_relax=True).largest_request_bytes == float("inf")
    assert policy_of(keys.PATH, "/.well-known/acme-challenge", may_relax=True).paths == ("/.well-known/acme-challenge",)
    opened = policy_of(keys.AUTH, "off", may_relax=True, has_keys=True)
    assert opened.is_public
    assert not opened.needs_token
    assert not opened.ignored


def test_a_timeout_between_the_operators_two_lowers_one_and_says_so() -> None:
    policy = policy_of(keys.TIMEOUT_MS, "60000")
    assert (policy.response_timeout, policy.total_timeout) == (30.0, 60.0)
    (ignored,) = policy.ignored
    assert (ignored.key, ignored.operator) == (keys.TIMEOUT_MS, "30000")


def test_the_key_for_one_try_leaves_time_for_others() -> None:
    policy = combine([instance("a", **{keys.TIMEOUT_MS: "60000", keys.TRY_TIMEOUT_MS: "1000"})], operator())
    assert (policy.response_timeout, policy.total_timeout, policy.ignored) == (1.0, 60.0, ())


def test_where_the_operator_sets_no_limit_any_is_tighter() -> None:
    assert combine([saying(keys.MAX_REQUEST_BYTES, "5")], operator(body=0)).max_request_bytes == 5
    assert not combine([saying(keys.MAX_REQUEST_BYTES, "0")], operator(body=0)).ignored


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, "") for key in sorted(keys.ROUTE_POLICY)],
        *[(keys.TIMEOUT_MS, value) for value in ("0", "-1", "1.5", "5s", "٣", "9" * 13, "1e3")],
        (keys.RETRIES, "21"),
        (keys.MAX_REQUEST_BYTES, "1k"),
        *[(keys.RATE_LIMIT, value) for value in ("off", "0/s", "5", "5/0s", "5/2h", "-5/s", "5/s/s", "5/d", "1.5/s")],
        *[(keys.AUTH, value) for value in ("true", "requird")],
        (keys.PREFIX, "drop"),
        *[(keys.HOST, value) for value in ("*", "a b", "*.", "shop.example:80", "-a", "a..b", "ü.example", ",")],
        *[(keys.PATH, value) for value in ("shop", "//shop", "/a//b", "/a/../b", "/%61", "/a?b", "/.git", "/a b", ",")],
    ],
)
def test_what_cannot_be_read_is_ignored_with_a_warning(key: str, value: str) -> None:
    policy = policy_of(key, value, has_keys=True)
    assert not policy.origins
    assert not policy.ignored
    assert any(key in warning for warning in policy.warnings)
    assert not policy.is_special


@pytest.mark.parametrize(
    "path", ["/api", "/api/orders", "/health", "/health/live", "/api/dashboard/", "/.well-known/x"]
)
def test_nobody_gets_the_paths_of_the_gateway_or_of_the_site(path: str) -> None:
    policy = policy_of(keys.PATH, f"{path},/mine")
    assert policy.paths == ("/mine",)
    (ignored,) = policy.ignored
    assert ignored.key == keys.PATH
    if not path.startswith("/.well-known"):
        assert policy_of(keys.PATH, path, may_relax=True).paths == ()


def test_a_name_that_cannot_be_read_does_not_take_the_others_with_it() -> None:
    policy = policy_of(keys.HOST, "shop.example, not a host, *.shop.example")
    assert policy.hosts is not None
    assert policy.hosts.patterns == ("shop.example", "*.shop.example")
    assert "'not a host'" in policy.warnings[0]


@pytest.mark.parametrize(
    ("field", "name", "matches"),
    [
        (b"shop.example", b"shop.example", True),
        (b"SHOP.example:8080", b"shop.example", True),
        (b"shop.example.", b"shop.example", True),
        (b"a.eu.example", b"a.eu.example", True),
        (b"a.b.eu.example", b"a.b.eu.example", True),
        (b"eu.example", b"eu.example", False),
        (b"noteu.example", b"noteu.example", False),
        (b"[::1]:80", b"[::1]", True),
        (b"", b"", False),
    ],
)
def test_hosts(field: bytes, name: bytes, matches: bool) -> None:
    hosts = policy_of(keys.HOST, "Shop.Example,*.eu.example,[::1]").hosts
    assert hosts is not None
    assert host_name(field) == name
    assert hosts.match(name) is matches


def test_the_newest_registration_wins_and_the_others_are_told() -> None:
    old, new, silent = (
        saying(keys.RETRIES, "1", "old", 1),
        saying(keys.RETRIES, "2", "new", 2),
        instance("x", created=3),
    )
    policy = combine([new, silent, old], operator())
    assert (policy.retry.count, policy.origins) == (2, {keys.RETRIES: "new"})
    (warning,) = policy.warnings
    for word in ("'new'", "'2'", "'old'", "'1'", keys.RETRIES):
        assert word in warning
    assert combine([old, new, silent], operator()) == policy


def test_values_that_mean_the_same_are_no_conflict() -> None:
    policy = combine([saying(keys.RATE_LIMIT, "60/1m", "a"), saying(keys.RATE_LIMIT, "60/60s", "b", 2)], operator())
    assert not policy.warnings


def test_a_value_that_does_not_count_does_not_win() -> None:
    for loose in ("9", "nonsense"):
        policy = combine([saying(keys.RETRIES, "1", "old"), saying(keys.RETRIES, loose, "new", 2)], operator())
        assert (policy.retry.count, policy.origins) == (1, {keys.RETRIES: "old"})
        assert policy.ignored or policy.warnings


def test_a_demand_for_tokens_is_not_undone_by_a_newer_registration() -> None:
    both = [saying(keys.AUTH, "required", "old"), saying(keys.AUTH, "off", "new", 2)]
    policy = combine(both, operator())
    assert policy.needs_token
    assert [ignored.instance for ignored in policy.ignored] == ["new"]
    assert not combine(both, operator(may_relax=True)).needs_token


def test_a_demand_without_a_key_closes_the_route_and_says_why() -> None:
    policy = policy_of(keys.AUTH, "required")
    assert policy.is_closed
    assert any("JWT_" in warning for warning in policy.warnings)
    assert not policy_of(keys.AUTH, "required", has_keys=True).is_closed
    off = policy_of(keys.AUTH, "off")
    assert (off.is_closed, off.ignored, off.warnings) == (False, (), ())


def test_of_two_registrations_with_one_id_the_newest_counts() -> None:
    older, newer = saying(keys.RETRIES, "1", "a", 1), saying(keys.TIMEOUT_MS, "5", "a", 2)
    assert combine([newer, older], operator()).origins.keys() == {keys.TIMEOUT_MS, keys.TRY_TIMEOUT_MS}


def test_a_key_that_nobody_knows_is_told() -> None:
    (warning,) = policy_of("toska-timeout", "5").warnings
    assert "'toska-timeout'" in warning


def test_any_number_of_odd_registrations_costs_little_memory() -> None:
    odd = [saying(keys.RETRIES, f"{'x' * 400}{number}", f"i{number}", number) for number in range(500)]
    loose = [saying(keys.TIMEOUT_MS, f"{number + 10**6}", f"l{number}", number) for number in range(500)]
    policy = combine([*odd, *loose], operator())
    assert len(policy.warnings) <= 50
    assert len(policy.ignored) <= 50
    assert sum(map(len, policy.warnings)) < 20_000
    same = combine([saying(keys.RETRIES, "9", f"i{number}", number) for number in range(500)], operator())
    assert [(ignored.instance, ignored.instances) for ignored in same.ignored] == [("i499", 500)]


def test_the_description_names_the_origin_of_each_value() -> None:
    said = describe(policy_of(keys.RATE_LIMIT, "5/250ms"))
    assert said["rateLimit"] == {"value": "5/250ms", "origin": "metadata", "instance": "a"}
    assert said["retries"] == {"value": 3, "origin": "operator", "instance": None}
    assert describe(policy_of(keys.PATH, "/"))["paths"]["value"] == ["/"]


def values(key: str) -> st.SearchStrategy[str]:
    numbers = st.integers(0, 200_000).map(str)
    words = st.sampled_from(["required", "off", "strip", "keep", "5/s", "1/1h", "/", "/shop", "a.b", "*.a.b", "", "0"])
    return numbers | words | st.text(max_size=12)


FLEETS = st.lists(
    st.fixed_dictionaries({}, optional={key: values(key) for key in sorted(keys.ROUTE_POLICY)}), max_size=4
)


@given(FLEETS, st.booleans(), st.integers(0, 2000), st.integers(0, 5))
def test_metadata_never_loosens(fleet: list[dict[str, str]], has_keys: bool, body: int, retries: int) -> None:
    ours = operator(has_keys=has_keys, body=body, retries=retries)
    instances = [instance(f"i{number}", created=number, **said) for number, said in enumerate(fleet)]
    policy = combine(instances, ours)
    default = ours.default
    assert 0 < policy.response_timeout <= default.response_timeout
    assert 0 < policy.total_timeout <= default.total_timeout
    assert 0 <= policy.retry.count <= default.retry.count
    assert policy.retry == RetryPolicy(policy.retry.count)
    assert policy.largest_request_bytes <= default.largest_request_bytes
    assert policy.needs_token or not default.needs_token
    assert not policy.is_public
    assert policy.is_closed is (policy.needs_token and not has_keys)
    assert not any(f"{path}/".startswith(ours.closed_paths) for path in policy.paths)
    assert combine(list(reversed(instances)), ours) == policy
    for key, instance_id in policy.origins.items():
        assert any(one.id == instance_id and (key in one.metadata or key == keys.TRY_TIMEOUT_MS) for one in instances)

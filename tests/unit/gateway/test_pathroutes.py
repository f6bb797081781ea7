"""Which service a host and a path lead to."""

import pytest
from tests.unit.router.build import instance, snapshot

from toska_mesh.gateway.pathroutes import PathRoutes
from toska_mesh.gateway.routepolicy import Operator, RoutePolicy, combine
from toska_mesh.model import Instance
from toska_mesh.resilience import RetryPolicy
from toska_mesh.router import RouteTable

OPERATOR = Operator(RoutePolicy(30.0, 90.0, RetryPolicy(), 0, False), reserved=("/health/", "/api/"))


def at(service: str, path: str, host: str = "", created: int = 1) -> Instance:
    where = {"toska-path": path} | ({"toska-host": host} if host else {})
    return instance(f"{service}-1", service=service, created=created, **where)


def routes(*instances: Instance, may_relax: bool = False) -> PathRoutes:
    services = RouteTable.build(snapshot(*instances)).services.values()
    operator = Operator(OPERATOR.default, may_relax, OPERATOR.reserved)
    for service in services:
        service.policy = combine([standing.target.instance for standing in service.everything], operator)
    return PathRoutes(services, operator.closed_paths)


def found(table: PathRoutes, host: str, path: str) -> tuple[str, str] | None:
    hit = table.find(host.encode(), path.encode())
    return (hit[0].name, hit[1].decode()) if hit is not None else None


ALL = (
    at("root", "/"),
    at("shop", "/shop"),
    at("cart", "/shop/cart"),
    at("exact", "/shop", "eu.example"),
    at("suffix", "/", "*.example"),
    at("longer", "/", "*.shop.example"),
)


@pytest.mark.parametrize(
    ("host", "path", "expected"),
    [
        ("a", "/shop", ("shop", "")),
        ("a", "/shop/", ("shop", "/")),
        ("a", "/shop//x%2F", ("shop", "//x%2F")),
        ("a", "/shopping", ("root", "/shopping")),
        ("a", "/Shop", ("root", "/Shop")),
        ("a", "/shop/cart", ("cart", "")),
        ("a", "/shop/carts", ("shop", "/carts")),
        ("a", "/shop/cart/1", ("cart", "/1")),
        ("a", "/", ("root", "/")),
        ("eu.example:443", "/shop/cart", ("exact", "/cart")),
        ("EU.example.", "/shop", ("exact", "")),
        ("eu.example", "/other", ("suffix", "/other")),
        ("x.shop.example", "/shop/cart", ("longer", "/shop/cart")),
        ("shop.example", "/", ("suffix", "/")),
        ("example", "/shop", ("shop", "")),
        ("", "/shop", ("shop", "")),
        ("[::1]:80", "/shop", ("shop", "")),
        ("." * 5000, "/shop", ("shop", "")),
        ("a", "/api/unknown", None),
        ("a", "/api", None),
        ("a", "/health", None),
        ("a", "/.well-known/acme-challenge/x", None),
        ("eu.example", "/.well-known", None),
        ("a", "*", None),
    ],
)
def test_host_before_any_host_and_longest_path_first(host: str, path: str, expected: tuple[str, str] | None) -> None:
    assert found(routes(*ALL), host, path) == expected
    assert found(routes(*reversed(ALL)), host, path) == expected


def test_the_site_itself_can_be_given_away_by_the_operator() -> None:
    assert found(routes(at("root", "/"), may_relax=True), "a", "/.well-known/x") == ("root", "/.well-known/x")


def test_what_nobody_asked_for_leads_nowhere() -> None:
    table = routes(at("shop", "/shop", "shop.example"))
    assert found(table, "other.example", "/shop") is None
    assert found(table, "shop.example", "/") is None


def test_of_two_that_ask_for_the_same_the_newest_gets_it_and_both_are_told() -> None:
    table = routes(at("old", "/x,/mine"), at("new", "/x", created=2))
    assert found(table, "a", "/x") == ("new", "")
    assert found(table, "a", "/mine") == ("old", "")
    assert table.conflicts.keys() == {"old", "new"}
    assert "/x" in table.conflicts["old"][0]
    assert "'new' was registered last" in table.conflicts["old"][0]


def test_the_same_path_at_other_hosts_is_no_conflict() -> None:
    assert not routes(at("a", "/x", "a.example"), at("b", "/x", "b.example"), at("c", "/x")).conflicts

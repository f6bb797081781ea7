"""Tables made of the gateway's answers."""

import pytest

from toska_mesh.cli.queries import (
    QueryError,
    admin_url,
    base_of,
    cell,
    rows_of,
    to_table,
    unrouted,
    with_ignored,
    with_reason,
)
from toska_mesh.cli.view import render
from toska_mesh.errors import ConfigError


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        pytest.param({}, "http://127.0.0.1:9901", id="default"),
        pytest.param({"GATEWAY_ADMIN_PORT": "7"}, "http://127.0.0.1:7", id="port"),
        pytest.param({"GATEWAY_ADMIN_HOST": "0.0.0.0"}, "http://127.0.0.1:9901", id="all addresses"),
        pytest.param({"GATEWAY_ADMIN_HOST": "::1"}, "http://[::1]:9901", id="IPv6"),
    ],
)
def test_the_admin_api_is_found_by_the_gateways_own_settings(environ: dict[str, str], url: str) -> None:
    assert admin_url(environ) == url


def test_a_port_that_says_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--admin"):
        admin_url({"GATEWAY_ADMIN_PORT": "0"})


@pytest.mark.parametrize(
    ("admin", "base"),
    [
        ("http://other:9901", "http://other:9901"),
        ("https://other:9901/", "https://other:9901"),
        ("other:9901", "http://other:9901"),
        ("[::1]:9901", "http://[::1]:9901"),
    ],
)
def test_an_admin_api_may_be_named_without_its_scheme(admin: str, base: str) -> None:
    assert base_of(admin) == base


@pytest.mark.parametrize("body", [[{"a": 1}], {"version": 3, "routes": [{"a": 1}]}])
def test_the_list_is_found_in_the_answer(body: object) -> None:
    assert rows_of(body) == [{"a": 1}]


@pytest.mark.parametrize("body", [{}, "text", [1], {"a": [1]}, None])
def test_an_answer_without_a_list_is_an_error(body: object) -> None:
    with pytest.raises(QueryError, match="--json"):
        rows_of(body)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (1.50, "1.5"),
        ({"state": "open", "failures": 3}, "state=open failures=3"),
        (["a", None, "b"], "a, , b"),
        ("x\033[2J", "'x\\x1b[2J'"),
    ],
)
def test_values_fit_a_cell(value: object, text: str) -> None:
    assert cell(value) == text


def test_the_table_has_every_key_as_a_column() -> None:
    text = render(to_table([{"id": "a-1", "status": "Healthy"}, {"id": "a-2", "reason": "breaker open"}]), False, 100)
    for word in ("id", "status", "reason", "a-1", "a-2", "Healthy", "breaker open"):
        assert word in text
    assert "\033" not in text


def test_a_table_can_be_limited_to_what_matters() -> None:
    rows = [{"id": "a-1", "metadata": {"x": "y"}, "isEligible": True}]
    text = render(to_table(rows, {"id": "id", "isEligible": "eligible", "why": "why not"}), False, 100)
    assert "eligible" in text
    assert "yes" in text
    assert "why not" not in text
    assert "metadata" not in text


BREAKER = "breaker open: it failed several times in a row"


@pytest.mark.parametrize(
    ("row", "eligible"),
    [
        pytest.param({"isEligible": True, "why": "", "breaker": "closed"}, "yes", id="fine"),
        pytest.param(
            {"isEligible": False, "why": "Unhealthy by the registry"}, "no: Unhealthy by the registry", id="unhealthy"
        ),
        pytest.param(
            {"isEligible": True, "why": BREAKER, "breaker": "open", "breakerRetryInSeconds": 11.2},
            "no: breaker open, tried again in 12 s",
            id="its breaker is open",
        ),
        pytest.param(
            {"isEligible": True, "why": BREAKER, "breaker": "open", "breakerRetryInSeconds": 0.0},
            "no: breaker open, tried again with the next request",
            id="its time has come",
        ),
        pytest.param(
            {"isEligible": True, "why": "", "breaker": "half-open", "breakerRetryInSeconds": None},
            "no: breaker half-open, one request tries it",
            id="on trial",
        ),
        pytest.param(
            {"isEligible": True, "why": "suspect: it owes answers", "breaker": "closed", "isSuspect": True},
            "no: suspect: it owes answers",
            id="silent",
        ),
        pytest.param(
            {"isEligible": True, "why": "of last resort", "breaker": "closed"}, "yes", id="in use all the same"
        ),
        pytest.param(
            {"isEligible": False, "why": "no verdict", "breaker": "open", "breakerRetryInSeconds": 3.0},
            "no: no verdict",
            id="both",
        ),
    ],
)
def test_an_instance_that_gets_no_requests_says_why(row: dict[str, object], eligible: str) -> None:
    told = with_reason({**row, "share": 1})
    assert told["eligible"] == eligible
    assert told["share"] == (1 if eligible == "yes" else 0)


def test_what_is_no_instance_stays_as_it_is() -> None:
    assert with_reason({"service": "hello", "eligible": 2}) == {"service": "hello", "eligible": 2}


def test_metadata_that_does_not_count_is_told_beside_the_warnings() -> None:
    ignored = {"key": "toska-retries", "value": "9", "instance": "a-1", "reason": "metadata cannot raise it"}
    row = {"service": "a", "warnings": ["panic"], "ignored": [ignored]}
    assert with_ignored(row)["warnings"] == [
        "panic",
        "toska-retries=9 of a-1 is ignored: metadata cannot raise it",
    ]
    assert with_ignored({"service": "a"}) == {"service": "a"}


def test_services_without_a_route_are_told_with_the_reason() -> None:
    assert unrouted({"routes": [], "unrouted": {"billing": "no instance joined the mesh"}}) == [
        "not routed: billing (no instance joined the mesh)"
    ]
    assert unrouted({"routes": []}) == unrouted([]) == []

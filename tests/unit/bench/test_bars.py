"""The summary says what was promised, what was measured and whether that is enough."""

from typing import Any

import pytest
from bench import gateway_bars
from bench.__main__ import BENCHMARKS, select
from bench.gateway_bars import BARS, Bar, judge, value
from bench.support.results import markdown_table
from bench.support.tokens import authorizations


def reports(**figures: Any) -> dict[str, Any]:
    return {"speed": {"figures": figures}}


@pytest.mark.parametrize(
    ("measured", "at_least", "is_aim", "expected"),
    [
        pytest.param(1.5, True, False, "yes", id="on the bar is reached"),
        pytest.param(1.499, True, False, "**no**", id="below it is not"),
        pytest.param(1.499, True, True, "not yet", id="an aim is wished for"),
        pytest.param(1.5, False, False, "yes", id="at most: on the bar"),
        pytest.param(1.501, False, False, "**no**", id="at most: above it"),
    ],
)
def test_a_bar_is_reached_or_not(measured: float, at_least: bool, is_aim: bool, expected: str) -> None:
    bar = Bar("speed", 1.5, value("speed", "rate"), at_least=at_least, is_aim=is_aim)
    assert judge([bar], reports(rate=measured))[1][3] == expected


def test_what_was_not_measured_is_never_reached() -> None:
    bar = Bar("speed", 0, value("speed", "rate", "p99"))
    assert judge([bar], reports(rate={}))[1] == ["speed", "≥ 0", "—", "not measured: speed / rate / p99"]


def test_without_any_result_each_bar_says_what_is_missing() -> None:
    rows = judge(BARS, {})[1:]
    assert len(rows) == len(BARS)
    assert all(str(row[3]).startswith("not measured: ") for row in rows)


def test_nothing_measured_of_a_peer_is_no_victory() -> None:
    case = {"toska": {"requests_per_second": 10.0}, "envoy": {"requests_per_second": 0.0}}
    found = {"gateway": {"figures": {"small GET, 32 connections": case}}}
    assert judge(BARS[:1], found)[1][3].startswith("not measured")  # type: ignore[attr-defined]


def test_failures_of_peers_are_not_ours() -> None:
    ours = {"toska": {"failed": 2}, "toska with JWT": {"failed": 1}, "envoy with JWT": {"failed": 90}}
    found = {
        "gateway": {"figures": {"case": ours}},
        "gateway_latency": {"figures": {"latency": {"no proxy": {"failed": 7}, "toska": {"failed": 0}}}},
        "gateway_routes": {"figures": {"many services, changing": {"failed": 4}}},
        "gateway_workers": {"figures": {"workers": {"2 workers on 2 cores": {"failed": 8}}}},
    }
    assert gateway_bars.failures(found) == 15


def test_scaling_is_claimed_only_where_the_cores_were_there() -> None:
    figures = {"two_cores_of_their_own": False, "throughput_ratio": 1.9}
    with pytest.raises(gateway_bars.NotMeasuredError):
        gateway_bars.scaling({"gateway_workers": {"figures": figures}})
    assert gateway_bars.scaling({"gateway_workers": {"figures": figures | {"two_cores_of_their_own": True}}}) == 1.9


def test_a_table_has_its_head_first() -> None:
    assert markdown_table([["a", "b"], [1, 2.5]]) == "| a | b |\n|---|---|\n| 1 | 2.5 |"


def test_the_bars_follow_what_they_judge() -> None:
    assert select([]) == list(BENCHMARKS)
    assert select(["freshness", "gateway_idle"]) == ["gateway_idle", "gateway_bars", "freshness"]
    assert "freshness" not in select(["gateway*"])
    with pytest.raises(KeyError, match="speed"):
        select(["gateway", "speed"])


def test_each_client_has_a_token_of_its_own() -> None:
    assert len(set(authorizations(100))) == 100

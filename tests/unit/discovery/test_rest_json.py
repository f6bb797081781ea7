"""Shapes of the REST API that no server is needed for."""

from datetime import UTC, datetime

import pytest

from toska_mesh.discovery import rest_json
from toska_mesh.discovery.validation import HealthCheck, InvalidArgumentError
from toska_mesh.model import Endpoint, Instance, InstanceId, ServiceName

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("span", "seconds"),
    [(None, 0), ("00:00:30", 30), ("01:02:03", 3723), ("1.00:00:00", 86400), ("00:00:01.5000000", 1)],
)
def test_time_spans(span: str | None, seconds: int) -> None:
    assert rest_json.seconds_of_span("healthCheck.interval", span) == seconds


@pytest.mark.parametrize("span", ["30", "", "abc", 30, "00:30"])
def test_what_is_no_time_span(span: object) -> None:
    with pytest.raises(InvalidArgumentError, match="healthCheck"):
        rest_json.seconds_of_span("healthCheck.interval", span)


def test_names_of_a_body_match_in_any_case() -> None:
    body = {"ServiceName": "orders", "PORT": 80, "HealthCheck": {"Interval": "00:00:20", "Endpoint": "/h"}}
    asked = rest_json.registration_from(body)
    assert (asked.service, asked.port, asked.health_check) == ("orders", 80, HealthCheck("/h", 20))


@pytest.mark.parametrize(("status", "number"), [(3, 3), ("Degraded", 3), ("healthy", 1)])
def test_a_status_is_a_number_or_a_word(status: object, number: int) -> None:
    assert rest_json.report_from({"status": status, "output": None}) == (number, "")


@pytest.mark.parametrize("body", [{}, {"status": None}, {"status": 1.5}, {"status": True}, {"status": [1]}])
def test_a_status_that_is_neither_is_told_what_both_would_be(body: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"should be 1 or Healthy, .* as a number or as a text"):
        rest_json.report_from(body)


@pytest.mark.parametrize("body", [[], None, {"status": "fine"}, {"status": True}, {"status": 1, "output": 5}])
def test_reports_of_another_shape(body: object) -> None:
    with pytest.raises(InvalidArgumentError):
        rest_json.report_from(body)


def test_the_summary_counts_instances_and_folds_case() -> None:
    instances = tuple(
        Instance(ServiceName("orders"), InstanceId(id_), Endpoint("h", 1), metadata=metadata)
        for id_, metadata in [("a", {"zone": "X"}), ("b", {"zone": "x", "v": "1"}), ("c", {"zone": "y"})]
    )
    assert rest_json.metadata_summary_json(ServiceName("orders"), instances, NOW) == {
        "serviceName": "orders",
        "instanceCount": 3,
        "generatedAt": "2026-01-02T00:00:00Z",
        "keys": [
            {"key": "v", "instanceCount": 1, "values": ["1"]},
            {"key": "zone", "instanceCount": 3, "values": ["X", "y"]},
        ],
    }

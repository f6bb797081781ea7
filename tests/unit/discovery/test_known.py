"""What is written into the registry about an instance, and read back."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toska_mesh.discovery.known import Record, format_time, parse_time, record_of, registry_metadata
from toska_mesh.model import Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.model.metadata import own_metadata

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
RECORD = Record(ServiceName("orders"), InstanceId("a"), "10.0.0.1", 80, {"zone": "x"}, 65, NOW, "orders")


def seen(metadata: dict[str, str]) -> Instance:
    endpoint = Endpoint(RECORD.address, RECORD.port)
    return Instance(RECORD.service, RECORD.id, endpoint, HealthStatus.HEALTHY, metadata)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_survive_the_registry(moment: datetime) -> None:
    assert parse_time(format_time(moment)) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-02", "2026-01-02T03:04:05"])
def test_a_time_without_a_zone_is_none(text: str) -> None:
    assert parse_time(text) is None


def test_a_record_comes_back_from_the_registry() -> None:
    assert record_of(seen(registry_metadata(RECORD))) == RECORD
    ownerless = replace(RECORD, owner=None)
    assert record_of(seen(registry_metadata(ownerless))) == ownerless


def test_bookkeeping_is_not_the_services_own() -> None:
    assert own_metadata(registry_metadata(RECORD)) == {"zone": "x"}


def test_what_no_discovery_registered_has_no_record() -> None:
    assert record_of(seen({"scheme": "http"})) is None


@pytest.mark.parametrize("ttl", ["", "soon", "-5", "9" * 20])
def test_a_time_to_live_that_makes_no_sense_is_the_default(ttl: str) -> None:
    record = record_of(seen({"toska-registered-at": format_time(NOW), "toska-ttl-seconds": ttl}))
    assert record is not None
    assert record.ttl_seconds == 35


@pytest.mark.parametrize(
    ("pairs", "kept"),
    [
        (61, {"toska-owner", "toska-registered-at", "toska-ttl-seconds"}),
        (62, {"toska-owner", "toska-registered-at"}),
        (63, {"toska-owner"}),
        (64, set()),
    ],
)
def test_the_services_own_pairs_come_first_when_there_is_little_room(pairs: int, kept: set[str]) -> None:
    own = {f"k{n}": "v" for n in range(pairs)}
    written = registry_metadata(replace(RECORD, metadata=own))
    assert len(written) <= 64
    assert written.keys() - own.keys() == kept

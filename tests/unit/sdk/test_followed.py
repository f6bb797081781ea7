"""What a client makes of discovery's word: keep-last, staleness, doubt about absence, verdicts that run out."""

from typing import Any

import pytest

from toska_mesh.aio import Latest
from toska_mesh.model import NO_VERDICTS, CatalogSnapshot, HealthStatus, InstanceId, ServiceName, Verdicts
from toska_mesh.pb import discovery_pb2, mesh_pb2
from toska_mesh.sdk.follow_wire import ServiceNews, StateReader, looked_up
from toska_mesh.sdk.followed import Followed

ORDERS, CARTS = ServiceName("orders"), ServiceName("carts")


class Client:
    """A `Followed` with what it has published."""

    def __init__(self) -> None:
        self.catalog, self.verdicts = Latest[CatalogSnapshot](), Latest[Verdicts]()
        self.followed = Followed(self.catalog, self.verdicts, grace_seconds=30.0, keep_verdicts_seconds=20.0)

    @property
    def snapshot(self) -> CatalogSnapshot:
        found = self.catalog.peek()
        assert found is not None
        return found

    def ids(self, service: ServiceName = ORDERS) -> list[str]:
        return [one.id for one in self.snapshot.services.get(service, ())]


@pytest.fixture
def client() -> Client:
    return Client()


def state(
    *ids: str, service: ServiceName = ORDERS, status: int = 1, output: str = "", **fields: object
) -> mesh_pb2.ServiceState:
    instances = [
        mesh_pb2.InstanceState(
            serviceId=one, address="10.0.0.1", port=80, status=status, output=output, createIndex=number + 1
        )
        for number, one in enumerate(ids)
    ]
    return mesh_pb2.ServiceState(serviceName=service, instances=instances, **{"probed": -1, **fields})  # type: ignore[arg-type]


def news(*ids: str, **fields: Any) -> ServiceNews:
    return StateReader().read(state(*ids, **fields))


def test_nothing_is_published_before_the_first_answer(client: Client) -> None:
    assert client.followed.trouble == ""
    client.followed.told_stale("no catalog yet", 0.0, 0.0)
    assert client.followed.trouble == "no catalog yet"
    client.followed.lost("gone", 1.0)
    assert client.catalog.version == 0
    client.followed.told_stale("", 0.0, 2.0)
    client.followed.take([news()], 2.0)
    assert (dict(client.snapshot.services), client.snapshot.version, client.snapshot.is_stale) == ({}, 1, False)
    assert client.verdicts.peek() == NO_VERDICTS


def test_a_change_is_one_snapshot_and_the_same_again_is_none(client: Client) -> None:
    client.followed.take([news("a", "b"), news("x", service=CARTS)], 0.0)
    assert (client.ids(), client.ids(CARTS), client.snapshot.version) == (["a", "b"], ["x"], 1)
    before = client.snapshot
    client.followed.take([news("a", "b")], 1.0)
    assert client.snapshot is before
    client.followed.take([news("a")], 2.0)
    assert client.ids() == ["a"]
    assert client.snapshot.services[CARTS] is before.services[CARTS]
    assert client.snapshot.services[ORDERS][0] is before.services[ORDERS][0]
    client.followed.take([news()], 3.0)
    assert ORDERS not in client.snapshot.services


def test_an_outage_keeps_everything_and_is_over_when_all_has_been_answered_again(client: Client) -> None:
    client.followed.take([news("a"), news("x", service=CARTS)], 0.0)
    client.followed.lost("refused", 5.0)
    client.followed.lost("refused", 9.0)
    assert (client.ids(), client.snapshot.stale_since, client.snapshot.stale_reason) == (["a"], 5.0, "refused")
    assert client.snapshot.version == 2
    client.followed.take([news("a")], 10.0)
    assert client.snapshot.is_stale
    client.followed.take([news("x", service=CARTS)], 10.1)
    assert (client.snapshot.stale_since, client.snapshot.stale_reason) == (None, "")


def test_the_registrys_staleness_is_told_with_the_moment_when_it_began(client: Client) -> None:
    client.followed.take([news("a")], 0.0)
    client.followed.told_stale("registry is down", 3.0, 10.0)
    assert (client.snapshot.stale_since, client.snapshot.stale_reason) == (7.0, "registry is down")
    version = client.snapshot.version
    client.followed.told_stale("registry is down", 8.1, 15.0)
    assert (client.snapshot.stale_since, client.snapshot.version) == (7.0, version)
    client.followed.lost("discovery too", 20.0)
    assert (client.snapshot.stale_since, client.snapshot.stale_reason) == (7.0, "discovery too")
    client.followed.told_stale("registry is down", 20.0, 27.0)
    client.followed.take([news("a")], 27.0)
    assert (client.snapshot.stale_since, client.snapshot.stale_reason) == (7.0, "registry is down")
    client.followed.told_stale("", 0.0, 30.0)
    assert not client.snapshot.is_stale


def test_a_discovery_that_knows_nobody_after_an_outage_is_not_believed_for_the_grace_period(client: Client) -> None:
    client.followed.take([news("a", "b"), news("x", service=CARTS)], 0.0)
    client.followed.lost("refused", 5.0)
    client.followed.take([news(), news("x", service=CARTS)], 10.0)
    assert client.ids() == ["a", "b"]
    assert not client.snapshot.is_stale
    assert client.followed.due_at == 40.0
    client.followed.take([news("b")], 20.0)  # back with its next beat
    assert client.ids() == ["a", "b"]
    client.followed.tick(40.0)
    assert client.ids() == ["b"]
    assert client.followed.due_at is None


def test_after_a_hiccup_and_in_quiet_times_absence_is_believed(client: Client) -> None:
    client.followed.take([news("a", "b")], 0.0)
    client.followed.take([news("a")], 1.0)
    assert client.ids() == ["a"]
    client.followed.lost("reset", 5.0)
    client.followed.take([news()], 6.0)
    assert client.ids() == []


def test_mass_silence_after_an_outage_is_doubted_and_a_reported_failure_is_not(client: Client) -> None:
    client.followed.take([news("a", "b")], 0.0)
    client.followed.lost("refused", 5.0)
    client.followed.take([news("a", "b", status=2, output="TTL expired")], 10.0)
    assert [one.status for one in client.snapshot.services[ORDERS]] == [HealthStatus.HEALTHY] * 2
    client.followed.take([news("a", "b", status=2, output="disk full")], 11.0)
    assert [one.status for one in client.snapshot.services[ORDERS]] == [HealthStatus.UNHEALTHY] * 2


def test_verdicts_arrive_hold_through_an_outage_for_a_while_and_are_dropped(client: Client) -> None:
    client.followed.take([news("a", verdicts={"a": 2}, probed=3), news(service=CARTS)], 0.0)
    wanted = Verdicts({ORDERS: {InstanceId("a"): HealthStatus.UNHEALTHY}}, {ORDERS: 3})
    assert client.verdicts.peek() == wanted
    version = client.verdicts.version
    client.followed.take([news("a", "b", verdicts={"a": 2}, probed=3)], 1.0)
    assert client.verdicts.version == version
    client.followed.lost("refused", 5.0)
    client.followed.lost("refused", 20.0)
    assert client.followed.due_at == 25.0
    client.followed.tick(24.9)
    assert client.verdicts.peek() == wanted
    client.followed.tick(25.0)
    assert client.verdicts.peek() == NO_VERDICTS
    client.followed.take([news("a", verdicts={"a": 2}, probed=3)], 26.0)
    assert client.verdicts.peek() == wanted
    client.followed.take([news("a")], 27.0)
    assert client.verdicts.peek() == NO_VERDICTS


def listed(*ids: str) -> ServiceNews:
    instances = [discovery_pb2.ServiceInstance(serviceId=one, address="10.0.0.1", port=80, status=1) for one in ids]
    return looked_up(ORDERS, discovery_pb2.GetInstancesResponse(instances=instances))


def test_a_lookup_that_turns_empty_has_to_stay_so(client: Client) -> None:
    client.followed.take([listed("a", "b")], 0.0, is_lookup=True)
    client.followed.take([listed()], 5.0, is_lookup=True)
    client.followed.take([listed()], 34.0, is_lookup=True)
    assert client.ids() == ["a", "b"]
    client.followed.take([listed("a")], 34.5, is_lookup=True)
    assert client.ids() == ["a"]
    client.followed.take([listed()], 35.0, is_lookup=True)
    client.followed.take([listed()], 65.0, is_lookup=True)
    assert client.ids() == []


def test_what_is_told_again_is_the_identical_object() -> None:
    reader = StateReader()
    first = reader.read(state("a", "b")).reading.instances
    again = state("a", "b", "c")
    again.instances[1].output = "other words"
    a, b, c = reader.read(again).reading.instances
    assert a is first[0]
    assert (b is first[1], b.output, c.id) == (False, "other words", "c")
    assert reader.read(state("b", service=CARTS)).reading.instances[0].service == CARTS
    reader.read(state())
    assert reader.read(state("a")).reading.instances[0] is not a


def test_what_a_lookup_says_of_an_instance(client: Client) -> None:
    old = discovery_pb2.ServiceInstance(
        serviceId="old", address="10.0.0.1", port=80, status=3, metadata={"scheme": "http"}
    )
    old.registeredAt.FromSeconds(1_700_000_000)
    odd = discovery_pb2.ServiceInstance(serviceId="odd", address="10.0.0.2", port=81, status=9)
    odd.registeredAt.FromSeconds(-62135596800)  # the year 1: not known
    broken = discovery_pb2.ServiceInstance(serviceId="broken", address="10.0.0.3", port=0)
    found = looked_up(ORDERS, discovery_pb2.GetInstancesResponse(instances=[old, odd, broken])).reading
    unknown, known = found.instances
    assert (known.id, known.status, dict(known.metadata)) == ("old", HealthStatus.DEGRADED, {"scheme": "http"})
    assert known.registered_at is not None
    assert known.create_index == 1_700_000_000_000
    assert (unknown.id, unknown.status, unknown.registered_at, unknown.create_index) == (
        "odd",
        HealthStatus.UNKNOWN,
        None,
        0,
    )
    assert found.dropped == ("instance 'broken': port 0 is not between 1 and 65535",)


def test_a_time_beyond_the_calendar_is_not_known() -> None:
    listed = discovery_pb2.ServiceInstance(serviceId="a", address="10.0.0.1", port=80, status=1)
    listed.registeredAt.seconds = 10**15
    news = looked_up(ORDERS, discovery_pb2.GetInstancesResponse(instances=[listed]))
    assert [(one.id, one.registered_at) for one in news.reading.instances] == [("a", None)]

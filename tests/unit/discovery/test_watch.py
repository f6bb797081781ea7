"""What each stream is told, and when: differences of catalogs and verdicts, bounds, staleness, the end."""

import asyncio
from collections.abc import Mapping

import pytest

from toska_mesh.aio import Latest
from toska_mesh.discovery import watch
from toska_mesh.discovery.validation import InvalidArgumentError
from toska_mesh.discovery.watch import DrainingError, LimitReachedError, Watcher, WatchHub
from toska_mesh.model import (
    NO_VERDICTS,
    CatalogSnapshot,
    Endpoint,
    HealthStatus,
    Instance,
    InstanceId,
    ServiceName,
    Verdicts,
)
from toska_mesh.pb import mesh_pb2

ORDERS, CARTS = ServiceName("orders"), ServiceName("carts")


def instance(number: int, service: ServiceName = ORDERS, **fields: object) -> Instance:
    return Instance(service, InstanceId(f"{service}-{number}"), Endpoint("10.0.0.1", 8000 + number), **fields)  # type: ignore[arg-type]


def catalog(services: Mapping[ServiceName, tuple[Instance, ...]], **fields: object) -> CatalogSnapshot:
    return CatalogSnapshot(services, **fields)  # type: ignore[arg-type]


def told(watcher: Watcher, now: float = 0.0) -> dict[str, list[str]] | None:
    """What the next message says: the ids of each service, or None when nothing is due."""
    update = watcher.take(now)
    if update is None:
        return None
    message = mesh_pb2.WatchUpdate.FromString(update.data)
    return {state.serviceName: [one.serviceId for one in state.instances] for state in message.services}


def message(watcher: Watcher, now: float = 0.0) -> mesh_pb2.WatchUpdate:
    update = watcher.take(now)
    assert update is not None
    return mesh_pb2.WatchUpdate.FromString(update.data)


async def heard(watcher: Watcher) -> mesh_pb2.WatchUpdate:
    """The next message, waited for as a stream does."""
    while (update := watcher.take(asyncio.get_running_loop().time())) is None:
        await watcher.news()
    return mesh_pb2.WatchUpdate.FromString(update.data)


@pytest.fixture
def hub() -> WatchHub:
    return WatchHub(max_watchers=3)


def test_nothing_is_told_before_there_is_a_catalog_and_everything_with_it(hub: WatchHub) -> None:
    with hub.open() as watcher:
        watcher.add([ORDERS, CARTS])
        assert told(watcher) is None
        hub.take_catalog(catalog({ORDERS: (instance(1),)}))
        assert told(watcher) == {ORDERS: ["orders-1"], CARTS: []}
        assert told(watcher) is None


def test_a_name_is_answered_at_once_and_a_stranger_with_no_instances(hub: WatchHub) -> None:
    hub.take_catalog(catalog({ORDERS: (instance(1),)}))
    with hub.open() as watcher:
        watcher.add([ORDERS])
        assert told(watcher) == {ORDERS: ["orders-1"]}
        watcher.add([ORDERS, "nobody"])
        assert told(watcher) == {"nobody": []}


def test_only_what_changed_is_told_and_only_to_those_who_follow_it(hub: WatchHub) -> None:
    before = {ORDERS: (instance(1),), CARTS: (instance(1, CARTS),)}
    hub.take_catalog(catalog(before))
    with hub.open() as one, hub.open() as two:
        one.add([ORDERS])
        two.add([ORDERS, CARTS])
        assert told(one) is not None
        assert told(two) is not None
        hub.take_catalog(catalog({**before, CARTS: ()}))
        assert told(one) is None
        assert told(two) == {CARTS: []}
        hub.take_catalog(catalog({**before, CARTS: ()}, version=7))
        assert told(two) is None


def test_a_slow_reader_gets_the_newest_state_and_no_backlog(hub: WatchHub) -> None:
    hub.take_catalog(catalog({}))
    with hub.open() as watcher:
        watcher.add([ORDERS])
        for count in range(1, 50):
            hub.take_catalog(catalog({ORDERS: tuple(instance(number) for number in range(count))}))
        assert told(watcher) == {ORDERS: [f"orders-{number}" for number in range(49)]}
        assert told(watcher) is None


def test_everything_of_an_instance_is_told(hub: WatchHub) -> None:
    known = instance(
        1, status=HealthStatus.DEGRADED, metadata={"scheme": "http"}, output="draining: bye", create_index=2**40
    )
    hub.take_catalog(catalog({ORDERS: (known,)}))
    hub.take_verdicts(Verdicts({ORDERS: {known.id: HealthStatus.UNHEALTHY}}, {ORDERS: 4}))
    with hub.open() as watcher:
        watcher.add([ORDERS])
        (state,) = message(watcher).services
    assert (dict(state.verdicts), state.probed) == ({"orders-1": 2}, 4)
    (found,) = state.instances
    assert (found.serviceId, found.address, found.port, found.status) == ("orders-1", "10.0.0.1", 8001, 3)
    assert (dict(found.metadata), found.output, found.createIndex) == ({"scheme": "http"}, "draining: bye", 2**40)


def test_words_of_the_registry_are_cut(hub: WatchHub) -> None:
    hub.take_catalog(catalog({ORDERS: (instance(1, output="x" * 5000),)}))
    with hub.open() as watcher:
        watcher.add([ORDERS])
        assert len(message(watcher).services[0].instances[0].output) == 512


def test_verdicts_come_and_go_by_themselves(hub: WatchHub) -> None:
    hub.take_catalog(catalog({ORDERS: (instance(1),), CARTS: (instance(1, CARTS),)}))
    with hub.open() as watcher:
        watcher.add([ORDERS, CARTS])
        assert [state.probed for state in message(watcher).services] == [-1, -1]
        found = Verdicts({ORDERS: {InstanceId("orders-1"): HealthStatus.UNHEALTHY}}, {ORDERS: 2**40})
        hub.take_verdicts(found)
        (state,) = message(watcher).services
        assert (state.serviceName, state.probed) == (ORDERS, 2**31 - 1)
        hub.take_verdicts(Verdicts(dict(found.services), dict(found.probed)))
        assert told(watcher) is None
        hub.take_verdicts(NO_VERDICTS)
        (state,) = message(watcher).services
        assert (dict(state.verdicts), state.probed) == ({}, -1)


def test_a_state_is_encoded_once_for_all_streams_and_only_where_it_changed(
    hub: WatchHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    real = watch.encode

    def counting(name: ServiceName, *args: object) -> object:
        encoded.append(name)
        return real(name, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(watch, "encode", counting)
    many, few = tuple(instance(number) for number in range(100)), (instance(1, CARTS),)
    hub.take_catalog(catalog({ORDERS: many, CARTS: few}))
    with hub.open() as one, hub.open() as two:
        for watcher in (one, two):
            watcher.add([ORDERS, CARTS])
            assert told(watcher) is not None
        assert encoded == [ORDERS, CARTS]
        changed = (*many[:-1], instance(99, status=HealthStatus.UNHEALTHY))
        hub.take_catalog(catalog({ORDERS: changed, CARTS: few}))
        updates = [one.take(0.0), two.take(0.0)]
        assert encoded == [ORDERS, CARTS, ORDERS]
    assert updates[0] is not None
    assert updates[1] is not None
    assert updates[0].data is updates[1].data
    (state,) = mesh_pb2.WatchUpdate.FromString(updates[0].data).services
    assert [found.status for found in state.instances] == [0] * 99 + [2]


def test_much_is_told_in_several_messages(hub: WatchHub) -> None:
    names = [ServiceName(f"service-{number}") for number in range(500)]
    hub.take_catalog(catalog({name: (instance(1, name, metadata={"k": "v" * 400}),) for name in names}))
    with hub.open() as watcher:
        watcher.add(names)
        found: list[str] = []
        while (update := watcher.take(0.0)) is not None:
            assert len(update.data) < watch.UPDATE_BYTES + 1000
            found += [state.serviceName for state in mesh_pb2.WatchUpdate.FromString(update.data).services]
    assert found == names


def test_telling_again_is_accounted_for_and_the_first_time_is_not(hub: WatchHub) -> None:
    hub.take_catalog(catalog({ORDERS: (instance(1),)}))
    with hub.open() as one, hub.open() as two:
        one.add([ORDERS])
        two.add([ORDERS])
        first = one.take(0.0)
        hub.take_catalog(catalog({ORDERS: (instance(2),)}))
        again = one.take(0.0)
    assert first is not None
    assert again is not None
    assert (first.again_bytes, again.again_bytes) == (0, 2 * len(again.data))


def test_bad_and_too_many_names_are_refused(hub: WatchHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_NAMES_PER_STREAM", 3)
    monkeypatch.setattr(watch, "MAX_NAMES", 5)
    with hub.open() as one:
        with pytest.raises(InvalidArgumentError, match="0 characters"):
            one.add([""])
        with pytest.raises(InvalidArgumentError, match="256 characters"):
            one.add(["x" * 256])
        with pytest.raises(LimitReachedError, match="at most 3"):
            one.add(["a", "b", "c", "d"])
        one.add(["a", "b", "c"])
        with hub.open() as two:
            with pytest.raises(LimitReachedError, match="follow 5 services"):
                two.add(["a", "b", "c"])
            assert hub.name_count == 5
    assert (hub.name_count, hub.watcher_count) == (0, 0)


def test_too_many_streams_are_refused_until_one_has_ended(hub: WatchHub) -> None:
    with hub.open(), hub.open():
        with hub.open(), pytest.raises(LimitReachedError, match="3 streams"):
            hub.open()
        with hub.open():
            assert hub.watcher_count == 3


def test_what_nobody_follows_is_forgotten(hub: WatchHub) -> None:
    hub.take_catalog(catalog({ORDERS: (instance(1),)}))
    with hub.open() as watcher:
        watcher.add([ORDERS, "nobody"])
        assert told(watcher) is not None
    assert (hub._readers, hub._encoded, hub._fresh) == ({}, {}, set())


async def test_staleness_is_told_but_not_at_every_flutter(hub: WatchHub) -> None:
    source, verdicts = Latest[CatalogSnapshot](), Latest[Verdicts]()
    services = {ORDERS: (instance(1),)}
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        hub_run = tasks.create_task(hub.run(source, verdicts))
        with hub.open() as watcher:
            watcher.add([ORDERS])
            source.set(catalog(services))
            assert not (await heard(watcher)).staleReason
            assert watcher.take(0.0) is None

            source.set(catalog(services, stale_since=-2.0, stale_reason="gone"))
            said = await heard(watcher)
            assert (said.staleReason, said.staleSeconds, list(said.services)) == ("gone", 2.0, [])
            assert watcher.take(0.0) is None

            began = loop.time()
            count = 0
            for number in range(40):
                stale_since = loop.time() if number % 2 else None
                source.set(catalog(services, stale_since=stale_since, stale_reason="gone" if number % 2 else ""))
                await asyncio.sleep(0.1)
                count += watcher.take(loop.time()) is not None
            assert count <= loop.time() - began + 1

            source.set(catalog(services))
            await asyncio.sleep(1.1)
            assert (await heard(watcher)).staleReason == ""
        hub_run.cancel()


async def test_a_sign_of_life_says_how_old_the_news_is(hub: WatchHub) -> None:
    assert mesh_pb2.WatchUpdate.FromString(hub.staleness(0.0)).staleReason == watch.NO_CATALOG
    hub.take_catalog(catalog({}))
    assert hub.staleness(1.0) == b""
    hub.take_catalog(catalog({}, stale_since=1.0, stale_reason="gone"))
    assert mesh_pb2.WatchUpdate.FromString(hub.staleness(4.5)).staleSeconds == 3.5


async def test_a_rest_lasts_its_time_or_until_the_stream_should_end(hub: WatchHub) -> None:
    loop = asyncio.get_running_loop()
    with hub.open() as watcher:
        await watcher.rest(3)
        assert loop.time() == 3
        loop.call_later(1, hub.drain)
        await watcher.rest(3)
        assert loop.time() == 4


def test_a_drain_ends_all_streams_and_lets_none_begin(hub: WatchHub) -> None:
    with hub.open() as watcher:
        hub.drain()
        assert isinstance(watcher.ended_by, DrainingError)
        with pytest.raises(DrainingError):
            hub.open()

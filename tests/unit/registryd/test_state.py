"""What the clock, a restart and a repeated command do to the state."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.registryd.harness import Disk, add, ttl_check

from toska_mesh.registryd.state import State
from toska_mesh.registryd.values import Behavior, Check, Service, Session, Status


def check(state: State, check_id: str = "service:a") -> Check:
    found = state.catalog.check(check_id)
    assert found is not None
    return found


def test_a_check_expires_at_its_ttl_and_not_before() -> None:
    state = Disk().state()
    add(state, "a", ttl_seconds=30)
    state.expire(29.999)
    assert check(state).status is Status.PASSING
    assert state.expire(30.0).checks == ("service:a",)
    assert (check(state).status, check(state).output) == (Status.CRITICAL, "TTL expired")


def test_a_beat_moves_the_deadline_and_writes_nothing() -> None:
    disk = Disk()
    state = disk.state()
    add(state, "a", ttl_seconds=30)
    written, index = len(disk.batches), state.index
    disk.woken.clear()
    for second in range(1, 100):
        assert state.renew_check(check(state), Status.PASSING, "", float(second)) is False
        state.expire(float(second))
    assert (len(disk.batches), state.index, disk.woken) == (written, index, [])
    assert check(state).status is Status.PASSING


def test_the_last_output_is_part_of_the_expiry_even_if_the_catalog_never_saw_it() -> None:
    state = Disk().state()
    add(state, "a", ttl_seconds=30)
    state.renew_check(check(state), Status.PASSING, "all well", 1.0)
    state.expire(31.0)
    assert check(state).output == "TTL expired (last output before timeout follows): all well"


def test_an_expired_check_stays_expired_once() -> None:
    disk = Disk()
    state = disk.state()
    add(state, "a", ttl_seconds=30)
    state.expire(30.0)
    index = state.index
    assert state.expire(1000.0).checks == ()
    assert state.index == index


def test_an_output_reaches_the_catalog_within_seven_and_a_half_minutes() -> None:
    disk = Disk()
    state = disk.state()
    add(state, "a", ttl_seconds=10_000)
    state.renew_check(check(state), Status.PASSING, "new", 0.0)
    assert state.output_of(check(state)) == "new"
    state.expire(149.0)
    assert check(state).output == ""
    state.expire(450.0)
    assert check(state).output == "new"
    assert ("checks of", "web") in disk.woken


@pytest.mark.parametrize(("grace", "due"), [(10.0, 60.0), (60.0, 60.0), (90.0, 90.0)])
def test_a_service_is_removed_after_its_grace_which_is_a_minute_at_least(grace: float, due: float) -> None:
    state = Disk().state()
    add(state, "a", ttl_seconds=30, deregister_after_seconds=grace)
    state.expire(30.0)
    state.expire(30.0 + due - 0.001)
    assert state.catalog.service("a") is not None
    assert state.expire(30.0 + due).reaped_services == ("a",)
    assert state.catalog.service("a") is None
    assert state.catalog.check("service:a") is None


def test_a_recovered_service_is_not_removed() -> None:
    state = Disk().state()
    add(state, "a", ttl_seconds=30, deregister_after_seconds=60)
    state.expire(30.0)
    state.renew_check(check(state), Status.PASSING, "", 80.0)
    state.expire(100.0)
    state.renew_check(check(state), Status.PASSING, "", 105.0)
    state.expire(120.0)
    assert state.catalog.service("a") is not None


def test_registering_again_does_not_extend_the_grace() -> None:
    state = Disk().state()
    add(state, "a", ttl_seconds=30, deregister_after_seconds=60)
    state.expire(30.0)
    add(state, "a", 80.0, ttl_seconds=30, deregister_after_seconds=60)
    assert check(state).status is Status.CRITICAL
    assert state.expire(90.0).reaped_services == ("a",)


def test_registering_the_same_again_changes_nothing() -> None:
    disk = Disk()
    state = disk.state()
    add(state, "a")
    before = (state.index, len(disk.batches), state.catalog.service("a"), check(state))
    add(state, "a", 5.0)
    assert (state.index, len(disk.batches), state.catalog.service("a"), check(state)) == before


def test_a_new_ttl_alone_is_stored_but_wakes_nobody() -> None:
    disk = Disk()
    state = disk.state()
    add(state, "a", ttl_seconds=30)
    index, disk.woken = state.index, []
    add(state, "a", ttl_seconds=60)
    assert (state.index, disk.woken) == (index, [])
    assert check(disk.state()).ttl_seconds == 60


def test_after_a_restart_every_check_has_its_full_ttl_and_grace() -> None:
    disk = Disk()
    state = disk.state()
    add(state, "a", ttl_seconds=30, deregister_after_seconds=60)
    add(state, "b", ttl_seconds=30, deregister_after_seconds=60)
    state.renew_check(check(state, "service:b"), Status.CRITICAL, "down", 1.0)
    again = disk.state(now=5000.0, index=99)
    assert again.expire(5029.0).checks == ()
    assert again.catalog.service("b") is not None
    assert set(again.expire(5030.0).checks) == {"service:a", "service:b"}
    assert again.expire(5060.0).reaped_services == ("b",)
    assert again.expire(5090.0).reaped_services == ("a",)


def test_after_a_restart_all_indexes_are_above_those_seen_before() -> None:
    disk = Disk()
    state = disk.state()
    add(state, "a")
    state.put_key("k", b"v", 0)
    seen = state.index
    again = disk.state(index=seen + 1000)
    catalog = again.catalog
    for index in (
        catalog.services_index,
        catalog.checks_index,
        catalog.name_index("web"),
        catalog.name_index("never"),
        again.kv.key_index("k"),
        again.kv.key_index("never"),
        again.kv.prefix_index("k"),
        again.kv.prefix_index("never"),
        again.sessions.index,
    ):
        assert index > seen


def session(behavior: Behavior = Behavior.RELEASE, **fields: object) -> Session:
    return replace(Session("s", "n", behavior, lock_delay_ns=5_000_000_000, ttl="10s", ttl_seconds=10.0), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("behavior", list(Behavior))
def test_a_session_ends_after_twice_its_ttl_and_frees_its_keys(behavior: Behavior) -> None:
    disk = Disk()
    state = disk.state()
    state.create_session(session(behavior), 0.0)
    assert state.acquire_key("k", b"v", 0, "s", 0.0)
    state.renew_session(session(behavior), 5.0)
    assert state.expire(24.999).sessions == ()
    disk.woken.clear()
    assert state.expire(25.0).sessions == ("s",)
    assert {("kv", "k"), ("sessions", ""), ("session", "s")} <= set(disk.woken)
    entry = state.kv.get("k")
    assert (entry is None) if behavior is Behavior.DELETE else (entry is not None and entry.session == "")


def test_the_lock_delay_begins_when_the_holder_is_lost() -> None:
    state = Disk().state()
    state.create_session(session(), 0.0)
    state.create_session(session(id="t"), 0.0)
    state.acquire_key("k", b"v", 0, "s", 0.0)
    state.destroy_session(session(), 3.0)
    assert not state.acquire_key("k", b"v", 0, "t", 7.999)
    assert state.acquire_key("k", b"v", 0, "t", 8.0)


@pytest.mark.parametrize("how", ["critical", "removed", "expired", "deregistered", "maintenance"])
def test_a_session_ends_with_its_check(how: str) -> None:
    state = Disk().state()
    add(state, "a", ttl_seconds=30)
    watched = "_service_maintenance:a" if how == "maintenance" else "service:a"
    state.create_session(session(node_checks=(), service_checks=(watched,), ttl_seconds=0.0), 0.0)
    match how:
        case "critical":
            state.renew_check(check(state), Status.CRITICAL, "", 1.0)
        case "removed":
            state.deregister_check("service:a", 1.0)
        case "expired":
            state.expire(30.0)
        case "deregistered":
            state.deregister_service("a", 1.0)
        case _:
            state.set_service_maintenance(Service("a", "web"), "why", 1.0)
    assert state.sessions.get("s") is None


def test_a_stall_gives_everything_its_length_as_grace() -> None:
    state = Disk().state()
    add(state, "a", ttl_seconds=30)
    state.deadlines.postpone(40.0)
    assert state.expire(69.0).checks == ()
    assert state.expire(70.0).checks == ("service:a",)


IDS = st.sampled_from(["a", "b", "c"])
COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("register"), IDS, st.sampled_from(["web", "api"]), st.integers(1, 2)),
        st.tuples(st.just("deregister"), IDS, st.just(""), st.just(0)),
        st.tuples(st.just("beat"), IDS, st.sampled_from(list(Status)), st.just(0)),
        st.tuples(st.just("drop check"), IDS, st.just(""), st.just(0)),
        st.tuples(st.just("put"), IDS, st.sampled_from(["", "x"]), st.just(0)),
        st.tuples(st.just("delete"), IDS, st.just(""), st.just(0)),
        st.tuples(st.just("lock"), IDS, IDS, st.just(0)),
        st.tuples(st.just("session"), IDS, st.sampled_from(list(Behavior)), st.just(0)),
        st.tuples(st.just("destroy"), IDS, st.just(""), st.just(0)),
        st.tuples(st.just("maintain"), IDS, st.sampled_from(["why", ""]), st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.just(""), st.integers(1, 60)),
    ),
    max_size=40,
)


def do(state: State, step: tuple[str, str, str, int], now: float) -> None:
    kind, name, extra, number = step
    match kind:
        case "register":
            grace = ttl_check(name, 30.0 * number, deregister_after_seconds=60.0)
            state.register_service(Service(name, extra, port=number), [grace], now)
        case "deregister":
            state.deregister_service(name, now)
        case "beat":
            found = state.catalog.check(f"service:{name}")
            if found is not None:
                state.renew_check(found, Status(extra), f"at {now}", now)
        case "drop check":
            state.deregister_check(f"service:{name}", now)
        case "put":
            state.put_key(name, extra.encode(), 0)
        case "delete":
            state.delete_key(name)
        case "lock":
            state.acquire_key(name, b"l", 0, extra, now)
        case "session":
            if state.sessions.get(name) is None:
                on = (f"service:{name}",) if state.catalog.check(f"service:{name}") else ()
                state.create_session(Session(name, "n", Behavior(extra), 0, "", 20.0, on), now)
        case "destroy":
            found_session = state.sessions.get(name)
            if found_session is not None:
                state.destroy_session(found_session, now)
        case "maintain":
            service = state.catalog.service(name)
            if service is not None:
                state.set_service_maintenance(service, extra or None, now)


def visible(state: State) -> tuple[object, ...]:
    catalog = state.catalog
    return (
        list(catalog.services()),
        [item for item in catalog.checks() if item.kind],
        state.kv.under(""),
        list(state.sessions.all()),
        {name: [item.id for item in catalog.instances(name)] for name in ("web", "api")},
        {id_: [item.id for item in catalog.checks_of(id_)] for id_ in ("a", "b", "c")},
        {id_: [item.id for item in state.sessions.hanging_on(f"service:{id_}")] for id_ in ("a", "b", "c")},
    )


@given(COMMANDS)
def test_what_was_persisted_is_what_was_there_after_every_command(steps: list[tuple[str, str, str, int]]) -> None:
    disk = Disk()
    state = disk.state()
    now = 0.0
    for step in steps:
        index, wrote = state.index, len(disk.batches)
        if step[0] == "wait":
            now += step[3]
            state.expire(now)
        else:
            do(state, step, now)
        assert state.index >= index
        assert state.index == index or len(disk.batches) > wrote  # an index never moves without a row
        assert visible(disk.state(now)) == visible(state)


@given(COMMANDS)
def test_every_index_that_moves_wakes_its_watchers(steps: list[tuple[str, str, str, int]]) -> None:
    disk = Disk()
    state = State(disk.stored(1), 0.0, disk.persist, disk.wake, Random(1))
    catalog = state.catalog
    now = 0.0
    for step in steps:
        before = (catalog.services_index, catalog.name_index("web"), state.kv.index, state.sessions.index)
        checks = [item for item in catalog.checks() if item.kind]
        disk.woken.clear()
        if step[0] == "wait":
            now += step[3]
            state.expire(now)
        else:
            do(state, step, now)
        woken = set(disk.woken)
        after = (catalog.services_index, catalog.name_index("web"), state.kv.index, state.sessions.index)
        if after[0] != before[0]:
            assert ("services", "") in woken
        if catalog.instances("web") and after[1] != before[1]:
            assert woken & {("service", "web"), ("checks of", "web")}
        if after[2] != before[2]:
            assert any(topic[0] == "kv" for topic in woken)
        if after[3] != before[3]:
            assert ("sessions", "") in woken
        if [item for item in catalog.checks() if item.kind] != checks:
            assert ("checks", "") in woken or step[0] == "register"

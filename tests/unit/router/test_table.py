"""Tables: what is routed, what is shared with the table before, and what they explain."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.router.build import ORDERS, eligible, ids, instance, reasons, snapshot

from toska_mesh.model import CatalogSnapshot, HealthStatus, Instance, InstanceId, ServiceName, Verdicts
from toska_mesh.router import RouteTable, RoutingPolicy, Service, Target


def build(
    catalog: CatalogSnapshot,
    previous: RouteTable | None = None,
    now: float = 0.0,
    verdicts: Verdicts | None = None,
    policy: RoutingPolicy | None = None,
) -> RouteTable:
    return RouteTable.build(catalog, verdicts or Verdicts(), policy, previous, Target, now, Random(1))


def orders(table: RouteTable) -> Service:
    service = table.service("orders")
    assert service is not None
    return service


def objections(**services: dict[str, HealthStatus]) -> Verdicts:
    return Verdicts(
        {
            ServiceName(name): {InstanceId(id): verdict for id, verdict in found.items()}
            for name, found in services.items()
        }
    )


class TestNames:
    def test_a_service_is_found_in_any_case_and_by_its_bytes(self) -> None:
        table = build(snapshot(instance("a", service="Orders")))
        service = table.services["orders"]
        assert service.name == "Orders"
        assert table.service("ORDERS") is service
        assert table.by_bytes[b"orders"] is table.by_bytes[b"Orders"] is service
        assert table.service("payments") is None

    def test_of_two_names_that_differ_in_case_the_newest_registration_wins(self) -> None:
        table = build(
            snapshot(
                instance("a", service="Orders", created=5),
                instance("b", service="orders", created=9),
                instance("c", service="ORDERS", created=7),
            )
        )
        service = table.services["orders"]
        assert service.name == "orders"
        assert eligible(service) == ["b"]
        assert service.warnings == (
            "'ORDERS', 'Orders' differ only in case and are not routed; 'orders' was registered last",
        )
        assert set(table.unrouted) == {"Orders", "ORDERS"}

    def test_when_the_winning_name_changes_the_losers_targets_depart(self) -> None:
        first = build(snapshot(instance("a", service="Orders", created=5)))
        second = build(
            snapshot(instance("a", service="Orders", created=5), instance("b", service="orders", created=9)), first
        )
        assert second.services["orders"].name == "orders"
        assert ids(second.departed) == "a"

    @pytest.mark.parametrize(
        ("service", "is_member", "expose_all", "is_routed"),
        [
            ("orders", True, False, True),
            ("orders", False, False, False),
            ("orders", False, True, True),
            ("consul", True, True, False),
            ("Consul", True, True, False),
            ("consul-esm", True, False, True),
        ],
    )
    def test_which_services_are_routed(self, service: str, is_member: bool, expose_all: bool, is_routed: bool) -> None:
        table = build(
            snapshot(instance("a", service=service, is_member=is_member)), policy=RoutingPolicy(expose_all=expose_all)
        )
        assert (service.lower() in table.services) is is_routed
        assert (service in table.unrouted) is not is_routed

    def test_a_service_without_instances_is_not_routed(self) -> None:
        assert build(CatalogSnapshot({ORDERS: ()})).unrouted == {"orders": "no instance"}


class TestReuse:
    def test_what_did_not_change_is_the_same_object(self) -> None:
        first = build(snapshot(instance("a"), instance("p", service="payments")))
        second = build(snapshot(instance("a"), instance("q", service="payments"), version=2), first)
        assert second.services["orders"] is first.services["orders"]
        assert second.services["payments"] is not first.services["payments"]
        assert (first.version, second.version) == (1, 2)
        assert second.catalog_version == 2

    def test_a_target_outlives_changes_of_its_instance(self) -> None:
        first = build(snapshot(instance("a")))
        target = orders(first).targets[0]
        target.in_flight = 3
        for changed in (
            instance("a", HealthStatus.UNHEALTHY),
            instance("a", weight="7"),
            instance("a", lb_strategy="P2C"),
        ):
            first = build(snapshot(changed), first)
            assert orders(first).everything[0].target is target
            assert target.instance == changed
        assert target.in_flight == 3
        assert first.departed == ()

    def test_a_new_endpoint_is_a_new_target(self) -> None:
        first = build(snapshot(instance("a", port=80)))
        second = build(snapshot(instance("a", port=81)), first)
        assert second.departed == orders(first).targets
        assert orders(second).targets != orders(first).targets

    def test_targets_that_left_are_named_once(self) -> None:
        first = build(snapshot(instance("a"), instance("b"), instance("p", service="payments")))
        second = build(snapshot(instance("b")), first)
        assert sorted(ids([target]) for target in second.departed) == ["a", "p"]
        assert build(snapshot(instance("b")), second).departed == ()

    def test_new_words_about_a_check_are_shown_without_a_rebuild(self) -> None:
        first = build(snapshot(instance("a", output="slow")))
        second = build(snapshot(instance("a", output="slower")), first)
        assert orders(second) is orders(first)
        assert second.explain(0.0)["services"][0]["instances"][0]["output"] == "slower"

    @pytest.mark.parametrize(
        "verdicts",
        [
            objections(orders={"a": HealthStatus.UNHEALTHY}),
            Verdicts(probed={ORDERS: 2}),
        ],
        ids=["objection", "probed"],
    )
    def test_other_verdicts_make_another_service(self, verdicts: Verdicts) -> None:
        catalog = snapshot(instance("a"), instance("b"))
        first = build(catalog)
        second = build(catalog, first, verdicts=verdicts)
        assert orders(second) is not orders(first)
        assert orders(build(catalog, second, verdicts=verdicts)) is orders(second)

    def test_another_policy_makes_all_services_anew_around_the_same_targets(self) -> None:
        catalog = snapshot(instance("a"))
        first = build(catalog)
        second = build(catalog, first, policy=RoutingPolicy(expose_all=True))
        assert orders(second) is not orders(first)
        assert orders(second).targets == orders(first).targets
        assert second.departed == ()

    def test_the_policy_stays_unless_another_is_given(self) -> None:
        policy = RoutingPolicy(expose_all=True)
        first = build(snapshot(instance("a")), policy=policy)
        assert build(snapshot(instance("a")), first).policy is policy

    def test_verdicts_that_vanish_make_instances_eligible_again(self) -> None:
        catalog = snapshot(instance("a"), instance("b"))
        first = build(catalog, verdicts=objections(orders={"a": HealthStatus.UNHEALTHY}))
        assert eligible(orders(first)) == ["b"]
        assert eligible(orders(build(catalog, first))) == ["a", "b"]

    def test_one_id_and_endpoint_seen_twice_is_one_target(self) -> None:
        table = build(snapshot(instance("a"), instance("a")))
        assert eligible(orders(table)) == ["a"]

    @given(st.lists(st.sampled_from("abcdefgh"), unique=True), st.lists(st.sampled_from("abcdefgh"), unique=True))
    def test_targets_are_kept_or_departed(self, before: list[str], after: list[str]) -> None:
        first = build(snapshot(*map(instance, before)))
        second = build(snapshot(*map(instance, after)), first)
        had = {ids([target]): target for service in first.services.values() for target in service.targets}
        has = {ids([target]): target for service in second.services.values() for target in service.targets}
        assert set(has) == set(after)
        assert set(second.departed) == {target for id, target in had.items() if id not in after}
        assert all(has[id] is had[id] for id in has if id in had)


fleets = st.lists(
    st.builds(
        instance,
        st.sampled_from("abc"),
        st.sampled_from(HealthStatus),
        service=st.sampled_from(["orders", "Orders", "payments"]),
        port=st.integers(80, 81),
        created=st.integers(0, 1),
        is_member=st.booleans(),
        lb_strategy=st.sampled_from(["", "Random", "nonsense", "ip_hash"]),
        weight=st.sampled_from(["", "2", "x"]),
    ),
    max_size=8,
)


@given(fleets, st.randoms(use_true_random=False))
def test_a_table_does_not_depend_on_the_order_of_its_input(fleet: list[Instance], shuffler: Random) -> None:
    shuffled = list(fleet)
    shuffler.shuffle(shuffled)
    verdicts = objections(orders={"a": HealthStatus.UNHEALTHY, "b": HealthStatus.DEGRADED})
    tables = [build(snapshot(*order), verdicts=verdicts) for order in (fleet, shuffled)]
    assert tables[0].explain(0.0) == tables[1].explain(0.0)
    keys = [None, "x", "y", None]
    for name in tables[0].services:
        one, other = (table.services[name] for table in tables)
        assert ids([one.pick(0.0, key) for key in keys]) == ids([other.pick(0.0, key) for key in keys])


class TestStrategy:
    def test_without_a_word_it_is_round_robin(self) -> None:
        service = orders(build(snapshot(instance("a"), instance("b"))))
        assert service.strategy == "RoundRobin"
        assert ids([service.pick(0.0) for _ in range(4)]) == "a b a b"

    def test_the_newest_registration_decides_and_the_conflict_is_said(self) -> None:
        service = orders(
            build(
                snapshot(
                    instance("a", created=9, lb_strategy="least_connections"),
                    instance("b", created=3, lb_strategy="Random"),
                    instance("c", created=11),
                )
            )
        )
        assert service.strategy == "LeastConnections"
        assert service.warnings == (
            "instances disagree on lb_strategy: 'a', registered last, says 'least_connections'; others say 'Random'",
        )

    def test_two_spellings_of_one_strategy_are_no_conflict(self) -> None:
        catalog = snapshot(instance("a", lb_strategy="IPHash"), instance("b", lb_strategy="ip_hash"))
        assert orders(build(catalog)).warnings == ()

    def test_an_unknown_strategy_is_round_robin_with_a_warning(self) -> None:
        service = orders(build(snapshot(instance("a", lb_strategy="Fastest"))))
        assert service.strategy == "RoundRobin"
        assert service.warnings == ("lb_strategy 'Fastest' of 'a' is unknown; RoundRobin is used",)

    @pytest.mark.parametrize(
        ("written", "weight", "is_said"),
        [
            ("3", 3, False),
            (" 3 ", 3, False),
            ("", 1, False),
            ("007", 7, False),
            ("1000", 1000, False),
            ("1001", 1000, True),
            ("1" + "0" * 500, 1000, True),
            ("0", 1, True),
            ("000", 1, True),
            ("-3", 1, True),
            ("2.5", 1, True),
            ("heavy", 1, True),
            ("²", 1, True),
        ],
    )
    def test_weights_are_whole_numbers_within_bounds(self, written: str, weight: int, is_said: bool) -> None:
        service = orders(build(snapshot(instance("a", weight=written))))
        assert service.targets[0].weight == weight
        assert bool(service.warnings) is is_said

    def test_weighted_round_robin_uses_the_weights(self) -> None:
        fleet = [
            instance(id, lb_strategy="WeightedRoundRobin", weight=weight)
            for id, weight in zip("abc", "311", strict=True)
        ]
        service = orders(build(snapshot(*fleet)))
        assert ids([service.pick(0.0) for _ in range(10)]) == "a b a c a a b a c a"


class TestSlowStart:
    POLICY = RoutingPolicy(slow_start_seconds=10.0)

    def counts(self, service: Service, now: float, requests: int = 100) -> dict[str, int]:
        picked = [ids([service.pick(now)]) for _ in range(requests)]
        return {id: picked.count(id) for id in sorted(set(picked))}

    def test_the_first_table_starts_at_full_share(self) -> None:
        service = orders(build(snapshot(instance("a"), instance("b")), policy=self.POLICY, now=100.0))
        assert self.counts(service, 100.0) == {"a": 50, "b": 50}

    def test_a_newcomer_ramps_up_and_then_costs_nothing(self) -> None:
        first = build(snapshot(instance("a")), policy=self.POLICY, now=100.0)
        service = orders(build(snapshot(instance("a"), instance("b")), first, now=150.0))
        assert ids([service.pick(150.0), service.pick(150.0)]).split().count("b") == 1
        start = self.counts(service, 150.0)["b"]
        middle = self.counts(service, 155.0)["b"]
        assert 5 <= start <= 12
        assert 30 <= middle <= 36
        assert self.counts(service, 160.0) == {"a": 50, "b": 50}
        assert service.pick == service._picker.pick

    def test_a_rebuild_in_the_middle_does_not_restart_the_ramp(self) -> None:
        table = build(snapshot(instance("a")), policy=self.POLICY, now=100.0)
        table = build(snapshot(instance("a"), instance("b")), table, now=150.0)
        table = build(snapshot(instance("a"), instance("b"), instance("c", HealthStatus.UNHEALTHY)), table, now=159.0)
        assert orders(table).targets[1].share(159.0) == pytest.approx(0.9)
        assert orders(table).targets[1].share(160.0) == 1.0

    def test_instances_that_come_up_together_share_evenly_at_once(self) -> None:
        table = build(CatalogSnapshot(), policy=self.POLICY, now=100.0)
        table = build(snapshot(instance("a")), table, now=150.0)
        service = orders(build(snapshot(instance("a"), instance("b")), table, now=150.1))
        assert self.counts(service, 150.2) == {"a": 50, "b": 50}

    def test_the_ramp_begins_when_an_instance_first_may_be_asked(self) -> None:
        table = build(snapshot(instance("a")), policy=self.POLICY, now=100.0)
        table = build(snapshot(instance("a"), instance("b", HealthStatus.UNHEALTHY)), table, now=150.0)
        table = build(snapshot(instance("a"), instance("b")), table, now=200.0)
        assert orders(table).targets[1].share(201.0) == pytest.approx(0.1)

    def test_an_instance_that_was_only_away_does_not_ramp_again(self) -> None:
        table = build(snapshot(instance("a"), instance("b")), policy=self.POLICY, now=100.0)
        table = build(snapshot(instance("a"), instance("b", HealthStatus.UNHEALTHY)), table, now=150.0)
        table = build(snapshot(instance("a"), instance("b")), table, now=200.0)
        assert orders(table).targets[1].share(200.0) == 1.0

    def test_it_can_be_turned_off(self) -> None:
        first = build(snapshot(instance("a")), policy=RoutingPolicy(slow_start_seconds=0.0), now=100.0)
        service = orders(build(snapshot(instance("a"), instance("b")), first, now=150.0))
        assert self.counts(service, 150.0) == {"a": 50, "b": 50}


class TestExplain:
    def test_it_says_of_each_instance_what_was_decided_and_why(self) -> None:
        table = build(
            snapshot(
                instance("a", port=81, output="ok"),
                instance("b", HealthStatus.DEGRADED, port=82),
                instance("p", service="postgres", is_member=False),
            ),
            verdicts=objections(orders={"b": HealthStatus.UNHEALTHY}),
        )
        orders(table).targets[0].in_flight = 2
        explained = table.explain(0.0)
        assert explained["unrouted"] == {
            "postgres": "no instance carries a mesh metadata key (health_check_endpoint, lb_strategy, scheme)"
        }
        assert explained["services"] == [
            {
                "name": "orders",
                "strategy": "RoundRobin",
                "eligible": 1,
                "in_panic": False,
                "warnings": [],
                "instances": [
                    {
                        "id": "a",
                        "address": "10.0.0.1",
                        "port": 81,
                        "status": "Healthy",
                        "output": "ok",
                        "verdict": None,
                        "eligible": True,
                        "reason": "",
                        "weight": 1,
                        "share": 1.0,
                        "in_flight": 2,
                        "blocked": False,
                    },
                    {
                        "id": "b",
                        "address": "10.0.0.1",
                        "port": 82,
                        "status": "Degraded",
                        "output": "",
                        "verdict": "Unhealthy",
                        "eligible": False,
                        "reason": "Unhealthy by the health monitor's verdict",
                        "weight": 1,
                        "share": 1.0,
                        "in_flight": 0,
                        "blocked": False,
                    },
                ],
            }
        ]

    def test_a_service_without_eligible_instances_stays_known(self) -> None:
        service = orders(build(snapshot(instance("a", HealthStatus.UNHEALTHY))))
        assert service.targets == ()
        assert service.pick(0.0) is None
        assert reasons(service) == {"a": "Unhealthy by the registry"}

    def test_all_blocked_is_told_apart_from_nobody_eligible(self) -> None:
        service = orders(build(snapshot(instance("a"))))
        service.targets[0].is_blocked = True
        assert service.pick(0.0) is None
        assert len(service.targets) == 1


def test_a_subclass_of_target_is_made_once_for_each_instance() -> None:
    class Pooled(Target):
        __slots__ = ("pool",)

    made: list[Target] = []

    def make(one: Instance) -> Target:
        made.append(Pooled(one))
        return made[-1]

    first = RouteTable.build(snapshot(instance("a"), instance("b")), make_target=make)
    second = RouteTable.build(snapshot(instance("a"), instance("c")), previous=first, make_target=make)
    assert ids(made) == "a b c"
    assert all(isinstance(target, Pooled) for target in orders(second).targets)


@pytest.mark.parametrize(
    "values",
    [
        {"slow_start_seconds": -1.0},
        {"panic_threshold": 0.0},
        {"panic_threshold": 1.5},
        {"excluded": frozenset({"Consul"})},
    ],
)
def test_a_policy_without_a_meaning_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        RoutingPolicy(**values)  # type: ignore[arg-type]


OFF = RoutingPolicy(excluded=frozenset({"off"}), slow_start_seconds=0)
EXPOSED = RoutingPolicy(excluded=frozenset({"off"}), slow_start_seconds=0, expose_all=True)

one_instance = st.builds(
    instance,
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from([HealthStatus.HEALTHY, HealthStatus.UNHEALTHY]),
    created=st.integers(1, 3),
    is_member=st.booleans(),
    lb_strategy=st.sampled_from(["RoundRobin", "Random", "nonsense"]),
    port=st.integers(80, 81),
)
steps = st.lists(
    st.tuples(
        # Lower case of lower case is not always the same again, and some names have the lower case of another.
        st.sampled_from(
            ["orders", "Orders", "ORDERS", "pay", "off", "\u0391\u03a3", "\u03b1\u03c2", "\u0130", "i\u0307"]
        ),
        st.none() | st.lists(one_instance, max_size=3, unique_by=lambda one: one.id),
        st.none() | st.dictionaries(st.sampled_from(["a", "b"]), st.just(HealthStatus.UNHEALTHY), max_size=2),
        st.sampled_from([OFF, OFF, OFF, EXPOSED]),
        st.booleans(),
    ),
    max_size=12,
)


class TestIncrements:
    @given(steps)
    def test_a_table_made_from_the_one_before_is_the_one_made_from_nothing(
        self,
        steps: list[tuple[str, list[Instance] | None, dict[str, HealthStatus] | None, RoutingPolicy, bool]],
    ) -> None:
        """However services come, change, lose their rivals and go, and whether or not equal tuples are one object."""
        services: dict[ServiceName, tuple[Instance, ...]] = {}
        verdicts = Verdicts()
        table = oldest = build(CatalogSnapshot({}, 1), policy=OFF)
        for text, found, objections, policy, is_copied in steps:
            name = ServiceName(text)
            services = {key: (*value,) if is_copied else value for key, value in services.items()}
            if found is None:
                services.pop(name, None)
            else:
                services[name] = tuple(replace(one, service=name) for one in found)
            if objections is not None:
                found_by_id = {InstanceId(id): verdict for id, verdict in objections.items()}
                verdicts = Verdicts({**verdicts.services, name: found_by_id}, {**verdicts.probed, name: 3})
            catalog = CatalogSnapshot(services, table.catalog_version + 1)
            before, table = table, build(catalog, table, 0.0, verdicts, policy)
            scratch = build(catalog, None, 0.0, verdicts, policy)

            assert {**table.explain(0.0), "version": 1} == scratch.explain(0.0)
            assert {key: one.name for key, one in table.by_bytes.items()} == {
                key: one.name for key, one in scratch.by_bytes.items()
            }
            assert all(table.services[one.name.lower()] is one for one in table.by_bytes.values())
            assert set(table.departed) == all_targets(before) - all_targets(table)
            assert len(set(table.departed)) == len(table.departed)
            for earlier in (before, oldest):
                assert sorted(table.changes_since(earlier)) == sorted(
                    folded
                    for folded in {*earlier.services, *table.services}
                    if earlier.services.get(folded) is not table.services.get(folded)
                )
            assert set(table.changes_since(None)) == set(table.services)

    def test_what_is_the_same_object_is_not_looked_into(self) -> None:
        class Untouchable(tuple[Instance, ...]):
            looks = 0

            def __iter__(self) -> Iterator[Instance]:
                type(self).looks += 1
                return super().__iter__()

        still = Untouchable([instance("a", service="still")])
        name, other = ServiceName("still"), ServiceName("orders")
        first = build(CatalogSnapshot({name: still, other: (instance("b"),)}, 1))
        looks = Untouchable.looks
        second = build(CatalogSnapshot({name: still, other: (instance("c"),)}, 2), first)
        assert Untouchable.looks == looks > 0
        assert second.services["still"] is first.services["still"]
        assert second.changes_since(first) == ("orders",)


def all_targets(table: RouteTable) -> set[Target]:
    return {target for service in table.services.values() for target in service.all_targets()}

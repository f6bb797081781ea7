"""Which instances may be asked, and when the monitors' objections are not believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.router.build import draining, instance

from toska_mesh.model import HealthStatus, Instance, InstanceId
from toska_mesh.router import RoutingPolicy
from toska_mesh.router.eligibility import Ruling, judge

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = (
    HealthStatus.HEALTHY,
    HealthStatus.DEGRADED,
    HealthStatus.UNHEALTHY,
    HealthStatus.UNKNOWN,
)
POLICY = RoutingPolicy()


def rule(
    *instances: Instance, probed: int | None = None, policy: RoutingPolicy = POLICY, **verdicts: HealthStatus
) -> Ruling:
    return judge(instances, {InstanceId(id): verdict for id, verdict in verdicts.items()}, probed, policy)


def eligible(ruling: Ruling) -> str:
    return " ".join(judgement.instance.id for judgement in ruling.judgements if not judgement.reason)


def reason(ruling: Ruling, id: str) -> str:
    return next(judgement.reason for judgement in ruling.judgements if judgement.instance.id == id)


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        pytest.param([instance("a"), instance("b", DEGRADED)], "a", id="Healthy before Degraded"),
        pytest.param([instance("a", DEGRADED), instance("b", UNKNOWN)], "a", id="Degraded before Unknown"),
        pytest.param([instance("a", DEGRADED), draining("b")], "a", id="Degraded before draining"),
        pytest.param([draining("a"), instance("b", UNKNOWN)], "a", id="draining before Unknown"),
        pytest.param([draining("a"), draining("b", DEGRADED)], "a b", id="all draining: all of them"),
        pytest.param([draining("a", UNHEALTHY)], "", id="draining and Unhealthy: nobody"),
        pytest.param(
            [instance("a", DEGRADED, output="draining: a deploy"), instance("b", DEGRADED)], "b", id="drain note"
        ),
        pytest.param([instance("a", output="draining")], "a", id="a drain note of a Healthy one says nothing"),
        pytest.param([instance("a", UNKNOWN), instance("b", UNHEALTHY)], "a", id="Unknown as the last resort"),
        pytest.param([instance("a", UNHEALTHY), instance("b", UNHEALTHY)], "", id="never an Unhealthy one"),
        pytest.param([instance("a"), instance("b")], "a b", id="all of the best class"),
        pytest.param([instance("a"), instance("b", is_member=False)], "a", id="members only"),
        pytest.param([], "", id="nobody"),
    ],
)
def test_the_best_class_that_has_anyone_is_eligible(instances: list[Instance], expected: str) -> None:
    assert eligible(rule(*instances)) == expected


@pytest.mark.parametrize("scheme", ["grpc", "GRPCS", " tcp ", "ftp"])
def test_what_speaks_no_http_gets_no_requests_and_says_so(scheme: str) -> None:
    ruling = rule(instance("a", scheme=scheme), instance("b", DEGRADED))
    word = scheme.strip().lower()
    assert eligible(ruling) == "b"
    assert reason(ruling, "a") == f"scheme {word} is not served over HTTP/1.1"
    assert ruling.warnings == (f"instances with scheme {word} get no requests: that is not served over HTTP/1.1",)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param(RoutingPolicy(), "plain http", id="HTTP is what a table serves"),
        pytest.param(RoutingPolicy(schemes=("grpc", "grpcs")), "rpc", id="one for gRPC"),
        pytest.param(RoutingPolicy(schemes=("grpc",), port_key="grpc_port"), "both rpc", id="by a second port too"),
        pytest.param(RoutingPolicy(schemes=()), "both http plain raw rpc", id="one for anything"),
    ],
)
def test_a_table_serves_the_schemes_of_its_policy(policy: RoutingPolicy, expected: str) -> None:
    instances = [
        instance("both", scheme="tcp", grpc_port="9000"),
        instance("http"),
        instance("plain", is_member=False, lb_strategy="Random"),
        instance("raw", scheme="tcp"),
        instance("rpc", scheme=" GRPC "),
    ]
    ruling = rule(*instances, policy=policy)
    assert sorted(eligible(ruling).split()) == sorted(expected.split())
    if policy.schemes == ("grpc", "grpcs"):
        assert reason(ruling, "plain") == "scheme http is not grpc or grpcs"
        assert "instances with scheme http, tcp get no requests: that is not grpc or grpcs" in ruling.warnings


def test_schemes_are_lower_case() -> None:
    with pytest.raises(ValueError, match="lower case"):
        RoutingPolicy(schemes=("HTTP",))


@pytest.mark.parametrize("scheme", ["", "http", "HTTPS", " https "])
def test_http_with_or_without_tls_gets_requests(scheme: str) -> None:
    ruling = rule(instance("a", scheme=scheme))
    assert (eligible(ruling), ruling.warnings) == ("a", ())


def test_what_speaks_no_http_says_nothing_about_the_monitor() -> None:
    others = [instance(id, scheme="grpc") for id in "abcd"]
    ruling = rule(*others, instance("e"), probed=5, **dict.fromkeys("abcd", UNHEALTHY))
    assert (eligible(ruling), ruling.in_panic) == ("e", False)


def test_exposing_all_makes_others_than_members_eligible() -> None:
    ruling = rule(instance("a"), instance("b", is_member=False), policy=RoutingPolicy(expose_all=True))
    assert eligible(ruling) == "a b"


@pytest.mark.parametrize(
    ("status", "verdict", "expected"),
    [
        pytest.param(HEALTHY, UNHEALTHY, "b", id="an Unhealthy verdict removes"),
        pytest.param(HEALTHY, DEGRADED, "b", id="a Degraded verdict lowers"),
        pytest.param(HEALTHY, UNKNOWN, "a b", id="an Unknown verdict is no objection"),
        pytest.param(HEALTHY, HEALTHY, "a b", id="a Healthy verdict is no objection"),
        pytest.param(UNHEALTHY, HEALTHY, "b", id="a Healthy verdict heals nobody"),
        pytest.param(DEGRADED, HEALTHY, "b", id="nor does it raise"),
    ],
)
def test_verdicts_only_ever_lower(status: HealthStatus, verdict: HealthStatus, expected: str) -> None:
    assert eligible(rule(instance("a", status), instance("b"), a=verdict)) == expected


def test_a_degraded_verdict_leaves_the_last_ones_eligible() -> None:
    assert eligible(rule(instance("a"), a=DEGRADED)) == "a"


@pytest.mark.parametrize(
    ("healthy", "objections", "probed", "in_panic"),
    [
        pytest.param(1, 1, None, False, id="the only one may be dead"),
        pytest.param(2, 2, None, False, id="two may be dead"),
        pytest.param(3, 1, None, False, id="one of three"),
        pytest.param(3, 2, None, True, id="two of three"),
        pytest.param(4, 2, None, False, id="half is not most"),
        pytest.param(10, 6, None, True, id="most of ten"),
        pytest.param(10, 4, 4, True, id="all that are probed"),
        pytest.param(10, 2, 2, False, id="two probed ones may be dead"),
        pytest.param(10, 4, 10, False, id="a minority of the probed"),
        pytest.param(10, 4, 1, True, id="a count that lags behind the verdicts"),
        pytest.param(3, 2, 50, True, id="probed instances that are gone do not count"),
    ],
)
def test_panic_sets_most_of_a_services_verdicts_aside(
    healthy: int, objections: int, probed: int | None, in_panic: bool
) -> None:
    instances = [instance(f"i{index}") for index in range(healthy)]
    verdicts = {f"i{index}": UNHEALTHY for index in range(objections)}
    ruling = rule(*instances, probed=probed, **verdicts)
    assert ruling.in_panic is in_panic
    assert len(eligible(ruling).split()) == (healthy if in_panic else healthy - objections)
    assert any("set aside" in warning for warning in ruling.warnings) is in_panic


def test_a_threshold_of_one_never_panics() -> None:
    verdicts = {f"i{index}": UNHEALTHY for index in range(5)}
    ruling = rule(*(instance(id) for id in verdicts), policy=RoutingPolicy(panic_threshold=1.0), **verdicts)
    assert not ruling.in_panic
    assert eligible(ruling) == ""


def test_draining_and_unhealthy_ones_do_not_count_towards_panic() -> None:
    instances = [instance("a"), instance("b", UNHEALTHY), draining("c")]
    assert not rule(*instances, a=UNHEALTHY, b=UNHEALTHY, c=UNHEALTHY).in_panic


def test_panic_does_not_revive_what_the_registry_calls_unhealthy() -> None:
    instances = [instance("a"), instance("b"), instance("c"), instance("d", UNHEALTHY)]
    ruling = rule(*instances, a=UNHEALTHY, b=UNHEALTHY, c=UNHEALTHY, d=UNHEALTHY)
    assert eligible(ruling) == "a b c"


def test_of_two_registrations_at_one_endpoint_the_newest_counts() -> None:
    ruling = rule(instance("old", port=80, created=5), instance("new", port=80, created=6), instance("other", port=81))
    assert eligible(ruling) == "new other"
    assert reason(ruling, "old") == "same endpoint as the newer registration 'new'"


def test_an_older_registration_at_the_same_endpoint_stands_in_while_the_newest_is_unhealthy() -> None:
    ruling = rule(instance("old", port=80, created=5), instance("new", UNHEALTHY, port=80, created=6))
    assert eligible(ruling) == "old"


def test_of_two_registrations_of_one_id_the_newest_counts() -> None:
    old, new = instance("a", port=80, created=5), instance("a", DEGRADED, port=81, created=6)
    for order in ([old, new], [new, old]):
        ruling = rule(*order)
        assert [judgement.instance for judgement in ruling.judgements if not judgement.reason] == [new]
        assert ruling.warnings == ("id 'a' is registered more than once; the newest registration counts",)


@pytest.mark.parametrize(
    ("one", "text"),
    [
        pytest.param(instance("x", UNHEALTHY), "Unhealthy by the registry", id="registry"),
        pytest.param(instance("v"), "Unhealthy by the health monitor's verdict", id="verdict"),
        pytest.param(instance("w"), "Degraded by the health monitor's verdict; there are Healthy", id="lowered"),
        pytest.param(instance("x", DEGRADED), "Degraded by the registry; there are Healthy instances", id="degraded"),
        pytest.param(instance("x", UNKNOWN), "Unknown by the registry; there are Healthy instances", id="unknown"),
        pytest.param(draining("x"), "draining; there are Healthy instances", id="draining"),
        pytest.param(
            instance("x", DEGRADED, output="draining"), "draining; there are Healthy instances", id="drain note"
        ),
        pytest.param(instance("x", is_member=False), "no mesh metadata key", id="no member"),
    ],
)
def test_every_instance_that_is_not_eligible_has_a_reason(one: Instance, text: str) -> None:
    ruling = rule(instance("a"), instance("b"), one, v=UNHEALTHY, w=DEGRADED)
    assert text in reason(ruling, one.id)


statuses = st.sampled_from(HealthStatus)


@given(st.lists(st.tuples(statuses, st.none() | statuses, st.booleans()), max_size=8))
def test_the_eligible_are_one_class_and_never_unhealthy(
    rows: list[tuple[HealthStatus, HealthStatus | None, bool]],
) -> None:
    instances = [
        draining(f"i{index}", status) if is_draining else instance(f"i{index}", status)
        for index, (status, _, is_draining) in enumerate(rows)
    ]
    verdicts = {f"i{index}": verdict for index, (_, verdict, _) in enumerate(rows) if verdict is not None}
    ruling = rule(*instances, **verdicts)
    chosen = [judgement for judgement in ruling.judgements if not judgement.reason]
    assert len({judgement.rank for judgement in chosen}) <= 1
    for judgement in chosen:
        assert judgement.instance.status is not UNHEALTHY
        assert ruling.in_panic or judgement.verdict is not UNHEALTHY
    if any(status is HEALTHY and not is_draining for status, _, is_draining in rows) and not verdicts:
        assert all(judgement.instance.status is HEALTHY for judgement in chosen)

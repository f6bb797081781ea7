"""Records, verdicts and counts follow the catalog and the probes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.healthmonitor.builders import DOWN, OK, OWN_TROUBLE, SILENT, START, an_instance

from toska_mesh.healthmonitor.ledger import Ledger, LedgerPolicy, Record
from toska_mesh.healthmonitor.targets import NOT_CONFIGURED, ProbeKind
from toska_mesh.healthmonitor.verdict import ProbeResult
from toska_mesh.model import HealthStatus, InstanceId, ServiceName, Verdicts

ORDERS = ServiceName("orders")
FIRST = InstanceId("orders-1")
INTERVAL = 30.0


def a_ledger(*instances, **policy) -> Ledger:
    ledger = Ledger(LedgerPolicy(interval_seconds=INTERVAL, **policy))
    ledger.adopt(ORDERS, instances or (an_instance(),), START)
    return ledger


def the_record(ledger: Ledger, instance_id: InstanceId = FIRST) -> Record:
    record = ledger.find((ORDERS, instance_id))
    assert record is not None
    return record


def probe(ledger: Ledger, record: Record, results: list[ProbeResult], due: float = 0.0) -> list[str]:
    """One slot per result; tells what each slot reported. A slot left out uses up no result."""
    reports = []
    waiting = list(results)
    while waiting:
        permit = ledger.admit(record, due)
        if permit is not None:
            ledger.settle(record, permit, waiting.pop(0), due, START)
        reports.append(record.probe_type.value)
        due += INTERVAL
    return reports


def test_three_failures_make_a_verdict_and_two_successes_take_it_back():
    ledger = a_ledger()
    record = the_record(ledger)
    probe(ledger, record, [OK, DOWN, DOWN])
    assert ledger.verdicts() == Verdicts({}, {ORDERS: 1})
    probe(ledger, record, [DOWN], due=90.0)
    assert ledger.verdicts() == Verdicts({ORDERS: {FIRST: HealthStatus.UNHEALTHY}}, {ORDERS: 1})
    probe(ledger, record, [OK, OK], due=150.0)
    assert ledger.verdicts() == Verdicts({}, {ORDERS: 1})


def test_what_stays_dead_is_probed_every_second_slot_and_says_so():
    ledger = a_ledger()
    record = the_record(ledger)
    reports = probe(ledger, record, [DOWN] * 6)
    assert reports == ["http"] * 3 + ["circuit-breaker", "http"] * 3
    assert record.message == DOWN.message
    assert ledger.admit(record, 9 * INTERVAL) is None
    assert record.message == "Circuit breaker open, this probe was left out; the last one said: connection refused"
    assert ledger.admit(record, 9 * INTERVAL) is None
    assert record.message.count("Circuit breaker") == 1


def test_what_comes_back_is_probed_at_the_ordinary_pace_again():
    ledger = a_ledger()
    record = the_record(ledger)
    reports = probe(ledger, record, [DOWN] * 3 + [OK] * 4)
    assert reports == ["http"] * 3 + ["circuit-breaker"] + ["http"] * 4
    assert record.status is HealthStatus.HEALTHY


def test_failures_count_in_a_row_however_long_the_interval_is():
    ledger = Ledger(LedgerPolicy(interval_seconds=3600.0))
    ledger.adopt(ORDERS, (an_instance(),), START)
    record = the_record(ledger)
    for turn in range(3):
        permit = ledger.admit(record, turn * 3600.0)
        assert permit is not None
        ledger.settle(record, permit, DOWN, turn * 3600.0, START)
    assert ledger.admit(record, 3 * 3600.0) is None


def test_no_probe_configuration_is_neutral():
    ledger = a_ledger(an_instance(health_check_endpoint=""))
    record = the_record(ledger)
    assert (record.status, record.probe_type, record.message) == (HealthStatus.UNKNOWN, ProbeKind.NONE, NOT_CONFIGURED)
    assert ledger.verdicts() == Verdicts({}, {})


def test_the_monitors_own_trouble_changes_neither_verdict_nor_breaker():
    ledger = a_ledger()
    record = the_record(ledger)
    reports = probe(ledger, record, [OK] + [OWN_TROUBLE] * 10)
    assert record.status is HealthStatus.HEALTHY
    assert reports == ["http"] * 11
    assert record.message == OWN_TROUBLE.message


def test_an_inconclusive_trial_is_tried_again_at_the_next_slot():
    ledger = a_ledger()
    record = the_record(ledger)
    reports = probe(ledger, record, [DOWN] * 3 + [OWN_TROUBLE, OWN_TROUBLE, OK])
    assert reports == ["http"] * 3 + ["circuit-breaker"] + ["http"] * 3


def test_a_timeout_makes_a_suspect_until_it_answers():
    ledger = a_ledger()
    record = the_record(ledger)
    probe(ledger, record, [SILENT])
    assert record.is_suspect
    probe(ledger, record, [DOWN], due=30.0)
    assert not record.is_suspect


def test_everything_about_a_departed_instance_is_forgotten():
    ledger = a_ledger(an_instance(), an_instance("orders-2", host="10.0.0.2"))
    probe(ledger, the_record(ledger), [DOWN] * 3)
    changes = ledger.adopt(ORDERS, (an_instance("orders-2", host="10.0.0.2"),), START)
    assert changes.to_forget == ((ORDERS, FIRST),)
    assert ledger.verdicts() == Verdicts({}, {ORDERS: 1})
    ledger.adopt(ORDERS, (), START)
    assert ledger.verdicts() == Verdicts({}, {})
    assert ledger.service_names == ()
    assert len(ledger) == 0
    assert ledger._verdicts == {}
    assert ledger._probed == {}


def test_a_moved_instance_starts_over_without_a_verdict():
    ledger = a_ledger()
    record = the_record(ledger)
    probe(ledger, record, [DOWN] * 3)
    epoch = record.epoch
    changes = ledger.adopt(ORDERS, (an_instance(port=9090),), START)
    assert [(moved.previous, moved.current) for moved in changes.transitions] == [
        (HealthStatus.UNHEALTHY, HealthStatus.UNKNOWN)
    ]
    assert changes.to_schedule == (record,)
    assert record.epoch > epoch
    assert ledger.verdicts() == Verdicts({}, {ORDERS: 1})
    assert len(record.history) == 2


def test_other_changes_of_a_registration_keep_what_is_known():
    ledger = a_ledger()
    record = the_record(ledger)
    probe(ledger, record, [DOWN] * 3)
    changes = ledger.adopt(ORDERS, (an_instance(weight="5"),), START)
    assert changes.to_schedule == ()
    assert record.status is HealthStatus.UNHEALTHY
    assert record.instance.metadata["weight"] == "5"


def test_an_instance_that_gives_up_its_probe_settings_loses_its_verdict():
    ledger = a_ledger()
    probe(ledger, the_record(ledger), [DOWN] * 3)
    changes = ledger.adopt(ORDERS, (an_instance(health_check_endpoint=""),), START)
    assert changes.to_forget == ((ORDERS, FIRST),)
    assert changes.to_schedule == ()
    assert ledger.verdicts() == Verdicts({}, {})


def test_the_same_id_in_two_services_is_two_instances():
    ledger = a_ledger()
    ledger.adopt(ServiceName("carts"), (an_instance(service="carts"),), START)
    assert len(ledger) == 2


def test_handed_out_verdicts_do_not_change_afterwards():
    ledger = a_ledger()
    record = the_record(ledger)
    probe(ledger, record, [DOWN] * 3)
    handed_out = ledger.verdicts()
    probe(ledger, record, [OK, OK], due=150.0)
    assert handed_out == Verdicts({ORDERS: {FIRST: HealthStatus.UNHEALTHY}}, {ORDERS: 1})


def test_the_history_is_bounded():
    ledger = a_ledger(history_limit=4)
    record = the_record(ledger)
    for turn in range(50):
        probe(ledger, record, [DOWN] * 3 + [OK] * 2, due=turn * 1000.0)
    assert len(record.history) == 4
    assert [transition.is_first for transition in record.history] == [False] * 4


NAMES = [f"orders-{number}" for number in range(5)]
STEPS = st.one_of(
    st.tuples(st.just("adopt"), st.sets(st.sampled_from(NAMES))),
    st.tuples(st.sampled_from(NAMES), st.sampled_from([OK, DOWN, SILENT, OWN_TROUBLE])),
)


@given(st.lists(STEPS, max_size=60))
def test_counts_and_verdicts_always_equal_what_the_records_say(steps):
    ledger = Ledger(LedgerPolicy(interval_seconds=INTERVAL))
    due = 0.0
    for subject, value in steps:
        due += INTERVAL
        if subject == "adopt":
            instances = [
                an_instance(name, health_check_endpoint="" if name == NAMES[0] else "/health") for name in sorted(value)
            ]
            ledger.adopt(ORDERS, instances, START)
            continue
        record = ledger.find((ORDERS, InstanceId(subject)))
        if record is None or not record.plan.is_probed:
            continue
        permit = ledger.admit(record, due)
        if permit is not None:
            ledger.settle(record, permit, value, due, START)
    records = ledger.records(ORDERS)
    assert len(ledger) == len(records)
    for status in HealthStatus:
        assert ledger.counts[status] == sum(record.status is status for record in records)
    unhealthy = {record.key[1]: record.status for record in records if record.status is HealthStatus.UNHEALTHY}
    probed = sum(record.plan.is_probed for record in records)
    assert ledger.verdicts() == Verdicts({ORDERS: unhealthy} if unhealthy else {}, {ORDERS: probed} if probed else {})


@pytest.mark.parametrize("interval", [0.1, 1.0, 7.3, 30.0, 1e5])
def test_every_policy_gives_a_valid_breaker(interval):
    assert LedgerPolicy(interval_seconds=interval).breaker.open_seconds < 2 * interval

"""Everything the monitor knows: one record per instance, and the verdicts that follow from them. Pure.

The ledger is the only owner of records; the monitor reads them and hands results in. A record goes with its instance,
so memory follows the catalog and nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from toska_mesh.healthmonitor.history import History, Transition, remember
from toska_mesh.healthmonitor.schedule import phase_of
from toska_mesh.healthmonitor.targets import ProbeKind, ProbePlan, plan_probe
from toska_mesh.healthmonitor.verdict import FRESH, Judgement, Outcome, ProbeResult, Thresholds
from toska_mesh.model import HealthStatus, Instance, InstanceId, ServiceName, Verdicts
from toska_mesh.resilience.breaker import Breaker, BreakerPolicy, Permit
from toska_mesh.resilience.breaker import Outcome as CallOutcome

Key = tuple[ServiceName, InstanceId]
"""Ids are unique per registry agent only, so the service belongs to the key."""


@dataclass(frozen=True, slots=True)
class LedgerPolicy:
    interval_seconds: float = 30.0
    thresholds: Thresholds = field(default_factory=Thresholds)
    history_limit: int = 20
    allow_link_local: bool = False

    @property
    def breaker(self) -> BreakerPolicy:
        """Open for two intervals, so that every second probe of what stays dead is left out.

        A quarter of an interval is taken off, because a new instance's first slot lies beside its grid; and failures
        are counted however far apart they are.
        """
        return BreakerPolicy(
            failure_threshold=self.thresholds.fall,
            open_seconds=1.75 * self.interval_seconds,
            window_seconds=100 * self.interval_seconds,
            trial_seconds=self.interval_seconds / 2,
        )


class Record:
    """What is known of one instance. Changed by the ledger alone."""

    __slots__ = ("breaker", "epoch", "history", "instance", "is_suspect", "judgement", "key", "last_probe", "message",
                 "phase", "plan", "probe_type")  # fmt: skip

    def __init__(self, instance: Instance, plan: ProbePlan, breaker: Breaker) -> None:
        self.key: Key = (instance.service, instance.id)
        self.phase = phase_of(*self.key)
        self.history: History = ()
        self.last_probe: datetime | None = None
        self.epoch = 0
        """Grows with every new plan: a result of an older epoch says nothing about this one."""
        self.start_over(instance, plan, breaker)

    def start_over(self, instance: Instance, plan: ProbePlan, breaker: Breaker) -> None:
        self.instance = instance
        self.plan = plan
        self.breaker = breaker
        self.judgement: Judgement = FRESH
        self.is_suspect = False
        """Whether the last probe timed out: the next one is likely to hold its slot as long."""
        self.probe_type = plan.kind
        self.message = "" if plan.is_probed else plan.reason
        self.epoch += 1

    @property
    def status(self) -> HealthStatus:
        return self.judgement.status

    def __repr__(self) -> str:
        return f"<Record {self.key[0]}/{self.key[1]} {self.status.label} by {self.probe_type}: {self.message}>"


@dataclass(frozen=True, slots=True)
class Changes:
    """What a new list of a service's instances meant."""

    to_schedule: tuple[Record, ...] = ()
    to_forget: tuple[Key, ...] = ()
    transitions: tuple[Transition, ...] = ()


class Ledger:
    """Records by key."""

    def __init__(self, policy: LedgerPolicy) -> None:
        self._policy = policy
        self._breaker = Breaker(policy.breaker)
        self._services: dict[ServiceName, dict[InstanceId, Record]] = {}
        self._verdicts: dict[ServiceName, dict[InstanceId, HealthStatus]] = {}
        self._probed: dict[ServiceName, int] = {}
        self._counts = dict.fromkeys(HealthStatus, 0)

    def __len__(self) -> int:
        return sum(self._counts.values())

    @property
    def counts(self) -> Mapping[HealthStatus, int]:
        """How many instances have which status."""
        return self._counts

    @property
    def service_names(self) -> tuple[ServiceName, ...]:
        return tuple(self._services)

    def records(self, service: ServiceName) -> tuple[Record, ...]:
        """Records of a service; empty when there is none."""
        return tuple(self._services.get(service, {}).values())

    def find(self, key: Key) -> Record | None:
        return self._services.get(key[0], {}).get(key[1])

    def adopt(self, service: ServiceName, instances: Iterable[Instance], at: datetime) -> Changes:
        """Make the service's records equal to `instances`: wanted minus known, known minus wanted.

        An instance whose probe plan changed (another port, another path) starts over without a verdict; one whose
        registration merely changed in other ways keeps what is known.
        """
        wanted = {instance.id: instance for instance in instances}
        known = self._services.setdefault(service, {})
        gone = [record for instance_id, record in known.items() if instance_id not in wanted]
        for record in gone:
            self._count(record, -1)
            del known[record.key[1]]
        fresh: list[Record] = []
        transitions: list[Transition] = []
        for instance in wanted.values():
            plan = plan_probe(instance, allow_link_local=self._policy.allow_link_local)
            present = known.get(instance.id)
            if present is None:
                present = known[instance.id] = Record(instance, plan, self._breaker)
                self._count(present, 1)
            elif present.plan == plan:
                present.instance = instance
                continue
            else:
                transitions += self._replan(present, instance, plan, at)
            fresh.append(present)
        if not known:
            del self._services[service]
        return Changes(
            to_schedule=tuple(record for record in fresh if record.plan.is_probed),
            to_forget=(
                *(record.key for record in gone),
                *(record.key for record in fresh if not record.plan.is_probed),
            ),
            transitions=tuple(transitions),
        )

    def admit(self, record: Record, due: float) -> Permit | None:
        """Ask the record's breaker for the probe due now; None leaves it out. The permit goes back with the result."""
        record.breaker, permit = record.breaker.admit(due)
        if permit is None and record.probe_type is not ProbeKind.CIRCUIT_BREAKER:
            record.probe_type = ProbeKind.CIRCUIT_BREAKER
            record.message = f"Circuit breaker open, this probe was left out; the last one said: {record.message}"
        return permit

    def settle(
        self, record: Record, permit: Permit, result: ProbeResult, due: float, at: datetime
    ) -> Transition | None:
        """Take a probe's result in. Gives the transition when the verdict changed."""
        outcome = result.outcome
        record.is_suspect = outcome is Outcome.TIMEOUT
        record.probe_type = record.plan.kind
        record.message = result.message
        record.last_probe = at
        record.breaker = record.breaker.settle(permit, _CALL_OUTCOMES[outcome], due)
        judgement = record.judgement.after(outcome, self._policy.thresholds)
        if judgement.status is record.status:
            record.judgement = judgement
            return None
        return self._turn(record, judgement, at)

    def verdicts(self) -> Verdicts:
        """Only what is not healthy, with the number of probed instances per service; a value of its own."""
        return Verdicts(
            services=MappingProxyType({name: MappingProxyType(dict(found)) for name, found in self._verdicts.items()}),
            probed=MappingProxyType(dict(self._probed)),
        )

    def _replan(self, record: Record, instance: Instance, plan: ProbePlan, at: datetime) -> list[Transition]:
        previous = record.status
        self._count(record, -1)
        record.start_over(instance, plan, self._breaker)
        self._count(record, 1)
        if previous is HealthStatus.UNKNOWN:
            return []
        return [self._note(record, previous, at, "probe settings changed: judged anew")]

    def _turn(self, record: Record, judgement: Judgement, at: datetime) -> Transition:
        previous = record.status
        self._count(record, -1)
        record.judgement = judgement
        self._count(record, 1)
        return self._note(record, previous, at, record.message)

    def _note(self, record: Record, previous: HealthStatus, at: datetime, message: str) -> Transition:
        service, instance_id = record.key
        transition = Transition(
            service, instance_id, previous, record.status, at, record.plan.kind, message, is_first=not record.history
        )
        record.history = remember(record.history, transition, self._policy.history_limit)
        return transition

    def _count(self, record: Record, step: int) -> None:
        """Add a record to the sums and the verdicts, or take it out."""
        service, instance_id = record.key
        self._counts[record.status] += step
        if not record.plan.is_probed:
            return
        probed = self._probed.get(service, 0) + step
        if probed:
            self._probed[service] = probed
        else:
            self._probed.pop(service, None)
        if record.status not in _OBJECTIONS:
            return
        if step > 0:
            self._verdicts.setdefault(service, {})[instance_id] = record.status
        else:
            found = self._verdicts[service]
            del found[instance_id]
            if not found:
                del self._verdicts[service]


_OBJECTIONS = frozenset((HealthStatus.UNHEALTHY, HealthStatus.DEGRADED))
_CALL_OUTCOMES = {
    Outcome.SUCCESS: CallOutcome.SUCCESS,
    Outcome.FAILURE: CallOutcome.FAILURE,
    Outcome.TIMEOUT: CallOutcome.FAILURE,
    Outcome.INCONCLUSIVE: CallOutcome.CANCELLED,
}

"""`Service`: one routed service in one table, ready to pick from.

A service is built from inputs that are compared before anything is done: while they stay the same the whole object is
carried from table to table, with the turn it is at. Otherwise a new one is built around the targets that remain.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from toska_mesh.model import Endpoint, HealthStatus, Instance, InstanceId, ServiceName
from toska_mesh.model.metadata import LB_STRATEGY, WEIGHT
from toska_mesh.router.eligibility import judge, registration_order
from toska_mesh.router.picker import Pick, Picker
from toska_mesh.router.policy import MAX_WEIGHT, RoutingPolicy
from toska_mesh.router.strategies import DEFAULT_STRATEGY, Strategy, make_picker, parse_strategy
from toska_mesh.router.target import NEVER, Target

TargetKey = tuple[InstanceId, Endpoint]
_LONGEST_NUMBER: Final = 9
"""Digits of a weight beyond which it is not worth parsing: it is over the cap anyway."""


@dataclass(frozen=True, slots=True)
class ServiceInputs:
    """Everything a service is built from, apart from the policy."""

    name: ServiceName
    instances: tuple[Instance, ...]
    verdicts: Mapping[InstanceId, HealthStatus]
    probed: int | None
    warnings: tuple[str, ...] = ()
    """What the table has to say about the service (a rival name)."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One instance with its target and what was decided about it; `reason` is empty when it is eligible."""

    target: Target
    verdict: HealthStatus | None
    reason: str

    @property
    def is_eligible(self) -> bool:
        return not self.reason


class Service:
    """One routed service. `pick` is the strategy's own method, one call away."""

    __slots__ = ("_by_key", "_picker", "_ramp_until", "everything", "in_panic", "inputs", "name", "pick", "policy",
                 "strategy", "targets", "warnings")  # fmt: skip

    policy: Any
    """What the table's user decided about requests to this service; None while the object is new. It stays as long as
    the service does, so it may rest on the instances and on nothing else."""
    pick: Pick
    """Choose the target of one request: `pick(now, key=None, tried=())`. Never one that is blocked; never one of
    `tried` while another is eligible and not blocked. None when all are blocked, or when `targets` is empty."""

    def __init__(
        self,
        inputs: ServiceInputs,
        policy: RoutingPolicy,
        previous: "Service | None",
        make_target: Callable[[Instance], Target],
        now: float,
        rng: Random,
        is_first_table: bool,
    ) -> None:
        self.inputs = inputs
        self.name = inputs.name
        self.policy = None
        instances = sorted(inputs.instances, key=_stable_order)
        ruling = judge(instances, inputs.verdicts, inputs.probed, policy)
        strategy, strategy_warnings = _choose_strategy(instances, policy)
        warnings = [*inputs.warnings, *ruling.warnings, *strategy_warnings]

        known = previous._by_key if previous is not None else {}
        self._by_key: dict[TargetKey, Target] = {}
        everything = []
        for judgement in ruling.judgements:
            instance = judgement.instance
            key = (instance.id, instance.endpoint)
            target = known.get(key) or self._by_key.get(key)
            if target is None:
                target = make_target(instance)
            target.instance = instance
            target.weight, weight_warning = _parse_weight(instance)
            if weight_warning:
                warnings.append(weight_warning)
            self._by_key[key] = target
            everything.append(Standing(target, judgement.verdict, judgement.reason))

        self.everything: tuple[Standing, ...] = tuple(everything)
        """Every instance of the service, sorted by id."""
        self.targets: tuple[Target, ...] = tuple(standing.target for standing in everything if standing.is_eligible)
        """The eligible ones, sorted by id. Empty: nobody may be asked."""
        self.strategy = strategy.name
        self.in_panic = ruling.in_panic
        self.warnings: tuple[str, ...] = tuple(warnings)
        self._ramp_until = _start_ramps(self.targets, policy, now, is_first_table)
        predecessor = previous._picker if previous is not None else None
        self._picker: Picker = make_picker(strategy, self.targets, rng, predecessor)
        self.pick = self._pick_while_ramping if now < self._ramp_until else self._picker.pick

    def has_inputs(self, inputs: ServiceInputs) -> bool:
        """Whether building from these would give the same again. Cheap when the instances are the same objects."""
        return self.inputs == inputs

    def refresh(self, inputs: ServiceInputs) -> None:
        """Take over inputs that are equal to the present ones: instances may carry newer words about their checks."""
        if inputs.instances is not self.inputs.instances:
            for instance in inputs.instances:
                self._by_key[instance.id, instance.endpoint].instance = instance
        self.inputs = inputs

    def all_targets(self) -> Collection[Target]:
        """The targets of all instances, eligible or not."""
        return self._by_key.values()

    def _pick_while_ramping(self, now: float, key: str | None = None, tried: Collection[Target] = ()) -> Target | None:
        if now < self._ramp_until:
            return self._picker.pick_ramping(now, key, tried)
        self.pick = self._picker.pick  # slow start is over: from now on it costs nothing
        return self._picker.pick(now, key, tried)

    def __repr__(self) -> str:
        return f"<Service {self.name}: {self.strategy}, {len(self.targets)} of {len(self.everything)} eligible>"


def _stable_order(instance: Instance) -> tuple[object, ...]:
    """By id; what else there is tells apart even registrations that are the same but for their metadata."""
    return instance.id, registration_order(instance), sorted(instance.metadata.items())


def _start_ramps(targets: Sequence[Target], policy: RoutingPolicy, now: float, is_first_table: bool) -> float:
    """Begin slow start for those that are eligible for the first time; give the moment when the last ramp ends.

    Only beside instances that have been serving for a while: those that come up together share evenly at once.
    """
    settled_before = now - policy.slow_start_seconds
    has_settled = any(
        target.eligible_since is not None and target.eligible_since <= settled_before for target in targets
    )
    for target in targets:
        if target.eligible_since is not None:
            continue
        target.eligible_since = NEVER if is_first_table else now
        if has_settled and policy.slow_start_seconds > 0:
            target.start_ramp(now, policy.slow_start_seconds)
    return max((target.ramp_until for target in targets), default=NEVER)


def _choose_strategy(instances: Sequence[Instance], policy: RoutingPolicy) -> tuple[Strategy, list[str]]:
    """The newest registration that names a strategy decides for the service; the others get a warning."""
    named = [
        instance
        for instance in instances
        if (policy.expose_all or instance.is_mesh_member) and instance.metadata.get(LB_STRATEGY, "").strip()
    ]
    if not named:
        return DEFAULT_STRATEGY, []
    newest = max(named, key=registration_order)
    wanted = newest.metadata[LB_STRATEGY]
    strategy = parse_strategy(wanted)
    warnings = []
    if strategy is None:
        strategy = DEFAULT_STRATEGY
        warnings.append(f"{LB_STRATEGY} {wanted!r} of {newest.id!r} is unknown; {strategy.name} is used")
    others = {instance.metadata[LB_STRATEGY] for instance in named}
    rivals = sorted(other for other in others if parse_strategy(other) != parse_strategy(wanted))
    if rivals:
        warnings.append(
            f"instances disagree on {LB_STRATEGY}: {newest.id!r}, registered last, says {wanted!r}; "
            f"others say {', '.join(map(repr, rivals))}"
        )
    return strategy, warnings


def _parse_weight(instance: Instance) -> tuple[int, str]:
    """The weight within 1 to `MAX_WEIGHT`, and a warning when that is not what was written."""
    text = instance.metadata.get(WEIGHT, "").strip()
    if not text:
        return 1, ""
    if not (text.isascii() and text.isdigit()) or not text.strip("0"):
        return 1, f"{WEIGHT} {text!r} of {instance.id!r} is no whole number above 0; 1 is used"
    digits = text.lstrip("0")
    if len(digits) > _LONGEST_NUMBER or int(digits) > MAX_WEIGHT:
        return MAX_WEIGHT, f"{WEIGHT} {text!r} of {instance.id!r} is cut to {MAX_WEIGHT}"
    return int(digits), ""

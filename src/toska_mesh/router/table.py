"""`RouteTable`: all routed services at one moment, built from a snapshot of the catalog and the monitors' verdicts.

A table is never changed; the gateway swaps it whole. What did not change is shared with the table before: the service
objects (with the turn they are at) and the targets (with their load, breaker and pool). What did not change is told by
identity: a service whose tuple of instances and whose verdicts are those of the table before is not looked into. So the
cost of a change is the cost of the services that changed, plus one glance at every tuple.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Any

from toska_mesh.model import NO_VERDICTS, CatalogSnapshot, HealthStatus, Instance, InstanceId, ServiceName, Verdicts
from toska_mesh.model.metadata import MESH_MARKERS
from toska_mesh.router.eligibility import registration_order
from toska_mesh.router.policy import RoutingPolicy
from toska_mesh.router.service import Service, ServiceInputs
from toska_mesh.router.target import Target

_NO_OBJECTIONS: Mapping[InstanceId, HealthStatus] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class RouteTable:
    """Look a service up with `services.get(lower_case_name)`, `by_bytes.get(path_segment)` or `service(name)`."""

    version: int
    """Grows by one with every build."""
    catalog_version: int
    """The snapshot's version."""
    services: Mapping[str, Service]
    """By name in lower case."""
    by_bytes: Mapping[bytes, Service]
    """The same for raw path segments: the lower-case and the registered spelling. Misses need a second look only when
    the segment has other capitals or percent-encoding."""
    unrouted: Mapping[str, str]
    """Services of the registry that are not routed, by their own name, with the reason."""
    departed: tuple[Target, ...]
    """Targets of the table before that this one no longer has: their pools can be closed once idle."""
    policy: RoutingPolicy
    rng: Random = field(repr=False)
    _sources: "_Sources" = field(repr=False)
    _before: "Callable[[], RouteTable | None]" = field(repr=False)
    """The table that this one was made from, while somebody holds it."""
    _changed: tuple[str, ...] = field(repr=False)

    def changes_since(self, before: "RouteTable | None") -> tuple[str, ...]:
        """Lower-case names of services that are new, gone or other objects than in `before`."""
        if before is None:
            return tuple(self.services)
        if before is self._before():
            return self._changed
        names = (name for name, service in self.services.items() if before.services.get(name) is not service)
        return (*names, *(name for name in before.services if name not in self.services))

    def service(self, name: str) -> Service | None:
        """Find a service by its name in any case."""
        service = self.services.get(name)
        return service if service is not None else self.services.get(name.lower())

    @classmethod
    def build(
        cls,
        snapshot: CatalogSnapshot,
        verdicts: Verdicts = NO_VERDICTS,
        policy: RoutingPolicy | None = None,
        previous: "RouteTable | None" = None,
        make_target: Callable[[Instance], Target] = Target,
        now: float = 0.0,
        rng: Random | None = None,
    ) -> "RouteTable":
        """Make the next table. The result does not depend on the order of the snapshot.

        `make_target` is called once for each new instance or endpoint. `now`: seconds, monotonic. `rng` is for the
        strategies that draw lots; without one that of `previous` goes on.
        """
        policy = policy or (previous.policy if previous is not None else RoutingPolicy())
        rng = rng or (previous.rng if previous is not None else Random())
        before: Mapping[str, Service] = previous.services if previous is not None else {}
        is_same_policy = previous is not None and previous.policy == policy
        if previous is not None and is_same_policy:
            affected, sources = previous._sources.follow(snapshot.services, verdicts)
            services, unrouted = dict(previous.services), dict(previous.unrouted)
            by_bytes = dict(previous.by_bytes)
            for folded in affected:
                for name in previous._sources.groups.get(folded, ()):
                    unrouted.pop(name, None)
        else:
            sources = _Sources(snapshot.services, verdicts, _fold(snapshot.services))
            affected, services, unrouted, by_bytes = tuple(sources.groups), {}, {}, {}
        changed: list[str] = []
        departed: list[Target] = []

        for folded in affected:
            old = before.get(folded)
            inputs = _choose(folded, sources, policy, unrouted)
            if inputs is None:
                if old is not None:
                    services.pop(folded, None)
                    departed.extend(old.all_targets())
                    changed.append(folded)
                continue
            if old is not None and is_same_policy and old.has_inputs(inputs):
                old.refresh(inputs)
                continue
            predecessor = old if old is not None and old.name == inputs.name else None
            service = Service(inputs, policy, predecessor, make_target, now, rng, is_first_table=previous is None)
            services[folded] = service
            changed.append(folded)
            if old is not None:
                remaining = set(service.all_targets())
                departed.extend(target for target in old.all_targets() if target not in remaining)
        if not is_same_policy:
            gone = [folded for folded in before if folded not in sources.groups]
            departed.extend(target for folded in gone for target in before[folded].all_targets())
            changed += gone

        for folded in changed:
            _point(by_bytes, folded, services)
            for service_before_or_now in (before.get(folded), services.get(folded)):
                if service_before_or_now is not None:
                    _point(by_bytes, service_before_or_now.name, services)
        return cls(
            version=previous.version + 1 if previous is not None else 1,
            catalog_version=snapshot.version,
            services=services,
            by_bytes=by_bytes,
            unrouted=unrouted,
            departed=tuple(departed),
            policy=policy,
            rng=rng,
            _sources=sources,
            _before=weakref.ref(previous) if previous is not None else _nothing,
            _changed=tuple(changed),
        )

    def explain(self, now: float) -> dict[str, Any]:
        """Everything that was decided and why, as plain data for an admin API. `now`: seconds, monotonic."""
        return {
            "version": self.version,
            "catalog_version": self.catalog_version,
            "services": [_explain(service, now) for _, service in sorted(self.services.items())],
            "unrouted": dict(sorted(self.unrouted.items())),
        }

    def explain_service(self, service: Service, now: float) -> dict[str, Any]:
        """The same about one service."""
        return _explain(service, now)


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class _Sources:
    """What a table was made from, kept so that the next one can tell what changed. Never altered."""

    instances: Mapping[ServiceName, tuple[Instance, ...]]
    verdicts: Verdicts
    groups: Mapping[str, tuple[ServiceName, ...]]
    """By name in lower case: the names that differ in nothing else."""

    def follow(
        self, instances: Mapping[ServiceName, tuple[Instance, ...]], verdicts: Verdicts
    ) -> tuple[Iterable[str], "_Sources"]:
        """Groups in which a name has come or gone, or has other instances or verdicts; and the new sources."""
        before = self.instances
        changed = {name: None for name, found in instances.items() if before.get(name) is not found}
        come = [name for name in changed if name not in before]
        gone = [name for name in before if name not in instances] if len(before) + len(come) != len(instances) else []
        changed |= dict.fromkeys(gone)
        if verdicts is not self.verdicts:
            changed |= dict.fromkeys(_differing(self.verdicts.services, verdicts.services))
            changed |= dict.fromkeys(_differing(self.verdicts.probed, verdicts.probed))
        groups = self.groups
        if come or gone:
            groups = dict(groups)
            for name in gone:
                left = tuple(other for other in groups[name.lower()] if other != name)
                if left:
                    groups[name.lower()] = left
                else:
                    del groups[name.lower()]
            for name in come:
                groups[name.lower()] = (*groups.get(name.lower(), ()), name)
        affected = dict.fromkeys(name.lower() for name in changed)
        return affected, _Sources(instances, verdicts, groups)


def _differing(before: Mapping[ServiceName, Any], after: Mapping[ServiceName, Any]) -> list[ServiceName]:
    if before is after:
        return []
    differing = [name for name, value in after.items() if before.get(name) != value]
    return differing + [name for name in before if name not in after]


def _fold(names: Iterable[ServiceName]) -> dict[str, tuple[ServiceName, ...]]:
    folded: dict[str, tuple[ServiceName, ...]] = {}
    for name in names:
        folded[name.lower()] = (*folded.get(name.lower(), ()), name)
    return folded


def _choose(
    folded: str, sources: _Sources, policy: RoutingPolicy, unrouted: MutableMapping[str, str]
) -> ServiceInputs | None:
    """What the service of this group is built from; None when none is routed. The others get their reason."""
    names = sources.groups.get(folded, ())
    instances = sources.instances
    if folded in policy.excluded:
        unrouted.update((name, "excluded by the policy") for name in names)
        return None
    routed = [name for name in names if _is_routed(instances[name], policy)]
    unrouted.update((name, _why_not(instances[name])) for name in names if name not in routed)
    if not routed:
        return None
    name, warnings = _settle_rivals(routed, instances, unrouted)
    verdicts = sources.verdicts
    objections = verdicts.services.get(name) or _NO_OBJECTIONS
    return ServiceInputs(name, instances[name], objections, verdicts.probed.get(name), warnings)


def _point(by_bytes: dict[bytes, Service], text: str, services: Mapping[str, Service]) -> None:
    """Let a path segment lead to the service of this very spelling, else to the one whose folded name it is."""
    service = services.get(text.lower())
    if service is None or service.name != text:
        service = services.get(text)
    if service is not None:
        by_bytes[text.encode()] = service
    else:
        by_bytes.pop(text.encode(), None)


def _is_routed(instances: tuple[Instance, ...], policy: RoutingPolicy) -> bool:
    return policy.expose_all or any(instance.is_mesh_member for instance in instances)


def _why_not(instances: tuple[Instance, ...]) -> str:
    if not instances:
        return "no instance"
    return f"no instance carries a mesh metadata key ({', '.join(sorted(MESH_MARKERS))})"


def _settle_rivals(
    names: list[ServiceName], instances: Mapping[ServiceName, tuple[Instance, ...]], unrouted: MutableMapping[str, str]
) -> tuple[ServiceName, tuple[str, ...]]:
    """Of names that differ in case only, the one with the newest registration is routed."""
    if len(names) == 1:
        return names[0], ()
    winner = max(names, key=lambda name: (max(map(registration_order, instances[name]), default=()), name))
    losers = sorted(name for name in names if name != winner)
    unrouted.update((name, f"differs only in case from {winner!r}, which was registered last") for name in losers)
    others = ", ".join(map(repr, losers))
    return winner, (f"{others} differ only in case and are not routed; {winner!r} was registered last",)


def _explain(service: Service, now: float) -> dict[str, Any]:
    return {
        "name": service.name,
        "strategy": service.strategy,
        "eligible": len(service.targets),
        "in_panic": service.in_panic,
        "warnings": list(service.warnings),
        "instances": [
            {
                "id": standing.target.instance.id,
                "address": standing.target.instance.endpoint.host,
                "port": standing.target.instance.endpoint.port,
                "status": standing.target.instance.status.label,
                "output": standing.target.instance.output,
                "verdict": standing.verdict.label if standing.verdict is not None else None,
                "eligible": standing.is_eligible,
                "reason": standing.reason,
                "weight": standing.target.weight,
                "share": round(standing.target.share(now), 3),
                "in_flight": standing.target.in_flight,
                "blocked": standing.target.is_blocked,
            }
            for standing in service.everything
        ],
    }

"""`RouteTable`: all routed services at one moment, built from a snapshot of the catalog and the monitors' verdicts.

A table is never changed; the gateway swaps it whole. What did not change is shared with the table before: the service
objects (with the turn they are at) and the targets (with their load, breaker and pool). So the cost of a change is the
cost of the services that changed, plus one look at every name.
"""

from collections.abc import Callable, Iterable, Mapping
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


@dataclass(frozen=True, slots=True, eq=False)
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
        before = previous.services if previous is not None else {}
        is_same_policy = previous is not None and previous.policy == policy
        unrouted: dict[str, str] = {}
        services: dict[str, Service] = {}
        departed: list[Target] = []

        for folded, names in _fold(snapshot.services).items():
            if folded in policy.excluded:
                unrouted.update((name, "excluded by the policy") for name in names)
                continue
            routed = [name for name in names if _is_routed(snapshot.services[name], policy)]
            unrouted.update((name, _why_not(snapshot.services[name])) for name in names if name not in routed)
            if not routed:
                continue
            name, warnings = _settle_rivals(routed, snapshot, unrouted)
            objections = verdicts.services.get(name) or _NO_OBJECTIONS
            inputs = ServiceInputs(name, snapshot.services[name], objections, verdicts.probed.get(name), warnings)
            old = before.get(folded)
            if old is not None and is_same_policy and old.has_inputs(inputs):
                old.refresh(inputs)
                services[folded] = old
                continue
            predecessor = old if old is not None and old.name == name else None
            service = Service(inputs, policy, predecessor, make_target, now, rng, is_first_table=previous is None)
            services[folded] = service
            if old is not None:
                remaining = set(service.all_targets())
                departed.extend(target for target in old.all_targets() if target not in remaining)

        for folded, old in before.items():
            if folded not in services:
                departed.extend(old.all_targets())
        by_bytes = {folded.encode(): service for folded, service in services.items()}
        by_bytes.update((service.name.encode(), service) for service in services.values())
        return cls(
            version=previous.version + 1 if previous is not None else 1,
            catalog_version=snapshot.version,
            services=services,
            by_bytes=by_bytes,
            unrouted=unrouted,
            departed=tuple(departed),
            policy=policy,
            rng=rng,
        )

    def explain(self, now: float) -> dict[str, Any]:
        """Everything that was decided and why, as plain data for an admin API. `now`: seconds, monotonic."""
        return {
            "version": self.version,
            "catalog_version": self.catalog_version,
            "services": [_explain(service, now) for _, service in sorted(self.services.items())],
            "unrouted": dict(sorted(self.unrouted.items())),
        }


def _fold(names: Iterable[ServiceName]) -> dict[str, list[ServiceName]]:
    folded: dict[str, list[ServiceName]] = {}
    for name in names:
        folded.setdefault(name.lower(), []).append(name)
    return folded


def _is_routed(instances: tuple[Instance, ...], policy: RoutingPolicy) -> bool:
    return policy.expose_all or any(instance.is_mesh_member for instance in instances)


def _why_not(instances: tuple[Instance, ...]) -> str:
    if not instances:
        return "no instance"
    return f"no instance carries a mesh metadata key ({', '.join(sorted(MESH_MARKERS))})"


def _settle_rivals(
    names: list[ServiceName], snapshot: CatalogSnapshot, unrouted: dict[str, str]
) -> tuple[ServiceName, tuple[str, ...]]:
    """Of names that differ in case only, the one with the newest registration is routed."""
    if len(names) == 1:
        return names[0], ()
    winner = max(names, key=lambda name: (max(map(registration_order, snapshot.services[name]), default=()), name))
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

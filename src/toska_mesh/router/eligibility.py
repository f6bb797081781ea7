"""Which instances of a service may be asked, and in words why the others may not.

What counts, in this order: mesh membership, a scheme that is served, the registry's status, the health monitor's
verdict (unless the service is in panic), draining. The best class that has anyone is eligible as a whole; the classes,
best first, are `Rank`. An Unhealthy instance is never eligible: without any other the service has nobody, and the
caller says 503.

Panic: when monitors object to most of the instances that the registry calls healthy, the monitor is the likelier
patient (its own network, its own clock). Then its verdicts about this service are set aside, and the table says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from toska_mesh.model import Endpoint, HealthStatus, Instance, InstanceId
from toska_mesh.model.metadata import HTTP_SCHEMES, MESH_MARKERS, SCHEME
from toska_mesh.router.policy import RoutingPolicy


class Rank(IntEnum):
    """Classes of instances that may be asked, best first."""

    HEALTHY = 0
    DEGRADED = 1
    DRAINING = 2
    """Healthy or Degraded, but finishing up: no new requests while anyone better is there."""
    UNKNOWN = 3
    """Without any check: nothing speaks for it and nothing against. Better than an error, worse than all others."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was decided about one instance. `reason` is empty exactly when it is eligible."""

    instance: Instance
    verdict: HealthStatus | None
    rank: Rank | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """All instances of a service judged together, sorted as they came."""

    judgements: tuple[Judgement, ...]
    in_panic: bool
    warnings: tuple[str, ...]


def judge(
    instances: Sequence[Instance],
    verdicts: Mapping[InstanceId, HealthStatus],
    probed: int | None,
    policy: RoutingPolicy,
) -> Ruling:
    """Judge the instances of one service. `probed`: how many of them monitors look at; None when nobody says."""
    warnings: list[str] = []
    duplicates = _older_duplicates(instances)
    trusted = [
        instance
        for position, instance in enumerate(instances)
        if instance.status is HealthStatus.HEALTHY
        and (policy.expose_all or instance.is_mesh_member)
        and position not in duplicates
        and not instance.is_draining
        and not _foreign_scheme(instance, policy)
    ]
    objections = sum(verdicts.get(instance.id) is HealthStatus.UNHEALTHY for instance in trusted)
    # Instances that no monitor looks at cannot speak for the monitor. `probed` may lag behind the verdicts.
    base = len(trusted) if probed is None else min(len(trusted), max(probed, objections))
    in_panic = base >= policy.panic_min_instances and objections > policy.panic_threshold * base
    if in_panic:
        warnings.append(
            f"panic: the health monitor objects to {objections} of {base} instances that the registry calls healthy; "
            "its verdicts about this service are set aside"
        )

    foreign = sorted({scheme for instance in instances if (scheme := _foreign_scheme(instance, policy))})
    if foreign:
        warnings.append(f"instances with scheme {', '.join(foreign)} get no requests: that {_not_served(policy)}")

    first: list[Judgement] = []
    for position, instance in enumerate(instances):
        verdict = verdicts.get(instance.id)
        if position in duplicates:
            warnings.append(f"id {instance.id!r} is registered more than once; the newest registration counts")
            first.append(Judgement(instance, verdict, None, "a newer registration has the same id"))
        elif not (policy.expose_all or instance.is_mesh_member):
            reason = f"no mesh metadata key ({', '.join(sorted(MESH_MARKERS))})"
            first.append(Judgement(instance, verdict, None, reason))
        elif scheme := _foreign_scheme(instance, policy):
            first.append(Judgement(instance, verdict, None, f"scheme {scheme} {_not_served(policy)}"))
        else:
            rank, reason = _rank(instance, None if in_panic else verdict)
            first.append(Judgement(instance, verdict, rank, reason))

    best = min((judgement.rank for judgement in first if judgement.rank is not None), default=None)
    if best is None:
        return Ruling(tuple(first), in_panic, tuple(dict.fromkeys(warnings)))
    newest = _newest_by_endpoint(judgement.instance for judgement in first if judgement.rank is best)
    judgements = tuple(_settle(judgement, best, newest) for judgement in first)
    return Ruling(judgements, in_panic, tuple(dict.fromkeys(warnings)))


def _rank(instance: Instance, verdict: HealthStatus | None) -> tuple[Rank | None, str]:
    """The class of one instance, and the words for it when a better class is there."""
    if instance.status is HealthStatus.UNHEALTHY:
        return None, "Unhealthy by the registry"
    if verdict is HealthStatus.UNHEALTHY:
        return None, "Unhealthy by the health monitor's verdict"
    if instance.status is HealthStatus.UNKNOWN:
        return Rank.UNKNOWN, "Unknown by the registry"
    if instance.is_draining:
        return Rank.DRAINING, "draining"
    if instance.status is HealthStatus.DEGRADED:
        return Rank.DEGRADED, "Degraded by the registry"
    if verdict is HealthStatus.DEGRADED:
        return Rank.DEGRADED, "Degraded by the health monitor's verdict"
    return Rank.HEALTHY, ""


def _settle(judgement: Judgement, best: Rank, newest: Mapping[Endpoint, Instance]) -> Judgement:
    instance, rank = judgement.instance, judgement.rank
    if rank is None:
        return judgement
    if rank > best:
        reason = f"{judgement.reason}; there are {best.name.capitalize()} instances"
        return Judgement(instance, judgement.verdict, rank, reason)
    owner = newest[instance.endpoint]
    if owner is not instance:
        reason = f"same endpoint as the newer registration {owner.id!r}"
        return Judgement(instance, judgement.verdict, rank, reason)
    return Judgement(instance, judgement.verdict, rank)


def _foreign_scheme(instance: Instance, policy: RoutingPolicy) -> str:
    """What the instance speaks when that is something else than the table's requests; empty when they can go to it."""
    scheme = instance.metadata.get(SCHEME, "").strip().lower() or HTTP_SCHEMES[0]
    if not policy.schemes or scheme in policy.schemes:
        return ""
    if policy.port_key and instance.metadata.get(policy.port_key, "").strip():
        return ""
    return scheme[:40]


def _not_served(policy: RoutingPolicy) -> str:
    if policy.schemes == HTTP_SCHEMES:
        return "is not served over HTTP/1.1"
    return f"is not {' or '.join(policy.schemes)}"


def registration_order(instance: Instance) -> tuple[int, str, str, int, int]:
    """Sorts registrations from the oldest to the newest. The rest decides between equals, in any order of input."""
    endpoint = instance.endpoint
    return instance.create_index, instance.id, endpoint.host, endpoint.port, instance.status


def _older_duplicates(instances: Sequence[Instance]) -> set[int]:
    """Positions of all but the newest registration of each id (an id is unique on a node only). Nearly always empty."""
    newest: dict[InstanceId, int] = {}
    older: set[int] = set()
    for position, instance in enumerate(instances):
        rival = newest.get(instance.id)
        if rival is None or registration_order(instances[rival]) <= registration_order(instance):
            newest[instance.id] = position
            older.update(() if rival is None else (rival,))
        else:
            older.add(position)
    return older


def _newest_by_endpoint(instances: Iterable[Instance]) -> Mapping[Endpoint, Instance]:
    newest: dict[Endpoint, Instance] = {}
    for instance in sorted(instances, key=registration_order):
        newest[instance.endpoint] = instance
    return newest
